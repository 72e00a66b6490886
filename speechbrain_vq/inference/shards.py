"""Tokenize corpora into Parquet shards, in this process or on Ray.

A shard has the rows of a token file, and is written atomically, so that an
interrupted run resumes at the next shard. Its metadata lists the audio that was
left out.
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

from speechbrain_vq.dataio.atomic import exclusive
from speechbrain_vq.dataio.audio import (
    AudioError,
    cell_source,
    check_audio,
    check_files,
    files_below,
    find_audio,
    listed,
)
from speechbrain_vq.dataio.chunks import check_seconds
from speechbrain_vq.dataio.logs import few_warnings

from .batches import encode, make_batches
from .engine import RayEngine
from .files import FileResults
from .token_files import check_model, describe_model, without_text
from .tokenizer import VQTokenizer

# Audio column of a data set.
_AUDIO = "audio"
# Number of rows of a data set to read at once, and per shard.
_CHUNK, _ROWS = 100, 1000
# Maximum seconds of audio files per shard. Shards are smaller if there would
# otherwise be fewer than _SHARDS.
_SECONDS, _SHARDS = 3600.0, 100
# Key of the package in a shard's metadata.
_NOTES = b"speechbrain_vq"


class Rows(NamedTuple):
    """Rows ``start`` to ``stop`` of a data set on disk: of a folder written by
    ``Dataset.save_to_disk``, or of the row group ``group`` of a Parquet
    file."""

    path: str
    start: int
    stop: int
    group: int | None = None

    def columns(self) -> dict:
        """Return the features of the data set by column name."""
        if self.group is None:
            return dict(load_from_disk(self.path).features)
        schema = pyarrow.parquet.read_schema(self.path)
        return dict(Features.from_arrow_schema(schema))

    def split(self) -> Iterator["Rows"]:
        """Yield the rows of the whole data set in parts, one per shard."""
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
        """Yield tables of a few rows, each with the number of its first
        row."""
        with _unreadable(self.path):
            if self.group is None:
                dataset = load_from_disk(self.path).with_format("arrow")
                for first in range(self.start, self.stop, _CHUNK):
                    yield first, dataset[first : min(first + _CHUNK, self.stop)]
                return
            first = self.start
            with pyarrow.parquet.ParquetFile(self.path) as file:
                for batch in file.iter_batches(_CHUNK, row_groups=[self.group]):
                    yield first, pyarrow.Table.from_batches([batch])
                    first += len(batch)


class Shard(NamedTuple):
    """Shard to write: its final path, the folder of partial files, its audio
    (files with their seconds, or rows), and the seconds of audio per batch."""

    target: pathlib.Path
    scratch: pathlib.Path
    audio: dict[str, float] | Rows
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

    Rows of a data set keep their other columns. Another run with the same
    output keeps complete shards, and adds audio that is not in them, unless
    ``overwrite`` is set. Tokens do not depend on the engine or on
    interruptions.

    Arguments
    ---------
    output : path
        Folder for the shards.
    places : iterable of path
        Audio files, Parquet files with a column ``audio``, folders of these,
        and folders of ``Dataset.save_to_disk``.
    tokenizer, overwrite, batch_seconds, progress, engine
        See ``tokenize_to``, also for the result and further errors.

    Raises
    ------
    ValueError
        If a data set has no column ``audio``.
    """
    check_seconds("batch_seconds", batch_seconds)
    output, places = pathlib.Path(os.path.abspath(output)), listed(places)
    tables = tables_in(places, output)
    try:
        others = [p for p in places if str(pathlib.Path(p)) not in tables]
        paths = [os.fspath(path) for path in find_audio(others)]
    except FileNotFoundError:
        if not tables:
            raise
        paths = []
    output.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        # Remove scratch folders of earlier runs, so that workers left over from
        # those runs cannot complete a shard.
        for path in output.glob(".tokenize-*"):
            shutil.rmtree(path)
        with tempfile.TemporaryDirectory(
            prefix=".tokenize-", dir=output, ignore_cleanup_errors=True
        ) as scratch:
            rows, unreadable = _rows_of(tables, output)
            finished = _read_shards(output)
            if overwrite:
                for path in finished:
                    path.unlink()
                finished = {}
            model = describe_model(tokenizer)
            for path, notes in finished.items():
                check_model(notes, path, model)
            done, files, bad = _files_of(paths, finished, output, batch_seconds)
            bad |= unreadable
            jobs = [
                Shard(target, pathlib.Path(scratch), audio, batch_seconds)
                for target, audio in {**rows, **files}.items()
            ]
            if engine is None:
                results = (write_shard(tokenizer, job) for job in jobs)
            else:
                results = engine.map(write_shard, tokenizer, jobs)
            hidden = None if progress else True
            for number, left_out in tqdm(
                results, total=len(jobs), unit="shard", disable=hidden
            ):
                done += number
                bad |= left_out
    return FileResults(done, bad)


def tables_in(
    places: Iterable[str | os.PathLike], output: pathlib.Path | None = None
) -> dict[str, bool]:
    """Find Parquet files (True) and folders written by ``Dataset.save_to_disk``
    (False), except hidden ones and those in the output folder."""
    tables = {}
    for place in map(pathlib.Path, places):
        paths = sorted(files_below(place)) if place.is_dir() else [place]
        for path in paths:
            is_parquet = path.suffix == ".parquet"
            # `save_to_disk` writes both next to its Arrow files.
            info = path.with_name("dataset_info.json")
            is_state = path.name == "state.json" and info.is_file()
            is_table = is_parquet or is_state
            absolute = pathlib.Path(os.path.abspath(path))
            if is_table and output not in absolute.parents:
                table = path if is_parquet else path.parent
                tables[os.fspath(table)] = is_parquet
    return tables


@few_warnings()
def write_shard(
    tokenizer: VQTokenizer, shard: Shard
) -> tuple[int, dict[str, str]]:
    """Write a shard, unless it exists or would be empty. Return its number of
    rows, and the reasons for left-out audio by name."""
    if shard.target.exists():
        notes = _read_notes(shard.target)
        return notes["rows"], notes["left_out"]
    model = describe_model(tokenizer)
    del model["codebook_size"]  # Older shards do not have this column.
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
        # The data set itself is unreadable. The next run tries again.
        return 0, {f"{shard.audio.path}#{shard.audio.start}": str(error)}
    if number:
        os.replace(partial, shard.target)
    return number, left_out


def _tokenize(tokenizer, shard, left_out):
    """Yield lists of rows, and add the reasons for missing rows to
    ``left_out``."""
    for sources, seconds, others in _sources(shard, left_out):
        rows = {}
        for name, tokens, number in encode(
            tokenizer, sources, seconds, shard.batch_seconds, left_out
        ):
            rows[name] = {"path": name, **others.get(name, {})}
            rows[name] |= {"tokens": tokens.tolist(), "num_samples": number}
        yield [rows[name] for name in sources if name in rows]


def _sources(shard, left_out):
    """Yield audio, its seconds, and the other columns, each by name."""
    if not isinstance(shard.audio, Rows):
        yield {path: path for path in shard.audio}, shard.audio, {}
        return
    for first, table in shard.audio.read():
        cells = table[_AUDIO].to_pylist()
        rows = table.drop_columns(_AUDIO).to_pylist()
        sources, seconds, others = {}, {}, {}
        for number, (cell, row) in enumerate(zip(cells, rows, strict=True)):
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
        yield sources, seconds, others


def _columns(tokenizer, audio):
    """Return the Arrow schema of a shard, with the types of ``datasets``."""
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


def _rows_of(tables, output):
    """Return the rows of data sets by shard path, and the reasons for
    unreadable data sets by path."""
    shards, bad = {}, without_text(tables)
    for path in [path for path in tables if path not in bad]:
        whole = Rows(path, 0, 0, 0 if tables[path] else None)
        try:
            with _unreadable(path):
                columns, parts = whole.columns(), list(whole.split())
        except AudioError as error:
            bad[path] = str(error)
            continue
        if _AUDIO not in columns:
            raise ValueError(
                f"{path}: has no column '{_AUDIO}'; it has "
                f"{', '.join(columns)}. Rename the column with the audio."
            )
        absolute = os.path.abspath(path).encode()
        digest = hashlib.sha256(absolute).hexdigest()[:12]
        stem = pathlib.Path(path).stem
        for rows in parts:
            name = f"rows-{stem}-{digest}-{rows.start:09d}.parquet"
            shards[output / name] = rows
    return shards, bad


@contextlib.contextmanager
def _unreadable(path):
    """Convert errors of a damaged data set to an AudioError."""
    try:
        yield
    except (OSError, ValueError) as error:  # Base classes of Arrow's errors
        reason = str(error).partition("\n")[0]
        raise AudioError(f"{path}: cannot be read: {reason}") from error


def _files_of(paths, finished, output, batch_seconds):
    """Return the number of finished files, the seconds of the others by shard
    path, and the reasons for unreadable files by path."""
    done, tried, number = set(), set(), 0
    for shard, notes in finished.items():
        if shard.name.startswith("files-"):
            column = pyarrow.parquet.read_table(shard, columns=["path"])["path"]
            done |= set(column.to_pylist())
            tried |= notes["left_out"].keys()
            number = max(number, int(shard.stem.removeprefix("files-")) + 1)
    missing = [path for path in paths if path not in done]
    not_utf8 = without_text(missing)
    seconds, bad = check_files([p for p in missing if p not in not_utf8], False)
    shards, limit = {}, min(_SECONDS, sum(seconds.values()) / _SHARDS)
    # Files that an earlier run left out get separate shards, so that the other
    # tokens are bit-identical to those of an uninterrupted run.
    for retry in (False, True):
        part = {p: s for p, s in seconds.items() if (p in tried) == retry}
        total = limit
        for batch in make_batches(part, batch_seconds):
            if total >= limit:
                current = shards[output / f"files-{number:06d}.parquet"] = {}
                number, total = number + 1, 0.0
            current.update({path: part[path] for path in batch})
            total += sum(part[path] for path in batch)
    return len(paths) - len(missing), shards, bad | not_utf8


def _read_shards(output):
    """Return the notes in the shards of a folder. Raises FileExistsError if it
    has other contents."""
    paths = [path for path in output.iterdir() if path.name[0] != "."]
    others = [p for p in paths if p.suffix != ".parquet" or not p.is_file()]
    if others:
        raise FileExistsError(
            f"{output} has other files, such as {others[0].name}: choose "
            "another folder."
        )
    return {path: _read_notes(path) for path in sorted(paths)}


def _read_notes(shard):
    """Read the notes in a shard's metadata, and its number of rows."""
    try:
        metadata = pyarrow.parquet.read_metadata(shard)
        notes = json.loads(metadata.metadata[_NOTES])
    except (KeyError, TypeError, ValueError) as error:
        raise FileExistsError(
            f"{shard} is not a shard from `tokenize`: choose another folder."
        ) from error
    return {**notes, "rows": metadata.num_rows}
