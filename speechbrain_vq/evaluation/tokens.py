"""Utterances from token files, which may come from any model."""

import collections
import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from speechbrain_vq.inference.token_files import check_tokens, parse_line

from .utterances import Utterance

# Upper limit of tokens: count tables are as wide as the largest token.
_MAX_CODES = 1 << 20


class TokenLine(NamedTuple):
    """Line of a token file: the utterance's name and audio file, one of which
    may be None, tokens [T, C], frames per second, seconds, and the codebook
    size if known."""

    id: str | None
    path: str | None
    tokens: torch.Tensor
    token_rate: float
    seconds: float
    codebook_size: int | None = None


def read_tokens(
    path: str | os.PathLike, codebook_size: int | None = None
) -> Iterator[TokenLine]:
    """Read a token file of any model, with one JSON object per line:

    - ``id``, the utterance's name in the manifest, or ``path``, its audio file;
    - ``tokens``: integers from 0, below ``codebook_size`` if that is given,
      [T], or [T, C] for C codebooks;
    - ``token_rate``: token frames per second;
    - optionally the duration: ``seconds``, or ``num_samples`` and
      ``sample_rate``; by default, that of the tokens;
    - optionally ``codebook_size``; the argument overrides it.

    Raises a ValueError that names the first invalid line, or the first with
    another number of codebooks.
    """
    books = None
    with open(path, "rb") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                line = _checked(parse_line(text), codebook_size)
                if len(line.tokens):
                    width = line.tokens.shape[1]
                    books = books or width
                    if width != books:
                        raise ValueError(
                            f"it has {width} codebooks, but earlier lines "
                            f"have {books}."
                        )
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            yield line


class TokenFile:
    """Token file with the utterances of a manifest.

    Lines match utterances by ``id`` or path. ``codebook_size`` is by default
    the one stored in the first line.
    """

    def __init__(
        self, path: str | os.PathLike, codebook_size: int | None = None
    ):
        self.path, self.codebook_size = path, codebook_size
        self.errors: dict[str, str] = {}
        first = next(read_tokens(path, codebook_size), None)
        if first is not None:
            self.codebook_size = first.codebook_size

    def utterances(self, manifest: dict[str, dict]) -> Iterator[Utterance]:
        """Yield utterances of a manifest in the order of the token file. For
        each utterance without tokens, a message is added to ``errors``."""
        by_path = collections.defaultdict(list)
        for name, entry in manifest.items():
            by_path[_resolved(entry["wav"])].append(name)
        contents: dict[str, int] = {}
        for line in read_tokens(self.path, self.codebook_size):
            names = [line.id] if line.id in manifest else []
            if not names and line.path is not None:
                names = by_path.get(_resolved(line.path), [])
            content = hash(line.tokens.numpy().tobytes())
            for name in names:
                if name not in contents:
                    contents[name] = content
                    error = _error(line, manifest[name], self.path)
                    if error:
                        self.errors[name] = error
                    else:
                        yield Utterance(name, manifest[name], *line[2:5])
                elif contents[name] != content:
                    raise ValueError(
                        f"{self.path} has two lines for {name}, with different "
                        "tokens: remove one of them."
                    )
        for name in manifest:
            if name not in contents:
                self.errors[name] = (
                    f"{self.path} has no tokens with its id or path"
                )


def _resolved(path):
    return str(pathlib.Path(path).resolve())


def _error(line, entry, path):
    """Describe why the tokens of a line cannot be used, or return None."""
    number, rate = len(line.tokens), line.token_rate
    length = entry.get("length")
    if not number:
        return f"its tokens in {path} are empty"
    if length and abs(number - length * rate) > _slack(length * rate):
        return (
            f"{number} tokens in {path} at {rate:g} per second last "
            f"{number / rate:.2f} s, but its length in the manifest is "
            f"{length:.2f} s"
        )


def _slack(number):
    """Return the tolerance for a number of tokens: windows at the edges and
    padding may make a few tokens of difference."""
    return 3 + 0.1 * number


def _checked(line, codebook_size):
    names = [line.get("id"), line.get("path")]
    names = [name if isinstance(name, str) else None for name in names]
    if not any(names):
        raise ValueError(
            'it needs "id" (the name in the manifest) or "path" (the audio '
            "file), a string."
        )
    rate = _positive(line, "token_rate", "token frames per second")
    size = codebook_size or _codebook_size(line)
    tokens = _tokens(line["tokens"], size)
    if "seconds" in line:
        seconds = _positive(line, "seconds", "the duration of the audio")
    elif "num_samples" in line:
        samples = _positive(line, "num_samples", "the samples of the audio")
        seconds = samples / _positive(line, "sample_rate", "in Hz")
    else:
        seconds = len(tokens) / rate
    if abs(len(tokens) - seconds * rate) > _slack(seconds * rate):
        raise ValueError(
            f"{len(tokens)} tokens in {seconds:.2f} s do not fit "
            f'"token_rate", {rate:g} per second.'
        )
    return TokenLine(*names, tokens, rate, seconds, size)


def _positive(line, key, meaning):
    value = line.get(key)
    if type(value) not in (int, float) or not 0 < value < math.inf:
        problem = f"is {value!r}" if key in line else "is missing"
        raise ValueError(
            f'"{key}" {problem}: expected a number above 0, {meaning}.'
        )
    return value


def _codebook_size(line):
    size = line.get("codebook_size")
    if size is None or type(size) is int and 0 < size <= _MAX_CODES:
        return size
    raise ValueError(
        f'"codebook_size" is {size!r}: expected an integer from 1 to '
        f"{_MAX_CODES}. Correct it, or set --codebook-size."
    )


def _tokens(rows, codebook_size):
    """Check tokens and return them as [T, C]."""
    tokens = torch.from_numpy(check_tokens(rows))
    if not len(tokens):
        return torch.zeros(0, 1, dtype=torch.long)
    largest = int(tokens.max())
    if codebook_size and largest >= codebook_size:
        raise ValueError(
            f"the token {largest} is not below the codebook size of "
            f"{codebook_size}: set --codebook-size above {largest}."
        )
    if largest >= _MAX_CODES:
        raise ValueError(f"the token {largest} is not below {_MAX_CODES}.")
    return tokens.unsqueeze(1) if tokens.dim() == 1 else tokens
