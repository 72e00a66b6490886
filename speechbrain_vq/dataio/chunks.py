"""Process long signals in chunks, with the result of the whole.

A computation whose every step depends on a bounded receptive field can be done
in chunks that overlap by that field.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn


class Span(NamedTuple):
    """Receptive field of a step of a computation: input samples per step, and
    number of steps before and after it that a step depends on."""

    width: int
    before: int
    after: int


def token_span(features: nn.Module, encoder: nn.Module) -> Span | None:
    """Compute the receptive field of a token from ``context`` of both modules:
    samples before and after its own hop that a frame depends on, and frames
    before and after its own stride that a latent depends on. None where a
    module has no ``context``, as with global attention.

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
    process: Callable[[torch.Tensor], torch.Tensor],
    blocks: Iterable[torch.Tensor],
    span: Span,
    steps: int,
    outputs: int = 1,
) -> Iterator[torch.Tensor]:
    """Process a long signal in overlapping chunks of so many steps.

    ``process`` maps [samples] to [steps * outputs, ...], ``blocks`` are
    consecutive parts of the signal of any lengths, and ``span`` is the
    receptive field of a step. The outputs, concatenated, are those of the
    whole. All chunks but the first and the last have one shape, so that what
    depends on shapes (the order of sums) is the same for them.

    Example
    -------
    >>> blocks = torch.arange(10.0).split(3)
    >>> moving = lambda x: torch.cat((x[:1], x[1:] + x[:-1]))
    >>> torch.cat(list(in_pieces(moving, blocks, Span(1, 1, 0), 4)))
    tensor([ 0.,  1.,  3.,  5.,  7.,  9., 11., 13., 15., 17.])
    """
    # At least one step of context: the remainder may be too short alone.
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
