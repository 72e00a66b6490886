"""Tokenize many audio files and data sets."""

import json
import logging
import os
import pathlib
from collections.abc import Iterable

import torch
from datasets import (
    Audio,
    Dataset,
    Features,
    Sequence,
    Value,
    concatenate_datasets,
)
from tqdm import tqdm

from speechbrain_vq.dataio.atomic import exclusive
from speechbrain_vq.dataio.audio import (
    cell_source,
    check_files,
    find_audio,
    listed,
)
from speechbrain_vq.dataio.chunks import check_seconds
from speechbrain_vq.dataio.logs import few_warnings

from .batches import encode
from .engine import RayEngine
from .files import FileResults
from .shards import tables_in, tokenize_shards
from .token_files import (
    check_model,
    describe_model,
    read_line,
    read_tokens,
    tokens_to_dataset,
    tokens_to_npz,
    without_text,
)
from .tokenizer import VQTokenizer

logger = logging.getLogger(__name__)


def tokenize_files(
    paths: Iterable[str | os.PathLike],
    tokenizer: VQTokenizer,
    output: str | os.PathLike,
    batch_seconds: float = 60.0,
    progress: bool = False,
) -> FileResults:
    """Tokenize audio files into a jsonl token file; see ``tokenize_to``."""
    return tokenize_to(
        output, paths, tokenizer, "jsonl", False, batch_seconds, progress
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
    """Tokenize audio files into a token file, an npz file or a data set.

    The format ``"parquet"`` also takes data sets as input, see
    ``shards.tokenize_shards``.

    For other formats, lines are collected in ``NAME.partial.jsonl``, longest
    audio first, from which the output is created atomically at the end. An
    interrupted run resumes from that file. Files that are already in a jsonl
    output are not tokenized again.

    Arguments
    ---------
    output : path
        File or folder to write. An existing jsonl token file is extended.
    places : iterable of path
        Audio files and folders of them.
    tokenizer : VQTokenizer
        The model.
    format : str, optional
        ``"jsonl"``, ``"npz"``, ``"hf-dataset"`` or ``"parquet"``; by default
        inferred from the name of the output. The default for a folder is
        ``"parquet"`` with an engine, else ``"hf-dataset"``.
    overwrite : bool
        Whether to start from the beginning. An existing output is replaced once
        the new one is complete; Parquet shards are deleted first.
    batch_seconds : float
        Seconds of audio per batch, including padding. Longer files are
        processed alone, in chunks of that length.
    progress : bool
        Whether to show a progress bar.
    engine : RayEngine, optional
        Engine that computes Parquet shards; by default this process.

    Returns
    -------
    FileResults
        Number of files done, and the reasons for the others.

    Raises
    ------
    FileNotFoundError
        If there are no audio files.
    FileExistsError
        If an npz file or data set exists and ``overwrite`` is not set, or the
        output is a folder with other contents.
    BlockingIOError
        If another process is writing the output.
    ValueError
        If ``batch_seconds`` is not finite and above 0, or the output is not a
        token file, is among the audio files, or is of another model, precision
        or rate. Also if an engine or a data set is given, but the format is not
        ``"parquet"``.
    """
    check_seconds("batch_seconds", batch_seconds)
    output = pathlib.Path(output)
    if format == "parquet" or (engine and not output.suffix):
        options = overwrite, batch_seconds, progress, engine
        return tokenize_shards(output, places, tokenizer, *options)
    format, places = format or format_of(output), listed(places)
    if engine or (tables := tables_in(places)):
        cause = "--engine=ray" if engine else next(iter(tables))
        raise ValueError(
            f"{cause}: requires Parquet shards as output. Name a folder as "
            "output, and --format=parquet."
        )
    paths = [os.fspath(path) for path in find_audio(places)]
    not_utf8 = without_text(paths) if format == "hf-dataset" else {}
    paths = [path for path in paths if path not in not_utf8]
    is_lines = format == "jsonl"
    # The current folder, ".", has no name.
    output = output if output.name else output.absolute()
    _check_replaceable(output, format, paths)
    stem = output.name.removesuffix(".jsonl")
    partial = output.with_name(f"{stem}.partial.jsonl")
    output.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(partial):
        if overwrite:
            partial.unlink(missing_ok=True)
        elif not is_lines and output.exists() and not partial.exists():
            raise FileExistsError(
                f"{output} exists: choose another output, or overwrite it "
                "(--overwrite)."
            )
        extended = output if is_lines and not overwrite else None
        done, bad, existing = _collect(
            paths, tokenizer, partial, extended, batch_seconds, progress
        )
        if is_lines:
            if partial.exists():
                partial.replace(output)
        elif done:
            rows = {line["path"]: line for line in read_tokens(partial)}
            write = tokens_to_npz if format == "npz" else tokens_to_dataset
            write((rows[path] for path in paths if path in done), output)
            partial.unlink()
    return FileResults(len(done), bad | not_utf8, existing)


def format_of(output: str | os.PathLike) -> str:
    """Infer the format from the name of an output.

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
            f"{output}: expected a name that ends in .jsonl or .npz, or a "
            "folder for a data set. Otherwise set --format."
        )
    return "hf-dataset"


def tokenize_dataset(
    dataset: Dataset,
    tokenizer: VQTokenizer,
    audio_column: str = "audio",
    tokens_column: str = "tokens",
    **options,
) -> Dataset:
    """Add tokens to a data set of Hugging Face's ``datasets``.

    Audio is read with soundfile from the bytes or the path in the column, which
    does not change; torchcodec is not required.

    Arguments
    ---------
    dataset : datasets.Dataset
        Data set with a column of audio, or of paths; one split, not streamed.
    tokenizer : VQTokenizer
        The model.
    audio_column : str
        Name of the column of audio.
    tokens_column : str
        Name of the new column of tokens, [T] (or [T, C]). A row whose audio
        cannot be used gets None, with a warning.
    **options
        Options of ``Dataset.map``. With ``num_proc``, each process uses one
        thread.

    Returns
    -------
    datasets.Dataset
        The data set with the new column.

    Raises
    ------
    ValueError
        If the audio column is missing, the column of tokens exists, or the
        model is on a GPU and ``num_proc`` is above 1.
    """
    if audio_column not in dataset.column_names:
        raise ValueError(
            f"The data set has no column '{audio_column}'; it has "
            f"{', '.join(dataset.column_names)}."
        )
    if tokens_column in dataset.column_names:
        raise ValueError(
            f"The data set already has a column '{tokens_column}': remove it, "
            "or set tokens_column to another name."
        )
    on_cpu = torch.device(tokenizer.device).type == "cpu"
    if (options.get("num_proc") or 1) > 1 and not on_cpu:
        raise ValueError(
            f"num_proc={options['num_proc']}: processes cannot share a model "
            f"on {tokenizer.device}. Leave num_proc out, or load the model "
            'with run_opts={"device": "cpu"}.'
        )

    def tokenize(row, index):
        """Return the tokens of a row, or None if it cannot be encoded."""
        kind = "" if row is None else f" ({row['path'] or 'bytes'})"
        name = f"row {index}{kind}"
        try:
            tokens = tokenizer.encode_file(cell_source(row, name))
            return {tokens_column: tokens.tolist()}
        except ValueError as error:
            logger.warning("No tokens for %s: %s", name, error)
            return {tokens_column: None}

    feature = Sequence(Value("int64"))
    feature = feature if tokenizer.is_folded else Sequence(feature)
    tokens = dataset.cast_column(audio_column, Audio(decode=False)).map(
        tokenize,
        input_columns=[audio_column],
        with_indices=True,
        remove_columns=dataset.column_names,
        features=Features({tokens_column: feature}),
        **{"desc": "Tokens", **options},
    )
    return concatenate_datasets([dataset, tokens], axis=1)


def _check_replaceable(output, format, paths):
    """Raise an error if the output is a folder but not a data set, or if it is
    one of the audio files."""
    is_dataset = (output / "dataset_info.json").is_file()
    if output.is_dir() and not (format == "hf-dataset" and is_dataset):
        raise FileExistsError(
            f"{output} is a folder that `tokenize` did not write: choose "
            "another output."
        )
    sources = map(os.path.realpath, paths if output.exists() else ())
    if os.path.realpath(output) in sources:
        raise ValueError(
            f"{output} is one of the audio files, and would be overwritten: "
            "choose another output."
        )


@few_warnings()
def _collect(paths, tokenizer, partial, output, batch_seconds, progress):
    """Write the missing lines. Return the finished paths, errors by path, and
    the number of paths that earlier runs finished."""
    model = describe_model(tokenizer)
    collected = _resume(partial, model)
    previous = set()
    if output is not None and output.exists():
        for line in read_tokens(output):
            check_model(line, output, model)
            previous.add(line["path"])
    done = collected | previous
    missing = [path for path in paths if path not in done]
    known = filter(os.path.exists, previous.intersection(paths))
    if any(os.path.getmtime(p) > os.path.getmtime(output) for p in known):
        logger.warning(
            "Recordings have changed since %s was written. Their tokens are "
            "kept; --overwrite computes all of them again.",
            output,
        )
    # Durations from the headers suffice: each file is decoded below.
    seconds, bad = check_files(missing, decode=False)
    if not seconds and not collected:
        partial.unlink(missing_ok=True)
        return done.intersection(paths), bad, len(paths) - len(missing)
    with (
        open(partial, "a", encoding="utf-8") as file,
        # The remaining time depends on seconds of audio, not files.
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
        encoded, sources = 0.0, {path: path for path in seconds}
        for path, tokens, num_samples in encode(
            tokenizer, sources, seconds, batch_seconds, bad
        ):
            line = {"path": path, "tokens": tokens.tolist()}
            line |= {"num_samples": num_samples, **model}
            file.write(json.dumps(line) + "\n")
            file.flush()
            done.add(path)
            encoded += seconds[path]
            bar.update(round(encoded) - bar.n)
    if not partial.stat().st_size:
        partial.unlink()
    return done.intersection(paths), bad, len(paths) - len(missing)


def _resume(partial, model):
    """Remove an incomplete last line, and return the paths of the others."""
    paths, size = set(), 0
    if not partial.exists():
        return paths
    with open(partial, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.endswith(b"\n"):
                break
            size += len(text)
            if not text.isspace():
                line = read_line(text, partial, number)
                check_model(line, partial, model)
                paths.add(line["path"])
    os.truncate(partial, size)
    return paths
