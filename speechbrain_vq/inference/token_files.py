"""Read and write token files.

A token file has one line of JSON per audio file, with the keys ``path``,
``tokens``, ``num_samples``, ``token_rate``, ``sample_rate``, ``model``,
``revision`` (commit on the Hub), ``fingerprint`` (of the weights, followed by
the number of codebooks if not all are used), ``precision`` and
``codebook_size``, which older files and Parquet shards lack.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np
from datasets import Dataset

from speechbrain_vq.dataio.atomic import atomic_folder, atomic_write

from .tokenizer import VQTokenizer

_REMEDY = "Choose another output file, or overwrite this one."
# Keys besides "tokens" that the package requires in its own token files.
_KEYS = {"path": str, "num_samples": int, "fingerprint": str}


class TokenFileError(ValueError):
    """Error for an invalid token file."""


def read_tokens(path: str | os.PathLike) -> Iterator[dict]:
    """Read a token file, jsonl or npz.

    Arguments
    ---------
    path : path
        The token file.

    Yields
    ------
    dict
        Line of an audio file, with its tokens and the other keys.

    Raises
    ------
    TokenFileError
        If the file is not a token file; the message names the line.
    """
    if pathlib.Path(path).suffix == ".npz":
        yield from _read_npz(path)
        return
    with open(path, "rb") as file:
        for number, text in enumerate(file, 1):
            if not text.isspace():
                yield read_line(text, path, number)


def tokens_to_npz(rows: Iterable[dict], output: str | os.PathLike) -> None:
    """Write rows of ``read_tokens`` to NumPy's npz format.

    The tokens of row i are ``tokens[offsets[i] : offsets[i + 1]]``. Raises
    ValueError if there are no rows."""
    rows = list(rows)
    if not rows:
        raise ValueError(f"{output}: there are no tokens to write.")
    tokens = [np.asarray(row["tokens"], dtype=np.int32) for row in rows]
    common = {k: "None" if v is None else v for k, v in rows[0].items()}
    for key in ("path", "tokens", "num_samples"):
        del common[key]
    with atomic_write(output) as partial, open(partial, "wb") as file:
        np.savez_compressed(
            file,
            paths=[row["path"] for row in rows],
            tokens=np.concatenate(tokens),
            offsets=np.cumsum([0, *map(len, tokens)]),
            num_samples=[row["num_samples"] for row in rows],
            **common,
        )


def tokens_to_dataset(rows: Iterable[dict], folder: str | os.PathLike) -> None:
    """Write rows of ``read_tokens`` for ``datasets.load_from_disk``."""
    with atomic_folder(folder) as partial:
        Dataset.from_list(list(rows)).save_to_disk(partial)


def describe_model(tokenizer: VQTokenizer) -> dict:
    """Return the keys of a line that describe the model."""
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
        "codebook_size": tokenizer.codebook_size,
    }


def check_model(line: dict, path: str | os.PathLike, model: dict) -> None:
    """Raise ValueError if the fingerprint, precision or a rate of a line
    differs from ``model``, a result of ``describe_model``."""
    for key in ("fingerprint", "precision", "token_rate", "sample_rate"):
        if line.get(key, model[key]) != model[key]:
            raise ValueError(
                f"{path} has tokens with {key}={line[key]} (model "
                f"'{line.get('model')}'), not {key}={model[key]} (model "
                f"'{model['model']}'). {_REMEDY}"
            )


def parse_line(text: bytes) -> dict:
    """Parse a line of a token file of any tokenizer. Raises TokenFileError if
    it is invalid."""
    try:
        line = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TokenFileError(
            f"this is not json ({error}). If it was cut short, the same "
            "`tokenize` command completes it."
        ) from error
    if not isinstance(line, dict):
        raise TokenFileError("expected a json object with tokens.")
    if "tokens" not in line:
        raise TokenFileError('"tokens" is missing.')
    check_tokens(line["tokens"])
    return line


def check_tokens(rows: list) -> np.ndarray:
    """Return tokens of a token file as an array, [T] or [T, C]. Raises
    TokenFileError if they are invalid."""
    tokens = np.array(None)
    with contextlib.suppress(ValueError):
        tokens = np.array(rows if isinstance(rows, list) else None)
    if rows != [] and (tokens.dtype != np.int64 or tokens.ndim not in (1, 2)):
        raise TokenFileError(
            '"tokens" must be a list of integers, or of lists of integers of '
            "equal length."
        )
    if tokens.size and tokens.min() < 0:
        raise TokenFileError(
            f"the token {tokens.min()} is below 0. Remove the padding."
        )
    return tokens.astype(np.int64)


def read_line(text: bytes, path: str | os.PathLike, number: int) -> dict:
    """Parse a line written by `tokenize`. Raises TokenFileError, with the file
    and line number, if it is invalid."""
    try:
        line = parse_line(text)
        for key, kind in _KEYS.items():
            if not isinstance(line.get(key), kind):
                raise TokenFileError(f'"{key}" is {line.get(key)!r:.40}.')
    except TokenFileError as error:
        raise TokenFileError(
            f"{path}, line {number}: not written by `tokenize`: {error} "
            f"{_REMEDY}"
        ) from error
    return line


def _read_npz(path):
    try:
        with np.load(path) as file:
            arrays = dict(file)
        paths, offsets = arrays.pop("paths"), arrays.pop("offsets")
        tokens, lengths = arrays.pop("tokens"), arrays.pop("num_samples")
        if np.any(np.diff([0, *offsets, len(tokens)]) < 0):
            raise ValueError("offsets are not in order")
        if tokens.dtype.kind not in "iu" or np.any(tokens < 0):
            raise ValueError("tokens must be integers from 0")
        rows = np.split(tokens, offsets[1:-1])
        rows = list(zip(paths.tolist(), rows, lengths.tolist(), strict=True))
        common = {key: value.item() for key, value in arrays.items()}
        common = {k: None if v == "None" else v for k, v in common.items()}
    except FileNotFoundError:
        raise
    # A damaged zip file raises a dozen kinds of errors.
    except Exception as error:
        raise TokenFileError(
            f"{path}: not an npz file of tokens ({error})."
        ) from error
    for name, part, samples in rows:
        line = {"path": name, "tokens": part.tolist(), "num_samples": samples}
        yield {**line, **common}


def without_text(paths: Iterable[str]) -> dict[str, str]:
    """Return the reasons to leave out, by path, names that are not UTF-8. Arrow
    and Parquet cannot store them."""
    return {
        path: f"{path}: its name is not UTF-8, as data sets require: rename it."
        for path in paths
        if path.encode(errors="replace").decode() != path
    }
