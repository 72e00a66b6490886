"""Tokenize many files, and read and write token files.

A token file has a line of JSON for each audio file: ``path``, ``tokens``,
``num_samples``, ``token_rate``, ``sample_rate``, the ``model``, its
``revision`` on the Hub, the ``fingerprint`` of its weights, with the number of
codebooks where not all are used, and the ``precision`` of its computation.
"""

import json
import logging
import os
import pathlib
import shutil
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from speechbrain_vq.dataio.atomic import (
    atomic_folder,
    atomic_write,
    exclusive,
    made_folder,
)
from speechbrain_vq.dataio.audio import (
    AudioError,
    audio_blocks,
    cell_source,
    check_files,
    find_audio,
    naming,
    read_audio,
)
from speechbrain_vq.dataio.logs import few_warnings

from .engine import RayEngine
from .files import FileResults
from .tokenizer import VQTokenizer

if TYPE_CHECKING:
    from datasets import Dataset

logger = logging.getLogger(__name__)


class TokenFileError(ValueError):
    """Report a token file that cannot be used."""


_WAY_OUT = "Name another file to write, or overwrite this one."
# What the lines of `tokenize` have beside the tokens.
_KEYS = {"path": str, "num_samples": int, "fingerprint": str}


def tokenize_files(
    paths: Iterable[str | os.PathLike],
    tokenizer: VQTokenizer,
    output: str | os.PathLike,
    batch_seconds: float = 60.0,
    progress: bool = False,
) -> FileResults:
    """Tokenize files into a jsonl token file, longest file first.

    Arguments
    ---------
    paths : iterable of path
        Audio files. Those that cannot be read are left out.
    tokenizer : VQTokenizer
        The model.
    output : path
        Token file to write or to extend, as in ``tokenize_to``.
    batch_seconds : float
        Seconds of audio per batch, padding included; longer files are
        processed alone, in chunks of that length.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    FileResults
        Number of files done, and the reasons for the others.
    """
    return _tokenize(
        paths, tokenizer, output, "jsonl", False, batch_seconds, progress
    )


def tokenize_to(
    output: str | os.PathLike,
    places: Iterable[str | os.PathLike],
    tokenizer: VQTokenizer,
    format: str | None = None,
    overwrite: bool = False,
    batch_seconds: float = 60.0,
    progress: bool = False,
    engine: RayEngine | None = None,
) -> FileResults:
    """Tokenize files and folders into a token file, an npz or a data set; or
    these and data sets into Parquet shards, see ``shards.tokenize_shards``.

    Lines are collected in ``NAME.partial.jsonl``, of which the output is made
    at the end, in one step. An interrupted run continues there, and files that
    a jsonl output has already are not tokenized again.

    Arguments
    ---------
    output : path
        File or folder to write; a jsonl token file is extended.
    places : iterable of path
        Audio files and folders of them.
    tokenizer : VQTokenizer
        The model.
    format : str, optional
        ``"jsonl"``, ``"npz"``, ``"hf-dataset"`` or ``"parquet"``; by default
        that of the name of the output, or Parquet with an engine.
    overwrite : bool
        Whether to remove the output first.
    batch_seconds, progress
        See ``tokenize_files``.
    engine : RayEngine, optional
        What runs the computation of Parquet shards; by default this process.

    Returns
    -------
    FileResults
        Number of files done, and the reasons for the others.

    Raises
    ------
    FileNotFoundError
        If there are no audio files.
    FileExistsError
        If the output exists and is not to be overwritten, or is something
        else.
    BlockingIOError
        If another process is writing the output.
    ValueError
        If the output is of another model or precision, or no token file; or
        an engine or a data set is given for one that is not of Parquet.
    """
    from .shards import tables_in, tokenize_shards

    if format == "parquet" or (engine and not pathlib.Path(output).suffix):
        return tokenize_shards(
            output,
            places,
            tokenizer,
            overwrite,
            batch_seconds,
            progress,
            engine,
        )
    format, places = format or format_of(output), list(places)
    if engine or (tables := tables_in(places)):
        what = "--engine=ray" if engine else next(iter(tables))
        raise ValueError(
            f"{what}: tokens go to Parquet shards. Name a folder as output, "
            "and --format=parquet."
        )
    paths = list(find_audio(places))
    return _tokenize(
        paths, tokenizer, output, format, overwrite, batch_seconds, progress
    )


def format_of(output: str | os.PathLike) -> str:
    """Return the format that the name of an output stands for.

    Example
    -------
    >>> format_of("tokens.npz"), format_of("results/tokens")
    ('npz', 'hf-dataset')
    """
    suffix = pathlib.Path(output).suffix
    if suffix in (".jsonl", ".npz"):
        return suffix[1:]
    if suffix:
        raise ValueError(
            f"{output}: .jsonl and .npz are known, and folders (a data set). "
            "Say which it is with --format."
        )
    return "hf-dataset"


def read_tokens(path: str | os.PathLike) -> Iterator[dict]:
    """Read a token file, jsonl or npz.

    Arguments
    ---------
    path : path
        The token file.

    Yields
    ------
    dict
        Tokens of an audio file, and what a line has beside them.

    Raises
    ------
    TokenFileError
        If it is no token file, with the line.
    """
    if pathlib.Path(path).suffix == ".npz":
        yield from _read_npz(path)
        return
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            try:
                yield _parse(text, path, number)
            except TokenFileError:
                # A killed run of version 0.1 leaves an incomplete last line.
                if number == 1 or text.endswith(b"\n"):
                    raise
                logger.warning("%s: line %d is cut short.", path, number)


def tokens_to_npz(rows: Iterable[dict], output: str | os.PathLike) -> None:
    """Write tokens, as ``read_tokens`` gives them, to an npz file of NumPy.

    The tokens of row i are ``tokens[offsets[i] : offsets[i + 1]]``. Without
    tokens there is a ValueError.

    Example
    -------
    >>> tokens_to_npz(read_tokens("a.jsonl"), "a.npz")  # doctest: +SKIP
    """
    rows = list(rows)
    if not rows:
        raise ValueError(f"{output}: there are no tokens to write.")
    tokens = [np.asarray(row["tokens"], dtype=np.int32) for row in rows]
    own = ("path", "tokens", "num_samples")
    common = {key: rows[0][key] for key in rows[0] if key not in own}
    arrays = {
        "paths": np.array([row["path"] for row in rows]),
        "tokens": np.concatenate(tokens),
        "offsets": np.cumsum([0, *map(len, tokens)]),
        "num_samples": np.array([row["num_samples"] for row in rows]),
        **{
            key: np.array(str(value) if value is None else value)
            for key, value in common.items()
        },
    }
    with atomic_write(output) as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **arrays)


def tokens_to_dataset(rows: Iterable[dict], folder: str | os.PathLike) -> None:
    """Write tokens, as ``read_tokens`` gives them, to a folder for
    ``datasets.load_from_disk``.

    Example
    -------
    >>> tokens_to_dataset(read_tokens("a.jsonl"), "a")  # doctest: +SKIP
    """
    from datasets import Dataset

    with atomic_folder(folder) as partial:
        Dataset.from_list(list(rows)).save_to_disk(partial)


def tokenize_dataset(
    dataset: "Dataset",
    tokenizer: VQTokenizer,
    audio_column: str = "audio",
    tokens_column: str = "tokens",
    **options,
) -> "Dataset":
    """Add tokens to a data set of Hugging Face's ``datasets``.

    Audio is read with soundfile, from the bytes or the path in the column:
    torchcodec is not needed. The column itself is not changed.

    Arguments
    ---------
    dataset : datasets.Dataset
        Data set with a column of audio, or of paths.
    tokenizer : VQTokenizer
        The model.
    audio_column : str
        Name of that column.
    tokens_column : str
        Name of the new column of tokens, [T] (or [T, C]); None where the
        audio cannot be used, which is logged.
    **options
        Options of ``Dataset.map``. With ``num_proc``, each process computes
        with one thread.

    Returns
    -------
    datasets.Dataset
        The data set with the new column.

    Raises
    ------
    ValueError
        If there is no such column, the new one exists, or ``num_proc`` is
        given for a model on a GPU.
    """
    from datasets import (
        Audio,
        Features,
        Sequence,
        Value,
        concatenate_datasets,
    )

    if audio_column not in dataset.column_names:
        raise ValueError(
            f"The data set has no column '{audio_column}'; it has "
            f"{', '.join(dataset.column_names)}."
        )
    if tokens_column in dataset.column_names:
        raise ValueError(
            f"The data set has a column '{tokens_column}' already: give "
            "tokens_column another name, or remove it."
        )

    if (options.get("num_proc") or 1) > 1 and torch.device(
        tokenizer.device
    ).type != "cpu":
        raise ValueError(
            f"num_proc={options['num_proc']}: processes cannot share a model "
            f"on {tokenizer.device}. Leave num_proc out, or load the model "
            'with run_opts={"device": "cpu"}.'
        )

    def tokenize(row, index):
        name = f"row {index} ({row['path'] or 'bytes'})"
        try:
            source = cell_source(row, name)
            blocks = audio_blocks(source, tokenizer.sample_rate, name=name)
            return {tokens_column: tokenizer.tokenize(blocks).tolist()}
        except ValueError as error:
            logger.warning("No tokens for %s: %s", name, error)
            return {tokens_column: None}

    kind = Sequence(Value("int64"))
    kind = kind if tokenizer.is_folded else Sequence(kind)
    tokens = dataset.cast_column(audio_column, Audio(decode=False)).map(
        tokenize,
        input_columns=[audio_column],
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features({tokens_column: kind}),
        **{"desc": "Tokens", **options},
    )
    return concatenate_datasets([dataset, tokens], axis=1)


def _tokenize(
    paths, tokenizer, output, format, overwrite, batch_seconds, progress
):
    output = pathlib.Path(output)
    partial = output.with_name(
        f"{output.name.removesuffix('.jsonl')}.partial.jsonl"
    )
    paths = list(dict.fromkeys(os.fspath(path) for path in paths))
    unnamed = without_text(paths) if format == "hf-dataset" else {}
    paths = [path for path in paths if path not in unnamed]
    extended = output if format == "jsonl" else None
    with made_folder(output.parent), exclusive(partial):
        if overwrite:
            _remove(output, format)
            partial.unlink(missing_ok=True)
        elif not extended and output.exists() and not partial.exists():
            raise FileExistsError(
                f"{output} exists: name another output, or overwrite it "
                "(--overwrite)."
            )
        done, bad = _collect(
            paths, tokenizer, partial, extended, batch_seconds, progress
        )
        if extended and partial.exists():
            partial.replace(output)
        elif done and not extended:
            lines = {line["path"]: line for line in read_tokens(partial)}
            write = tokens_to_npz if format == "npz" else tokens_to_dataset
            write((lines[path] for path in paths if path in done), output)
            partial.unlink()
    return FileResults(len(done), bad | unnamed)


def without_text(paths: Iterable[str]) -> dict[str, str]:
    """Return, by path, why Arrow and Parquet hold no name that is no text."""
    return {
        path: f"{path}: a name that is no text, as data sets hold it: rename "
        "it."
        for path in paths
        if path.encode(errors="replace").decode() != path
    }


def _remove(output, format):
    """Remove an output, but nothing else."""
    dataset = (output / "dataset_info.json").is_file()
    if output.is_dir() and not (format == "hf-dataset" and dataset):
        raise FileExistsError(
            f"{output} is a folder with other things in it, which would be "
            "lost: name another place."
        )
    if output.is_dir():
        shutil.rmtree(output)
    else:
        output.unlink(missing_ok=True)


def describe_model(tokenizer: VQTokenizer) -> dict:
    """Return what a line has on the model."""
    fingerprint, number = tokenizer.fingerprint, tokenizer.num_codebooks
    if number < tokenizer.mods.quantizer.num_codebooks:
        fingerprint += f", {number} codebooks"
    return {
        "token_rate": tokenizer.token_rate,
        "sample_rate": tokenizer.sample_rate,
        "model": tokenizer.source,
        "revision": tokenizer.revision,
        "fingerprint": fingerprint,
        "precision": tokenizer.compute_precision,
    }


@few_warnings()
def _collect(paths, tokenizer, partial, output, batch_seconds, progress):
    """Write the missing lines; return finished paths and errors by path."""
    model = describe_model(tokenizer)
    collected = _resume(partial, model)
    previous = set()
    if output is not None and output.exists():
        for line in read_tokens(output):
            check_model(line, output, model)
            previous.add(line["path"])
    done = collected | previous
    left = [path for path in paths if path not in done]
    # What the headers promise: decoding tells what is there.
    seconds, bad = check_files(left, decode=False)
    if not seconds and not collected:
        partial.unlink(missing_ok=True)
        return done.intersection(paths), bad
    with (
        open(partial, "a", encoding="utf-8") as file,
        # In seconds of audio: the number of files left says nothing of time.
        tqdm(
            total=round(sum(seconds.values())),
            unit=" s of audio",
            disable=None if progress else True,
        ) as bar,
    ):
        if previous - collected:
            for line in read_tokens(output):
                if line["path"] not in collected:
                    file.write(json.dumps(line) + "\n")
        encoded = 0.0
        for batch in make_batches(seconds, batch_seconds):
            sources = {path: path for path in batch}
            for path, result in encode(tokenizer, sources, batch_seconds):
                if isinstance(result, Exception):
                    bad[path] = str(result)
                    continue
                tokens, num_samples = result
                line = {"path": path, "tokens": tokens.tolist()}
                line |= {"num_samples": num_samples, **model}
                file.write(json.dumps(line) + "\n")
                done.add(path)
            file.flush()
            encoded += sum(seconds[path] for path in batch)
            bar.update(round(encoded) - bar.n)
    if not partial.stat().st_size:
        partial.unlink()
    return done.intersection(paths), bad


def _resume(partial, model):
    """Cut off an incomplete last line; return the paths of the others."""
    paths, size = set(), 0
    if not partial.exists():
        return paths
    with open(partial, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                break
            line = _parse(text, partial, number)
            check_model(line, partial, model)
            paths.add(line["path"])
            size += len(text)
    os.truncate(partial, size)
    return paths


def parse_line(text: bytes) -> dict:
    """Parse a line of a token file, of any model; a TokenFileError if it is
    none."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenFileError(
            f"this is no json ({error}). Where it was cut short, the same "
            "`tokenize` goes on."
        ) from error
    if not isinstance(line, dict):
        raise TokenFileError("a json object with tokens is expected.")
    if "tokens" not in line:
        raise TokenFileError('"tokens" is missing.')
    check_tokens(line["tokens"])
    return line


def check_tokens(rows: list) -> np.ndarray:
    """Return tokens, [T] or [T, C], of a token file; a TokenFileError if they
    are none."""
    try:
        tokens = np.array(rows if isinstance(rows, list) else None)
    except ValueError:
        tokens = np.array(None)
    if rows != [] and (tokens.dtype != np.int64 or tokens.ndim not in (1, 2)):
        raise TokenFileError(
            '"tokens" are to be a list of integers, or of lists of as many '
            "each; these are not."
        )
    if tokens.size and tokens.min() < 0:
        raise TokenFileError(
            f"the token {tokens.min()} is below 0. Leave out what is padding."
        )
    return tokens.astype(np.int64)


def _parse(text, path, number):
    try:
        line = parse_line(text)
        for key, kind in _KEYS.items():
            if not isinstance(line.get(key), kind):
                raise TokenFileError(f'"{key}" is {line.get(key)!r:.40}.')
    except TokenFileError as error:
        raise TokenFileError(
            f"{path}, line {number}: not what `tokenize` writes: {error} "
            f"{_WAY_OUT}"
        ) from error
    return line


def _read_npz(path):
    try:
        with np.load(path) as file:
            arrays = dict(file)
        paths, offsets = arrays.pop("paths"), arrays.pop("offsets")
        tokens, lengths = arrays.pop("tokens"), arrays.pop("num_samples")
        rows = np.split(tokens, offsets[1:-1])
        rows = list(zip(paths.tolist(), rows, lengths.tolist(), strict=True))
        common = {key: value.item() for key, value in arrays.items()}
        if common["revision"] == "None":
            common["revision"] = None
    # The zip file, its members and the headers in them have errors of a dozen
    # kinds.
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise TokenFileError(f"{path}: no npz of tokens ({error}).") from error
    for name, part, samples in rows:
        line = {"path": name, "tokens": part.tolist(), "num_samples": samples}
        yield {**line, **common}


def check_model(line: dict, path: str | os.PathLike, model: dict) -> None:
    """Raise a ValueError where tokens of a file are of another model than that
    of ``describe_model``, or of another precision."""
    if line["fingerprint"] != model["fingerprint"]:
        raise ValueError(
            f"{path} has tokens of another model: of '{line.get('model')}' "
            f"(revision {line.get('revision')}, weights "
            f"{line['fingerprint']}), not of '{model['model']}' "
            f"({model['revision']}, {model['fingerprint']}). {_WAY_OUT}"
        )
    if line.get("precision") != model["precision"]:
        raise ValueError(
            f"{path} has tokens computed in {line.get('precision')}, not in "
            f"{model['precision']}: go on in that precision. {_WAY_OUT}"
        )


def make_batches(
    seconds: dict[str, float], batch_seconds: float
) -> Iterator[list[str]]:
    """Yield lists of names, the longest audio first, of so many seconds with
    padding."""
    batch = []
    for name in sorted(seconds, key=seconds.get, reverse=True):
        if batch and seconds[batch[0]] * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


def encode(
    tokenizer: VQTokenizer,
    sources: dict[str, str | BinaryIO],
    batch_seconds: float,
) -> Iterator[tuple[str, tuple[torch.Tensor, int] | AudioError]]:
    """Encode a batch of audio, files by name; yield names with tokens and
    number of samples, or with an error."""
    if len(sources) == 1:
        for name, source in sources.items():
            yield name, _encode_long(tokenizer, source, batch_seconds)
        return
    wavs = {}
    for name, source in sources.items():
        try:
            wavs[name] = read_audio(source, tokenizer.sample_rate)
        except AudioError as error:
            yield name, error
    if not wavs:
        return
    lengths = torch.tensor([float(len(wav)) for wav in wavs.values()])
    padded = torch.nn.utils.rnn.pad_sequence(
        list(wavs.values()), batch_first=True
    )
    try:
        tokens, shares = tokenizer.encode_batch(
            padded, lengths / padded.shape[1]
        )
        counts = torch.round(shares.cpu() * tokens.shape[1]).int().tolist()
    except ValueError:
        counts = [0] * len(wavs)
    for index, (name, wav) in enumerate(wavs.items()):
        if counts[index]:
            yield name, (tokens[index, : counts[index]], len(wav))
        else:
            # Alone, so that the error is about this file and no other.
            yield name, _encode_long(tokenizer, sources[name], batch_seconds)


def _encode_long(tokenizer, source, batch_seconds):
    num_samples = 0

    def counted():
        nonlocal num_samples
        rate = tokenizer.sample_rate
        for block in audio_blocks(source, rate, batch_seconds):
            num_samples += len(block)
            yield block

    try:
        with naming(source):
            return tokenizer.tokenize(counted(), batch_seconds), num_samples
    except AudioError as error:
        return error
