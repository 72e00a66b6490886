"""Tokenize corpora into Parquet shards, in this process or over Ray.

A shard has the rows of a token file. It is complete or not there, and notes in
its metadata what was left out, so that a run goes on at the next shard.
"""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow
import pyarrow.parquet
from datasets import Features, Sequence, Value, load_from_disk
from tqdm import tqdm

from speechbrain_vq.dataio.atomic import exclusive, made_folder
from speechbrain_vq.dataio.audio import (
    AudioError,
    cell_source,
    check_audio,
    check_files,
    files_below,
    find_audio,
    listed,
)
from speechbrain_vq.dataio.logs import few_warnings

from .batches import encode, make_batches
from .engine import RayEngine
from .files import FileResults
from .token_files import check_model, describe_model, without_text
from .tokenizer import VQTokenizer

# Column of the audio in a data set.
_AUDIO = "audio"
# Rows of a data set that are read at once, and of one shard.
_CHUNK, _ROWS = 100, 1000
# Seconds of audio files for a shard, unless that makes fewer than so many.
_SECONDS, _SHARDS = 3600.0, 100
# Key of a shard's metadata.
_NOTES = b"speechbrain_vq"


class Rows(NamedTuple):
    """Rows ``start`` to ``stop`` of a data set on disk: of a folder of
    ``Dataset.save_to_disk``, or a row group of a Parquet file."""

    path: str
    start: int
    stop: int
    group: int | None = None

    def columns(self) -> dict:
        """Return the types of the columns."""
        if self.group is None:
            return dict(load_from_disk(self.path).features)
        schema = pyarrow.parquet.read_schema(self.path)
        return dict(Features.from_arrow_schema(schema))

    def split(self) -> Iterator["Rows"]:
        """Yield all rows of the file or folder, in parts."""
        if self.group is None:
            number = len(load_from_disk(self.path))
            for start in range(0, number, _ROWS):
                yield Rows(self.path, start, min(start + _ROWS, number))
            return
        metadata, start = pyarrow.parquet.read_metadata(self.path), 0
        for group in range(metadata.num_row_groups):
            stop = start + metadata.row_group(group).num_rows
            yield Rows(self.path, start, stop, group)
            start = stop

    def read(self) -> Iterator[tuple[int, pyarrow.Table]]:
        """Yield some rows at a time, with the number of the first."""
        if self.group is None:
            dataset = load_from_disk(self.path).with_format("arrow")
            for first in range(self.start, self.stop, _CHUNK):
                yield first, dataset[first : min(first + _CHUNK, self.stop)]
            return
        first = self.start
        with pyarrow.parquet.ParquetFile(self.path) as file:
            for some in file.iter_batches(_CHUNK, row_groups=[self.group]):
                yield first, pyarrow.Table.from_batches([some])
                first += len(some)


class Shard(NamedTuple):
    """A shard to write: ``target``, the folder to write it in first, the
    batches of audio files or the rows of its audio, and the seconds of audio
    per batch of rows."""

    target: pathlib.Path
    scratch: pathlib.Path
    audio: list[list[str]] | Rows
    batch_seconds: float


@few_warnings()
def tokenize_shards(
    output: str | os.PathLike,
    places: Iterable[str | os.PathLike],
    tokenizer: VQTokenizer,
    overwrite: bool = False,
    batch_seconds: float = 60.0,
    progress: bool = False,
    engine: RayEngine | None = None,
) -> FileResults:
    """Tokenize audio files and data sets into a folder of Parquet shards, for
    ``datasets.load_dataset("parquet", data_dir=output)``.

    The rows of a data set keep their other columns. An interrupted run goes on
    after the shards that are complete; audio files that are in none yet are
    added. Tokens do not depend on the engine or on interruptions.

    Arguments
    ---------
    output : path
        Folder for the shards.
    places : iterable of path
        Audio files, Parquet files with a column ``audio``, folders of these,
        and folders of ``Dataset.save_to_disk``.
    tokenizer, overwrite, batch_seconds, progress, engine
        See ``tokenize_to``.

    Returns
    -------
    FileResults
        Number of files and rows done, and the reasons for the others.

    Raises
    ------
    FileNotFoundError
        If there is no audio.
    FileExistsError
        If the output holds other things.
    BlockingIOError
        If another process is writing the output.
    ValueError
        If the output is of another model or precision, a data set has no column
        of audio, or two places have other columns.

    Example
    -------
    >>> tokenize_shards("tokens", ["recordings"], tokenizer)  # doctest: +SKIP
    >>> datasets.load_dataset("parquet", data_dir="tokens")  # doctest: +SKIP
    """
    output, places = pathlib.Path(os.path.abspath(output)), listed(places)
    tables = tables_in(places, output)
    try:
        files = [p for p in places if str(pathlib.Path(p)) not in tables]
        paths = [os.fspath(path) for path in find_audio(files)]
    except FileNotFoundError:
        if not tables:
            raise
        paths = []
    with made_folder(output), exclusive(output):
        # Those of earlier runs: a worker that has outlived its run can complete
        # no shard any more.
        for path in output.glob(".tokenize-*"):
            shutil.rmtree(path)
        with tempfile.TemporaryDirectory(
            prefix=".tokenize-", dir=output, ignore_cleanup_errors=True
        ) as scratch:
            earlier = _read_shards(output)
            finished = {} if overwrite else earlier
            # It hashes the weights.
            model = describe_model(tokenizer)
            for path, notes in finished.items():
                check_model(notes, path, model)
            done, batches, bad = _batches_of(
                paths, finished, output, batch_seconds
            )
            parts, damaged = _rows_of(tables, output)
            bad |= damaged
            jobs = [
                Shard(target, pathlib.Path(scratch), part, batch_seconds)
                for target, part in {**parts, **batches}.items()
            ]
            _check_columns(tokenizer, jobs, finished)
            for path in earlier if overwrite else ():
                path.unlink()
            if engine is None:
                results = (write_shard(tokenizer, job) for job in jobs)
            else:
                results = engine.map(write_shard, tokenizer, jobs)
            hidden = None if progress else True
            for rows, left_out in tqdm(
                results, total=len(jobs), unit="shard", disable=hidden
            ):
                done, bad = done + rows, bad | left_out
    return FileResults(done, bad)


def tables_in(
    places: Iterable[str | os.PathLike],
    output: pathlib.Path | None = None,
) -> dict[str, bool]:
    """List Parquet files and folders of ``Dataset.save_to_disk``, but for
    hidden ones and those in the output; True for Parquet."""
    tables = {}
    for place in map(pathlib.Path, places):
        paths = sorted(files_below(place)) if place.is_dir() else [place]
        for path in paths:
            is_parquet = path.suffix == ".parquet"
            # The latter is beside the Arrow files of a data set.
            if not is_parquet and path.name != "state.json":
                continue
            if output in pathlib.Path(os.path.abspath(path)).parents:
                continue
            tables[os.fspath(path if is_parquet else path.parent)] = is_parquet
    return tables


@few_warnings()
def write_shard(
    tokenizer: VQTokenizer, shard: Shard
) -> tuple[int, dict[str, str]]:
    """Write a shard, unless it is there. Return the number of its rows, and by
    name why others are missing. One without a row is not written."""
    if shard.target.exists():
        notes = _read_notes(shard.target)
        return notes["rows"], notes["left_out"]
    model = describe_model(tokenizer)
    columns, left_out, number = _columns(tokenizer, shard.audio), {}, 0
    partial = shard.scratch / uuid.uuid4().hex
    try:
        with pyarrow.parquet.ParquetWriter(partial, columns) as writer:
            for rows in _tokenize(tokenizer, shard, left_out):
                rows = [{**row, **model} for row in rows]
                writer.write_table(pyarrow.Table.from_pylist(rows, columns))
                number += len(rows)
            notes = {**model, "left_out": left_out}
            writer.add_key_value_metadata({_NOTES: json.dumps(notes)})
    except AudioError as error:
        # Of its data set; the next run tries it again.
        return 0, {f"{shard.audio.path}#{shard.audio.start}": str(error)}
    if number:
        os.replace(partial, shard.target)
    return number, left_out


def _tokenize(tokenizer, shard, left_out):
    """Yield lists of rows; note in ``left_out`` by name why others are not
    there."""
    for sources, batches, others in _sources(shard, left_out):
        rows = {}
        for batch in batches:
            some = {name: sources[name] for name in batch}
            for name, result in encode(tokenizer, some, shard.batch_seconds):
                if isinstance(result, AudioError):
                    left_out[name] = str(result)
                    continue
                tokens, number = result
                rows[name] = {"path": name, **others.get(name, {})}
                rows[name] |= {"tokens": tokens.tolist(), "num_samples": number}
        yield [rows[name] for name in sources if name in rows]


def _sources(shard, left_out):
    """Yield audio by name, names in batches, and by name what a row has beside
    the audio."""
    if not isinstance(shard.audio, Rows):
        yield {p: p for batch in shard.audio for p in batch}, shard.audio, {}
        return
    tables = shard.audio.read()
    while True:
        with _unreadable(shard.audio.path):
            first, table = next(tables, (None, None))
        if table is None:
            return
        cells = table[_AUDIO].to_pylist()
        rest = table.drop_columns(_AUDIO).to_pylist()
        sources, seconds, others = {}, {}, {}
        for number, (cell, row) in enumerate(zip(cells, rest, strict=True)):
            name = f"{shard.audio.path}#{first + number}"
            try:
                source = cell_source(cell, name)
                seconds[name] = check_audio(source, decode=False)
            except AudioError as error:
                left_out[name] = str(error)
                continue
            path = cell.get("path") if isinstance(cell, dict) else cell
            sources[name] = source
            others[name] = {**row, "path": path or name}
        yield sources, make_batches(seconds, shard.batch_seconds), others


def _columns(tokenizer, audio):
    """Return the columns of a shard, with their types for ``datasets``."""
    tokens = Sequence(Value("int64"))
    tokens = tokens if tokenizer.is_folded else Sequence(tokens)
    columns = audio.columns() if isinstance(audio, Rows) else {}
    columns.pop(_AUDIO, None)
    for name in ("path", "model", "revision", "fingerprint", "precision"):
        columns[name] = Value("string")
    for name in ("num_samples", "sample_rate"):
        columns[name] = Value("int64")
    columns |= {"token_rate": Value("float64"), "tokens": tokens}
    return Features(columns).arrow_schema


def _check_columns(tokenizer, jobs, finished):
    """Refuse shards that `datasets` does not load together."""
    shard = next(iter(finished), None)
    known = {shard: pyarrow.parquet.read_schema(shard)} if finished else {}
    for job in jobs:
        is_rows = isinstance(job.audio, Rows)
        place = job.audio.path if is_rows else "Audio files"
        if place not in known:
            known[place] = _columns(tokenizer, job.audio)
            first, columns = next(iter(known.items()))
            if not columns.equals(known[place]):
                raise ValueError(
                    f"{place} would have other columns than {first}: name an "
                    "output for each."
                )


def _rows_of(tables, output):
    """Return, by the shard to write, the rows of data sets, and by path why
    some cannot be read."""
    parts, bad = {}, without_text(tables)
    for path in [path for path in tables if path not in bad]:
        whole = Rows(path, 0, 0, 0 if tables[path] else None)
        try:
            with _unreadable(path):
                columns, some = whole.columns(), list(whole.split())
        except AudioError as error:
            bad[path] = str(error)
            continue
        if _AUDIO not in columns:
            raise ValueError(
                f"{path}: has no column '{_AUDIO}'; it has "
                f"{', '.join(columns)}. Rename the one with the audio."
            )
        absolute = os.path.abspath(path).encode()
        digest = hashlib.sha256(absolute).hexdigest()[:12]
        stem = pathlib.Path(path).stem
        for rows in some:
            name = f"rows-{stem}-{digest}-{rows.start:09d}.parquet"
            parts[output / name] = rows
    return parts, bad


@contextlib.contextmanager
def _unreadable(path):
    """Turn the errors of a damaged data set into an AudioError."""
    try:
        yield
    # Those of Arrow are among them.
    except (OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise AudioError(f"{path}: cannot be read: {reason}") from error


def _batches_of(paths, finished, output, batch_seconds):
    """Return how many files are done, by the shard to write the batches of the
    others, and by path why some cannot be read."""
    done, tried, number = set(), set(), 0
    for shard, notes in finished.items():
        if shard.name.startswith("files-"):
            column = pyarrow.parquet.read_table(shard, columns=["path"])
            done.update(column["path"].to_pylist())
            tried |= notes["left_out"].keys()
            number = max(number, int(shard.stem.removeprefix("files-")) + 1)
    left = [path for path in dict.fromkeys(paths) if path not in done]
    unnamed = without_text(left)
    seconds, bad = check_files([p for p in left if p not in unnamed], False)
    # Those left out before come last: the batches of the others are those of a
    # run that was never stopped, and so the bits of their tokens.
    batches = [
        batch
        for again in (False, True)
        for batch in make_batches(
            {p: s for p, s in seconds.items() if (p in tried) == again},
            batch_seconds,
        )
    ]
    limit = min(_SECONDS, sum(seconds.values()) / _SHARDS)
    shards, total = {}, limit
    for batch in batches:
        if total >= limit:
            current = shards[output / f"files-{number:06d}.parquet"] = []
            number, total = number + 1, 0.0
        current.append(batch)
        total += sum(seconds[path] for path in batch)
    return len(paths) - len(left), shards, bad | unnamed


def _read_shards(output):
    """Return the notes of the shards in a folder, which may hold no other
    things."""
    names = [path for path in output.iterdir() if path.name[0] != "."]
    others = [p for p in names if p.suffix != ".parquet" or not p.is_file()]
    if others:
        raise FileExistsError(
            f"{output} holds other things, such as {others[0].name}: name "
            "another folder."
        )
    return {path: _read_notes(path) for path in sorted(names)}


def _read_notes(shard):
    """Read what a shard notes, and the number of its rows."""
    try:
        metadata = pyarrow.parquet.read_metadata(shard)
        notes = json.loads(metadata.metadata[_NOTES])
    except (KeyError, TypeError, ValueError) as error:
        raise FileExistsError(
            f"{shard} is no shard that `tokenize` wrote: name another folder."
        ) from error
    return {**notes, "rows": metadata.num_rows}
