"""Utterances from token files, which may come from any model."""

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

    Raises a ValueError that names the first invalid line.
    """
    num_codebooks, size = None, codebook_size
    with open(path, "rb") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                line = _parse(text, codebook_size)
                length, width = line.tokens.shape
                num_codebooks = num_codebooks or length and width
                if length and width != num_codebooks:
                    raise ValueError(
                        f"tokens of {width} codebooks, but earlier lines have "
                        f"{num_codebooks}: do not mix tokens of two models."
                    )
                size = size or line.codebook_size
                if line.codebook_size not in (None, size):
                    raise ValueError(
                        f'"codebook_size" is {line.codebook_size}, but earlier '
                        f"lines have {size}: do not mix tokens of two models."
                    )
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            yield line


class TokenFile:
    """Token file with the utterances of a manifest.

    Lines match utterances by ``id``, by path, or by the stem of the path. The
    constructor checks all lines, see ``read_tokens``. ``codebook_size`` is by
    default the one stored in the lines.
    """

    def __init__(
        self, path: str | os.PathLike, codebook_size: int | None = None
    ):
        self.path, self.codebook_size = path, codebook_size
        self.errors: dict[str, str] = {}
        for line in read_tokens(path, codebook_size):
            self.codebook_size = self.codebook_size or line.codebook_size

    def utterances(self, manifest: dict[str, dict]) -> Iterator[Utterance]:
        """Yield utterances of a manifest in the order of the token file. For
        each utterance without tokens, a message is added to ``errors``."""
        by_path, by_stem = {}, {}
        for name, entry in manifest.items():
            wav = pathlib.Path(entry["wav"])
            by_path[str(wav.resolve())] = name
            # A stem shared by several files identifies none of them.
            by_stem[wav.stem] = None if wav.stem in by_stem else name
        contents: dict[str, int] = {}
        for line in read_tokens(self.path, self.codebook_size):
            name = line.id
            if name not in manifest:
                path = pathlib.Path(line.path or "")
                name = by_path.get(str(path.resolve())) or by_stem.get(
                    path.stem
                )
            if name not in manifest:
                continue
            content = hash(line.tokens.numpy().tobytes())
            if name in contents:
                if contents[name] != content:
                    raise ValueError(
                        f"{self.path} has two lines for {name}, with different "
                        "tokens: remove one of them."
                    )
                continue
            contents[name] = content
            if not len(line.tokens):
                self.errors[name] = f"its tokens in {self.path} are empty"
                continue
            yield Utterance(
                name, manifest[name], line.tokens, line.token_rate, line.seconds
            )
        missing = [name for name in manifest if name not in contents]
        self.errors |= dict.fromkeys(missing, f"no tokens in {self.path}")


def _parse(text, codebook_size):
    line = parse_line(text)
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
    # Windows at the edges and padding may make a few tokens of difference.
    if abs(len(tokens) - seconds * rate) > 3 + 0.1 * seconds * rate:
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
