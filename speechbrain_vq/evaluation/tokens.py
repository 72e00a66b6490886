"""Token files of any model, as a source of utterances."""

import math
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import torch

from speechbrain_vq.inference.token_files import check_tokens, parse_line

from .utterances import Utterance

# Limit of tokens: tables are as wide as the greatest one.
_MOST_CODES = 1 << 20


class TokenLine(NamedTuple):
    """A line of a token file: name and audio file of the utterance, of which
    one may be None, tokens [T, C], their rate per second, and the duration."""

    id: str | None
    path: str | None
    tokens: torch.Tensor
    token_rate: float
    seconds: float


def read_tokens(
    path: str | os.PathLike, codebook_size: int | None = None
) -> Iterator[TokenLine]:
    """Read tokens of any model, a json object a line:

    - ``id``, the name of the utterance in the manifest, or ``path``, its file;
    - ``tokens``: integers from 0, less than ``codebook_size`` if that is given,
      [T], or [T, C] of C codebooks;
    - ``token_rate``: frames of tokens per second;
    - optionally the duration: ``seconds``, or ``num_samples`` and
      ``sample_rate``; else that of the tokens.

    A ValueError names an invalid line.
    """
    codebooks = None
    with open(path, "rb") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                line = _parse(text, codebook_size)
                number_of_books = line.tokens.shape[1]
                codebooks = codebooks or len(line.tokens) and number_of_books
                if len(line.tokens) and number_of_books != codebooks:
                    raise ValueError(
                        f"tokens of {number_of_books} codebooks, where those "
                        f"before have {codebooks}: take files of one model."
                    )
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
            yield line


class TokenFile:
    """Read the utterances of a manifest from a token file, see ``read_tokens``.

    They are matched by ``id``, by path, or by the stem of the path. All lines
    are checked at once: a ValueError names an invalid one.
    """

    def __init__(
        self, path: str | os.PathLike, codebook_size: int | None = None
    ):
        self.path, self.codebook_size = path, codebook_size
        self.errors: dict[str, str] = {}
        # Check all lines before anything is computed.
        for _ in read_tokens(path, codebook_size):
            pass

    def utterances(self, manifest: dict[str, dict]) -> Iterator[Utterance]:
        """Yield the utterances of a manifest in the order of the file; those
        without tokens are left out, with a message in ``errors``."""
        by_path, by_stem = {}, {}
        for name, entry in manifest.items():
            wav = pathlib.Path(entry["wav"])
            by_path[str(wav.resolve())] = [name]
            by_stem.setdefault(wav.stem, []).append(name)
        left = dict.fromkeys(manifest)
        for line in read_tokens(self.path, self.codebook_size):
            names = [line.id]
            if line.id not in manifest:
                path = pathlib.Path(line.path or "")
                names = by_path.get(str(path.resolve())) or by_stem.get(
                    path.stem, []
                )
            # Each utterance once; a stem of several files names none.
            if len(names) != 1 or names[0] not in left:
                continue
            name = names[0]
            del left[name]
            if not len(line.tokens):
                self.errors[name] = f"its tokens in {self.path} are none"
                continue
            yield Utterance(
                name,
                manifest[name],
                line.tokens,
                line.token_rate,
                line.seconds,
            )
        self.errors |= dict.fromkeys(left, f"no tokens in {self.path}")


def _parse(text, codebook_size):
    line = parse_line(text)
    names = [line.get("id"), line.get("path")]
    names = [name if isinstance(name, str) else None for name in names]
    if not any(names):
        raise ValueError(
            '"id" (the name in the manifest) or "path" (the audio file) is '
            "missing, a text."
        )
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
        problem = f"is {value!r}" if key in line else "is missing"
        raise ValueError(f'"{key}" {problem}: a number is expected, {meaning}.')
    return value


def _tokens(rows, codebook_size):
    """Return checked tokens, [T, C]."""
    tokens = torch.from_numpy(check_tokens(rows))
    if not len(tokens):
        return torch.zeros(0, 1, dtype=torch.long)
    most = int(tokens.max())
    if codebook_size and most >= codebook_size:
        raise ValueError(
            f"the token {most} is not below the codebook size of "
            f"{codebook_size}: give one (--codebook-size) above {most}, or "
            "none."
        )
    if most >= _MOST_CODES:
        raise ValueError(f"the token {most} is not below {_MOST_CODES}.")
    return tokens.unsqueeze(1) if tokens.dim() == 1 else tokens
