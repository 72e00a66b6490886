"""Pieces of a signal give what the whole gives."""

from functools import partial

import pytest
import torch

from speechbrain_vq.dataio.chunks import Span, in_pieces, token_span
from speechbrain_vq.lobes.autoencoder import ConvEncoder
from speechbrain_vq.lobes.features import LogMel

RATE = 16000
LOBES = [
    (LogMel(), ConvEncoder(80, 8, 16)),
    (LogMel(), ConvEncoder(80, 8, 16, stride=4, num_blocks=3)),
    (LogMel(), ConvEncoder(80, 8, 16, stride=1, num_blocks=0)),
    (LogMel(), ConvEncoder(80, 8, 16, stride=3, num_blocks=1)),
    (LogMel(n_fft=512, win_length=400), ConvEncoder(80, 8, 16)),
    (LogMel(n_fft=641, win_length=640), ConvEncoder(80, 8, 16)),
    (LogMel(hop_length=320, win_length=320), ConvEncoder(80, 8, 16)),
]


def latents(features, encoder, wav):
    return encoder(*features(wav[None], torch.ones(1)))[0][0]


@pytest.mark.parametrize("features, encoder", LOBES)
@torch.no_grad()
def test_a_sample_is_heard_as_far_as_the_modules_say(features, encoder):
    span = token_span(features, encoder)
    wav = torch.randn(61 * span.width)
    before = latents(features, encoder, wav)
    heard = set()
    for place in range(0, span.width, 40):
        wav[30 * span.width + place] += 99.0
        after = latents(features, encoder, wav)
        wav[30 * span.width + place] -= 99.0
        # The sum of a matrix product may differ in its last bit anyhow.
        changed = (after - before).abs().amax(1) > 1e-4
        heard |= {int(token) - 30 for token in changed.nonzero()}
    assert min(heard) >= -span.after and max(heard) <= span.before
    # At the far ends of windows and kernels next to nothing is left.
    assert min(heard) <= 2 - span.after and max(heard) >= span.before - 2


@pytest.mark.parametrize("features, encoder", LOBES)
@pytest.mark.parametrize("samples", [61 * 320, 61 * 320 + 319, 20001])
@torch.no_grad()
def test_latents_of_pieces_are_those_of_the_whole(features, encoder, samples):
    wav = torch.randn(samples)
    whole = latents(features, encoder, wav)
    span = token_span(features, encoder)
    encode = partial(latents, features, encoder)
    for steps, block in ((3, 777), (10, samples), (1000, 999)):
        pieces = list(in_pieces(encode, wav.split(block), span, steps))
        torch.testing.assert_close(torch.cat(pieces), whole, rtol=0, atol=1e-5)


def test_a_span_without_surroundings():
    blocks = torch.arange(12.0).split(5)
    pieces = list(in_pieces(lambda x: x[::2] + 0, blocks, Span(2, 0, 0), 2))
    assert torch.equal(torch.cat(pieces), torch.arange(0.0, 12.0, 2.0))
