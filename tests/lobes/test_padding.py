"""Padding changes no output, loss, gradient or statistic of an encoder; those of
speech and their decoders are in ``test_autoencoder.py``."""

import copy

import pytest
import torch

from speechbrain_vq import VectorQuantizer
from speechbrain_vq.lobes.handwriting import LineEncoder
from speechbrain_vq.lobes.recogniser import LatentMixer, PhoneEncoder
from speechbrain_vq.lobes.ssl import FrameEncoder

SIZES = (31, 47, 60, 1, 2, 38)


class Recogniser(torch.nn.Module):
    """A phone recognizer on features, without dropout."""

    def __init__(self):
        super().__init__()
        self.encoder = PhoneEncoder(32, 4, 16, num_layers=2)
        self.quantizer = VectorQuantizer(16, 32, 8, reservoir_size=64)
        self.recogniser = LatentMixer(16, 7, channels=12)

    def forward(self, x, lengths):
        x, lengths = self.encoder(x, lengths)
        vq = self.quantizer(x, lengths)
        self.loss = vq.loss
        return self.recogniser(vq.quantized, lengths), lengths


ENCODERS = {
    "lines": lambda: LineEncoder(8, [3, 4, 4, 4, 5, 5, 6], hidden_size=5),
    "phones": Recogniser,
    "frames": lambda: FrameEncoder(32, 8, stride=3, window=2),
}
STRIDES = {"lines": 2, "phones": 3, "frames": 3}


def padded(items, time):
    x = torch.nn.utils.rnn.pad_sequence(items, batch_first=True)
    x = torch.nn.functional.pad(x, (0, 0, 0, time - x.shape[1]))
    return x, torch.tensor([len(item) / time for item in items])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ENCODERS)
def test_padding_never_counts(kind, training):
    encoder, stride = ENCODERS[kind](), STRIDES[kind]
    items = [torch.rand(size, 32) for size in SIZES]
    results = []
    for time in (60, 61, 100):
        model = copy.deepcopy(encoder).train(training)
        latents, lengths = model(*padded(items, time))
        frames = torch.round(lengths * latents.shape[1]).long().tolist()
        assert frames == [-(-size // stride) for size in SIZES]
        rows = [row[:n] for row, n in zip(latents, frames, strict=True)]
        loss = sum(row.square().sum() for row in rows)
        (loss + getattr(model, "loss", 0.0)).backward()
        gradients = [p.grad for p in model.parameters()]
        norms = [b for name, b in model.named_buffers() if "running" in name]
        results.append([loss, *rows, *gradients, *norms])
        if kind != "phones":
            rest = zip(latents, frames, strict=True)
            assert not any(row[n:].any() for row, n in rest)
    for one, *others in zip(*results, strict=True):
        for other in others:
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    if not training:
        for row, item in zip(rows, items, strict=True):
            alone, _ = model(item.unsqueeze(0), torch.ones(1))
            torch.testing.assert_close(alone[0], row, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lines", "phones"])
def test_recurrent_encoders_have_context_on_both_sides(kind):
    model = ENCODERS[kind]()
    encoder = getattr(model, "encoder", model).eval()
    x = torch.rand(1, 90, 32, requires_grad=True)
    latents, _ = encoder(x, torch.ones(1))
    (gradient,) = torch.autograd.grad(latents[0, 45 // STRIDES[kind]].sum(), x)
    receptive = gradient[0].abs().sum(1) > 0
    assert receptive[:20].any() and receptive[70:].any()
