"""Tokens of many files as one file for NumPy or one data set.

Authors
 * speechbrain_vq authors 2026
"""

import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable

import numpy as np

from speechbrain_vq.dataio.atomic import replace_folder

from .bulk import Tokenized, read_lines, tokenize_files
from .files import find_audio
from .tokenizer import VQTokenizer

FORMATS = ("jsonl", "npz", "hf-dataset")


def format_of(output: str | os.PathLike) -> str:
    """What a name asks for: ``.jsonl``, ``.npz``, or a folder for a data set.

    Arguments
    ---------
    output : path
        The name.

    Returns
    -------
    str
        One of ``FORMATS``.

    Raises
    ------
    ValueError
        If it ends in something else.

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


def tokenize_to(
    output: str | os.PathLike,
    places: Iterable[str | os.PathLike],
    tokenizer: VQTokenizer,
    format: str | None = None,
    overwrite: bool = False,
    **options,
) -> Tokenized:
    """Tokens of files and folders to a file or a data set.

    Lines are collected in the output itself, or in ``*.partial.jsonl`` beside
    it, where a run that was killed goes on; the output is made of them at the
    end, in one step.

    Arguments
    ---------
    output : path
        The file or folder to make.
    places : iterable of path
        Audio files and folders of them.
    tokenizer : VQTokenizer
        The model.
    format : str, optional
        ``"jsonl"``, ``"npz"`` or ``"hf-dataset"``; by default what the name
        says.
    overwrite : bool
        Whether to begin anew.
    **options
        Of ``tokenize_files``.

    Returns
    -------
    Tokenized
        How many files are done, and which are bad.

    Raises
    ------
    FileNotFoundError
        If there are no audio files, or not one that is named.
    FileExistsError
        If the output is there and shall not be overwritten, or is something
        else.
    ValueError
        If the output is of another model or precision.
    """
    format = format or format_of(output)
    output = pathlib.Path(output)
    paths = [os.fspath(path) for path in find_audio(places)]
    lines = _lines_of(output, format)
    if overwrite:
        _remove(output, format)
    elif format != "jsonl" and output.exists() and not lines.exists():
        raise FileExistsError(
            f"{output} is there already: name another place, or overwrite it."
        )
    result = tokenize_files(paths, tokenizer, lines, **options)
    if result.done:
        _finish(output, format, paths)
    elif not lines.stat().st_size:
        lines.unlink()
    return result


def _lines_of(output, format):
    """Where the lines are collected: the output itself, or beside it."""
    if format == "jsonl":
        return output
    return output.with_name(f"{output.name}.partial.jsonl")


def _finish(output, format, paths):
    """Makes the output of the lines, in the order of the paths; they go."""
    if format == "jsonl":
        return
    lines = _lines_of(output, format)
    found = {line["path"]: line for line in read_lines(lines)}
    rows = [found[path] for path in paths if path in found]
    with tempfile.TemporaryDirectory(
        prefix=f".{output.name}-", dir=output.parent
    ) as folder:
        partial = pathlib.Path(folder, "tokens")
        if format == "npz":
            with open(partial, "wb") as file:
                np.savez_compressed(file, **_arrays(rows))
            partial.replace(output)
        else:
            from datasets import Dataset

            Dataset.from_list(rows).save_to_disk(partial)
            replace_folder(partial, output)
    lines.unlink()


def _remove(output, format):
    """Removes an output and its lines, but nothing else."""
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
    _lines_of(output, format).unlink(missing_ok=True)


def _arrays(rows):
    """The tokens of row i are ``tokens[offsets[i] : offsets[i + 1]]``."""
    tokens = [np.asarray(row["tokens"], dtype=np.int32) for row in rows]
    first = rows[0]
    return {
        "paths": np.array([row["path"] for row in rows]),
        "tokens": np.concatenate(tokens),
        "offsets": np.cumsum([0, *map(len, tokens)]),
        "num_samples": np.array([row["num_samples"] for row in rows]),
        **{
            key: np.array(str(first[key]) if first[key] is None else first[key])
            for key in (
                "token_rate",
                "sample_rate",
                "model",
                "revision",
                "fingerprint",
                "precision",
            )
        },
    }
