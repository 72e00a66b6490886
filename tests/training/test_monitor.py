"""The metrics of a stage are those of all its frames at once."""

import math

import numpy as np
import pytest
import torch

from speechbrain_vq import ResidualVectorQuantizer, VectorQuantizer
from speechbrain_vq.training.monitor import UsageMonitor
from tests.training.toy import DIM

QUANTIZERS = {
    "one": lambda: VectorQuantizer(DIM, 32, norm=None),
    "two": lambda: VectorQuantizer(DIM, 16, num_codebooks=2, norm=None),
    "residual": lambda: ResidualVectorQuantizer(2, DIM, 16, norm=None),
}


def expected(x, out, size, rate):
    """The same metrics from all frames, in numpy."""
    indices = out.indices.reshape(len(x), -1).numpy()
    x, quantized = x.double().numpy(), out.quantized.detach().double().numpy()
    counts = np.stack([np.bincount(i, minlength=size) for i in indices.T])
    share = counts / len(x)
    logs = np.log(share, where=share > 0, out=np.zeros_like(share))
    entropy = -(share * logs).sum(1)
    error = np.square(x - quantized).sum(1).mean()
    return {
        "vectors": len(x),
        "used_codes_percent": 100 * (counts > 0).mean(),
        "perplexity": np.exp(entropy).mean(),
        "dead_codes": int((counts == 0).sum()),
        "quantization_error": error / x.var(0).sum(),
        "codebook_drift": 0.0,
        "nonfinite_batches": 0,
        "bits_per_second": rate * entropy.sum() / math.log(2),
        "vq_loss": float(out.loss.detach()),
    }


@pytest.mark.parametrize("name", QUANTIZERS)
@pytest.mark.parametrize("size", [1, 7, 100])
def test_stage_equals_all_frames_at_once(name, size):
    quantizer = QUANTIZERS[name]().eval()
    monitor = UsageMonitor(quantizer, token_rate=50)
    nothing = monitor.stats(training=False)
    x = 3 + torch.randn(100, DIM)
    for part in x.split(size):  # Padded, each another way
        padded = torch.cat([part, 1e3 * torch.randn(len(part) % 5, DIM)])
        quantizer(padded.unsqueeze(0), torch.tensor([len(part) / len(padded)]))
    stats = monitor.stats(training=False)
    wanted = expected(x, quantizer(x), quantizer.codebook_size, 50)
    assert stats == pytest.approx(wanted, rel=1e-5)
    assert all(type(value) in (int, float) for value in stats.values())
    # The same keys where nothing was seen.
    assert nothing.keys() == stats.keys()
    assert nothing.pop("vectors") == nothing.pop("nonfinite_batches") == 0
    assert all(math.isnan(value) for value in nothing.values())


def test_drift_is_the_way_over_the_spread():
    quantizer = QUANTIZERS["two"]()
    monitor = UsageMonitor(quantizer)
    quantizer(torch.randn(10, DIM))
    assert monitor.stats()["codebook_drift"] == 0
    codebook = quantizer.codebook.detach()
    codebook += 0.3
    spread = (codebook - codebook.mean(1, keepdim=True)).square().mean().sqrt()
    drift = monitor.stats()["codebook_drift"]
    assert drift == pytest.approx(0.3 / float(spread), rel=1e-5)
    monitor.start()
    quantizer(torch.randn(10, DIM))
    assert monitor.stats()["codebook_drift"] == 0


def test_codebooks_that_are_left_out_are_not_dead():
    quantizer = ResidualVectorQuantizer(4, DIM, 8).eval()
    monitor = UsageMonitor(quantizer)
    output = quantizer(torch.randn(200, DIM), num_quantizers=1)
    counts = output.indices[:, 0].bincount(minlength=8).double()
    share = counts[counts > 0] / 200
    perplexity = float((-(share * share.log()).sum()).exp())
    stats = monitor.stats(training=False)
    assert stats["perplexity"] == pytest.approx(perplexity)
    assert float(output.metrics["perplexity"]) == pytest.approx(perplexity)
    assert stats["dead_codes"] == int((counts == 0).sum())


def test_what_is_not_quantized_does_not_count():
    quantizer = QUANTIZERS["one"]()
    monitor = UsageMonitor(quantizer)
    x = torch.ones(10, DIM)  # Without a variance
    quantizer(x)
    before = monitor.stats()
    assert before["perplexity"] == pytest.approx(1)
    assert all(math.isfinite(value) for value in before.values())
    quantizer.bypass = True  # A warm-up
    quantizer(x)
    assert monitor.stats() == before
    quantizer.bypass, x[3] = False, torch.nan
    quantizer(x)
    assert monitor.stats() == {**before, "nonfinite_batches": 1}
    monitor.close()
    quantizer(torch.randn(10, DIM))
    assert monitor.stats() == {**before, "nonfinite_batches": 1}
