"""Tokens in a file, of any model, read and checked."""

import json
import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from .utterances import Utterance

# Tables are as wide as the greatest token.
_MOST_CODES = 1 << 20


class TokenLine(NamedTuple):
    """A line of a file of tokens.

    Arguments
    ---------
    id, path : str, optional
        Name of the utterance, and its audio file; at least one is known.
    tokens : torch.Tensor
        [T, C].
    token_rate : float
        Rows of tokens a second.
    seconds : float
        How long the audio is.
    """

    id: str | None
    path: str | None
    tokens: torch.Tensor
    token_rate: float
    seconds: float


def read_tokens(
    path: str | os.PathLike, codebook_size: int | None = None
) -> Iterator[TokenLine]:
    """Reads a json object a line, as ``speechbrain-vq tokenize`` or anything
    else writes it:

    - ``id``, the utterance's name in the manifest, or ``path``, its file;
    - ``tokens``: integers from 0, [T], or [T, C] of C codebooks;
    - ``token_rate``: how many a second (of each codebook);
    - if known, how long the audio is: ``seconds``, or ``num_samples`` and
      ``sample_rate``; else as long as the tokens.

    Arguments
    ---------
    path : path
        The file.
    codebook_size : int, optional
        Different tokens; they must be less.

    Yields
    ------
    TokenLine
        What a line says.

    Raises
    ------
    ValueError
        If a line says something else; the message names it.
    """
    books = None
    with open(path, "rb") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                line = _line(text, codebook_size)
                if len(line.tokens):
                    books = books or line.tokens.shape[1]
                    _check_books(line.tokens.shape[1], books)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            yield line


class TokenFile:
    """Tokens of any model in a file, see ``read_tokens``, for the utterances
    of a manifest, which are known by ``id``, or by their path, or else by its
    last part.

    Arguments
    ---------
    path : path
        The jsonl file.
    codebook_size : int, optional
        Different tokens; they must be less.

    Raises
    ------
    ValueError
        If a line is none of tokens.

    Example
    -------
    >>> source = TokenFile("tokens.jsonl")  # doctest: +SKIP
    """

    def __init__(
        self, path: str | os.PathLike, codebook_size: int | None = None
    ):
        self.path, self.codebook_size = path, codebook_size
        self.errors: dict[str, str] = {}
        # All of it, before anything is measured.
        for _ in read_tokens(path, codebook_size):
            pass

    def utterances(self, manifest: dict[str, dict]) -> Iterator[Utterance]:
        """Those of the manifest, in the order of the file."""
        names = {}
        for name, entry in manifest.items():
            wav = pathlib.Path(entry["wav"])
            names.setdefault(wav.stem, []).append(name)
            names[str(wav.resolve())] = [name]
        left = dict.fromkeys(manifest)
        for line in read_tokens(self.path, self.codebook_size):
            found = [line.id]
            if line.id not in manifest:
                path = pathlib.Path(line.path or "")
                found = names.get(str(path.resolve())) or names.get(path.stem)
            if not found or len(found) != 1 or found[0] not in left:
                continue
            del left[found[0]]
            if not len(line.tokens):
                self.errors[found[0]] = f"its tokens in {self.path} are none"
                continue
            yield Utterance(
                found[0],
                manifest[found[0]],
                line.tokens,
                line.token_rate,
                line.seconds,
            )
        self.errors |= dict.fromkeys(left, f"no tokens in {self.path}")


def _line(text, codebook_size):
    try:
        line = json.loads(text)
    except ValueError as error:
        raise ValueError(
            f"this is no json ({error}). Where it was cut short, the same "
            "`tokenize` goes on."
        ) from error
    if not isinstance(line, dict):
        raise ValueError("a json object is wanted, with tokens.")
    names = [
        name if isinstance(name, str) else None
        for name in (line.get("id"), line.get("path"))
    ]
    if not any(names):
        raise ValueError(
            '"id" (the name in the manifest) or "path" (the audio file) is '
            "missing, a text."
        )
    if "tokens" not in line:
        raise ValueError('"tokens" is missing.')
    rate = _positive(line, "token_rate", "how many tokens there are a second")
    tokens = _tokens(line["tokens"], codebook_size)
    if "seconds" in line:
        seconds = _positive(line, "seconds", "how long the audio is")
    elif "num_samples" in line:
        seconds = _positive(line, "num_samples", "of the audio") / _positive(
            line, "sample_rate", "of the audio, in Hz"
        )
    else:
        seconds = len(tokens) / rate
    return TokenLine(*names, tokens, rate, seconds)


def _positive(line, key, meaning):
    value = line.get(key)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        said = f"is {value!r}" if key in line else "is missing"
        raise ValueError(f'"{key}" {said}: a number is wanted, {meaning}.')
    return value


def _tokens(rows, codebook_size):
    """[T, C]."""
    if not rows and isinstance(rows, list):
        return torch.zeros(0, 1, dtype=torch.long)
    try:
        tokens = torch.tensor(rows)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        raise ValueError(
            '"tokens" are to be a list of integers, or of lists of as many '
            f"each ({error})."
        ) from error
    if tokens.dtype != torch.long or tokens.dim() not in (1, 2):
        raise ValueError(
            '"tokens" are to be integers, [T] or [T, C]; these are not.'
        )
    least, most = int(tokens.min()), int(tokens.max())
    if least < 0:
        raise ValueError(
            f"the token {least} is below 0. Leave out what is padding."
        )
    if codebook_size and most >= codebook_size:
        raise ValueError(
            f"the token {most} is none of {codebook_size}, which are said to "
            f"be all: give a codebook size (--codebook-size) above {most}, or "
            "none."
        )
    if most >= _MOST_CODES:
        raise ValueError(f"the token {most} is not below {_MOST_CODES}.")
    return tokens.unsqueeze(1) if tokens.dim() == 1 else tokens


def _check_books(books, others):
    if books != others:
        raise ValueError(
            f"tokens of {books} codebooks, where those before have {others}: "
            "take files of one model."
        )
