"""Token files: what a line has, and how they are read and written.

A token file has a line of JSON for each audio file: ``path``, ``tokens``,
``num_samples``, ``token_rate``, ``sample_rate``, the ``model``, its
``revision`` on the Hub, the ``fingerprint`` of its weights, with the number of
codebooks where not all are used, and the ``precision`` of its computation.
"""

import json
import logging
import os
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from speechbrain_vq.dataio.atomic import atomic_folder, atomic_write

from .tokenizer import VQTokenizer

logger = logging.getLogger(__name__)

_WAY_OUT = "Name another file to write, or overwrite this one."
# What the lines of `tokenize` have beside the tokens.
_KEYS = {"path": str, "num_samples": int, "fingerprint": str}


class TokenFileError(ValueError):
    """Report a token file that cannot be used."""


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
                yield read_line(text, path, number)
            except TokenFileError:
                # A killed run of version 0.1 leaves an incomplete last line.
                if number == 1 or text.endswith(b"\n"):
                    raise
                logger.warning("%s: line %d is cut short.", path, number)


def tokens_to_npz(rows: Iterable[dict], output: str | os.PathLike) -> None:
    """Write tokens, as ``read_tokens`` gives them, to an npz file of NumPy.

    The tokens of row i are ``tokens[offsets[i] : offsets[i + 1]]``. Without
    tokens there is a ValueError."""
    rows = list(rows)
    if not rows:
        raise ValueError(f"{output}: there are no tokens to write.")
    tokens = [np.asarray(row["tokens"], dtype=np.int32) for row in rows]
    own = ("path", "tokens", "num_samples")
    common = {key: rows[0][key] for key in rows[0] if key not in own}
    common = {k: str(v) if v is None else v for k, v in common.items()}
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
    """Write tokens, as ``read_tokens`` gives them, to a folder for
    ``datasets.load_from_disk``.

    Example
    -------
    >>> tokens_to_dataset(read_tokens("a.jsonl"), "a")  # doctest: +SKIP
    """
    from datasets import Dataset

    with atomic_folder(folder) as partial:
        Dataset.from_list(list(rows)).save_to_disk(partial)


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


def read_line(text: bytes, path: str | os.PathLike, number: int) -> dict:
    """Parse a line of a token file of ours; a TokenFileError names file and
    line if it is none."""
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
        if "revision" not in arrays:  # Every file has it.
            raise KeyError("revision")
        common = {key: value.item() for key, value in arrays.items()}
        common = {k: None if v == "None" else v for k, v in common.items()}
    # The zip file, its members and the headers in them have errors of a dozen
    # kinds.
    except Exception as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise TokenFileError(f"{path}: no npz of tokens ({error}).") from error
    for name, part, samples in rows:
        line = {"path": name, "tokens": part.tolist(), "num_samples": samples}
        yield {**line, **common}


def without_text(paths: Iterable[str]) -> dict[str, str]:
    """Return, by path, why Arrow and Parquet hold no name that is no text."""
    return {
        path: f"{path}: a name that is no text, as data sets hold it: rename "
        "it."
        for path in paths
        if path.encode(errors="replace").decode() != path
    }
