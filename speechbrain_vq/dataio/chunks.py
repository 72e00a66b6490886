"""Process a long signal in chunks, with the same result as in one piece.

This requires a bounded receptive field of each output step, by which the chunks
overlap.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Span(NamedTuple):
    """Receptive field of an output step: its own width in input samples, and
    the number of steps before and after it that it depends on."""

    width: int
    before: int
    after: int


def check_seconds(name: str, seconds: float | None) -> None:
    """Raise ValueError unless a duration is None, or finite and above 0."""
    if seconds is not None and not 0 < seconds < math.inf:
        raise ValueError(
            f"{name} is {seconds}: give a finite number of seconds above 0."
        )


def token_span(features: nn.Module, encoder: nn.Module) -> Span | None:
    """Compute the receptive field of a token.

    The ``context`` of ``features`` is the number of samples before and after
    its own hop that a frame depends on. The ``context`` of ``encoder`` is the
    number of frames before and after its own stride that a latent depends on.
    Returns None if a module has no ``context``, as with global attention.

    Example
    -------
    >>> from speechbrain_vq.lobes.autoencoder import ConvEncoder
    >>> from speechbrain_vq.lobes.features import LogMel
    >>> token_span(LogMel(), ConvEncoder(80, 64))
    Span(width=320, before=4, after=4)
    """
    samples = getattr(features, "context", None)
    frames = getattr(encoder, "context", None)
    if samples is None or frames is None:
        return None
    hop = features.hop_length
    width = hop * encoder.stride
    before, after = (
        math.ceil((frame * hop + sample) / width)
        for frame, sample in zip(frames, samples, strict=True)
    )
    return Span(width, before, after)


def in_pieces(
    process: Callable[[Tensor], Tensor],
    blocks: Iterable[Tensor],
    span: Span,
    steps: int,
    outputs: int = 1,
) -> Iterator[Tensor]:
    """Process a long signal in overlapping chunks of ``steps`` steps.

    ``process`` maps [samples] to [steps * outputs, ...], ``blocks`` are
    consecutive parts of the signal of any length, and ``span`` is the receptive
    field of a step. Yields the output for the whole signal in parts. All chunks
    but the first and last have the same shape, since the shape may change the
    order of sums and thus the last bits.

    Example
    -------
    >>> blocks = torch.arange(10.0).split(3)
    >>> moving = lambda x: torch.cat((x[:1], x[1:] + x[:-1]))
    >>> torch.cat(list(in_pieces(moving, blocks, Span(1, 1, 0), 4)))
    tensor([ 0.,  1.,  3.,  5.,  7.,  9., 11., 13., 15., 17.])
    """
    # At least one step of context: the remainder alone may be too short.
    before = max(span.before, 1)
    buffer, lead = None, 0
    for block in blocks:
        buffer = block if buffer is None else torch.cat((buffer, block))
        while len(buffer) >= (lead + steps + span.after) * span.width:
            chunk = buffer[: (lead + steps + span.after) * span.width]
            yield process(chunk)[lead * outputs : (lead + steps) * outputs]
            overlap = min(lead + steps, before)
            buffer = buffer[(lead + steps - overlap) * span.width :]
            lead = overlap
    if buffer is not None:
        yield process(buffer)[lead * outputs :]
