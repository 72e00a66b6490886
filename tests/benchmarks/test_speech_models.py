"""Benchmark of the bundled codec: delays, pitch, and verdicts."""

import math

import numpy as np
import pytest
import torch

from tests.benchmarks.scripts import import_script


@pytest.fixture(scope="module")
def benchmark():
    return import_script("speech_models")


@pytest.mark.parametrize("delay", [-400, 0, 320, 1200])
def test_a_delay_is_found_and_undone(benchmark, delay):
    generator = torch.Generator().manual_seed(1)
    syllables = torch.rand(20, 1, generator=generator).expand(-1, 800)
    wav = torch.randn(16000, generator=generator) * syllables.flatten()
    # Through a codec: later, quieter, shorter, and with other phases.
    other = torch.randn(16000, generator=generator) * syllables.flatten()
    out = 0.3 * torch.roll(other, delay)[: len(wav) - 100]
    aligned, found = benchmark.align(wav, out)
    assert abs(found - delay) <= 80 and aligned.shape == wav.shape


def test_a_shift_of_pitch_is_its_cents(benchmark):
    pytest.importorskip("parselmouth")
    time = torch.arange(32000) / benchmark.RATE

    def buzz(f0):
        phase = 2 * math.pi * f0 * time
        wav = sum(torch.sin(k * phase) / k for k in range(1, 9))
        return torch.cat([0.1 * wav, torch.zeros(8000)])

    wav, out = buzz(120.0), buzz(120.0 * 2 ** (50 / 1200))
    cents, voicing = benchmark.pitch_errors(wav, out)
    assert abs(cents - 50) < 3 and voicing < 0.02


def test_verdicts_follow_the_direction_of_a_measure(benchmark):
    draw = np.random.default_rng(1)
    theirs = {str(i): {"x": v} for i, v in enumerate(draw.normal(size=12))}
    ours = {n: {"x": r["x"] + 0.5} for n, r in theirs.items()}
    assert benchmark.compare(ours, theirs, "x", more=True) == 1
    assert benchmark.compare(ours, theirs, "x", more=False) == -1
    assert benchmark.compare(theirs, theirs, "x", more=True) == 0
    five = dict(list(ours.items())[:5])
    assert benchmark.compare(five, theirs, "x", more=True) == 0
