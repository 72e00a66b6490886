"""Long signals piece by piece, with the result of the whole.

What is computed of a signal in steps, each from its surroundings only, can be
computed in pieces that overlap by those surroundings.

Authors
 * speechbrain_vq authors 2026
"""

import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn


class Span(NamedTuple):
    """What a step of a computation sees.

    Arguments
    ---------
    width : int
        Samples that go in for a step.
    before, after : int
        How many steps around it a step depends on.
    """

    width: int
    before: int
    after: int


def token_span(features: nn.Module, encoder: nn.Module) -> Span | None:
    """What a token sees of the waveform, as ``context`` of both modules says.

    Arguments
    ---------
    features : torch.nn.Module
        With ``hop_length`` and ``context``: samples that a frame depends on
        before and after its own hop.
    encoder : torch.nn.Module
        With ``stride`` and ``context``: frames that a latent depends on
        before and after its own stride.

    Returns
    -------
    Span or None
        None where a module does not say, as with attention over everything.

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
    """Computes a long signal piece by piece.

    Pieces but the first and last have one shape, so that what depends on
    shapes (the order of sums) is the same for them.

    Arguments
    ---------
    process : callable
        [samples] to [steps * outputs, ...], step by step.
    blocks : iterable of torch.Tensor
        The signal in order, cut anywhere, [samples] each.
    span : Span
        What a step sees.
    steps : int
        Steps of a piece.
    outputs : int
        Outputs of a step.

    Yields
    ------
    torch.Tensor
        The next outputs; put together they are those of the whole.

    Example
    -------
    >>> blocks = torch.arange(10.0).split(3)
    >>> moving = lambda x: torch.cat((x[:1], x[1:] + x[:-1]))
    >>> torch.cat(list(in_pieces(moving, blocks, Span(1, 1, 0), 4)))
    tensor([ 0.,  1.,  3.,  5.,  7.,  9., 11., 13., 15., 17.])
    """
    # Never without a step before: a rest may be too short to stand alone.
    before = max(span.before, 1)
    held, lead = None, 0
    for block in blocks:
        held = block if held is None else torch.cat((held, block))
        while len(held) >= (lead + steps + span.after) * span.width:
            piece = held[: (lead + steps + span.after) * span.width]
            yield process(piece)[lead * outputs : (lead + steps) * outputs]
            kept = min(lead + steps, before)
            held = held[(lead + steps - kept) * span.width :]
            lead = kept
    if held is not None:
        yield process(held)[lead * outputs :]
