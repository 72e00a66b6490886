"""Reconstruction, against closed forms and pystoi."""

import math

import pytest
import torch

from speechbrain_vq.evaluation.reconstruction import (
    cepstra,
    mel_cepstra,
    mel_cepstral_distortion,
    stoi,
)

RATE = 16000


def pulses(f0, seconds=0.6):
    """A buzz: twelve harmonics, falling."""
    time = torch.arange(round(RATE * seconds)) / RATE
    waves = [torch.sin(2 * math.pi * f0 * k * time) / k for k in range(1, 13)]
    return sum(waves) / 4


def speech(seed=0):
    """Noise with the envelope of syllables, filtered."""
    noise = torch.randn(2 * RATE, generator=torch.Generator().manual_seed(seed))
    noise = torch.nn.functional.conv1d(noise[None, None], torch.ones(1, 1, 5))
    time = torch.arange(noise.shape[-1]) / RATE
    return noise[0, 0] * torch.sin(2 * math.pi * 3 * time).square() / 10


def test_a_spectrum_raised_by_a_wave_has_the_distortion_of_that_wave():
    """log |S| + A cos(2 w): rms of 20 / ln 10 A cos is 10 sqrt(2) A / ln 10."""
    angles = math.pi * (torch.arange(80) + 0.5) / 80
    flat = torch.randn(6, 80)
    raised = flat + 0.7 * torch.cos(2 * angles)
    distortion = mel_cepstral_distortion(cepstra(flat), cepstra(raised))
    expected = 10 * math.sqrt(2) / math.log(10) * 0.7
    rms = (20 / math.log(10) * (raised - flat)).square().mean().sqrt()
    assert expected == pytest.approx(float(rms), rel=1e-4)
    # Warping may find nearer frames, never farther ones.
    assert 0 < distortion <= expected + 1e-4
    one = mel_cepstral_distortion(cepstra(flat[:1]), cepstra(raised[:1]))
    assert one == pytest.approx(expected, rel=1e-4)


def test_loudness_is_no_distortion_and_slowness_little():
    wav = speech()
    base = mel_cepstra(wav, RATE)
    assert base.shape == (198, 13)
    louder = mel_cepstra(3 * wav, RATE)
    assert mel_cepstral_distortion(base, base) == 0
    # But where the floor is.
    assert mel_cepstral_distortion(base, louder) < 0.1
    slow = base.repeat_interleave(2, 0)
    assert mel_cepstral_distortion(base, slow) == pytest.approx(0, abs=1e-6)
    assert mel_cepstral_distortion(base, mel_cepstra(pulses(120), RATE)) > 5


def test_stoi_is_pystois_and_nothing_of_little():
    pystoi = pytest.importorskip("pystoi")
    wav = speech()
    noisy = wav + 0.3 * torch.randn(len(wav))
    expected = pystoi.stoi(wav.double().numpy(), noisy.double().numpy(), RATE)
    assert stoi(wav, noisy, RATE) == pytest.approx(expected)
    assert stoi(wav, wav, RATE) == pytest.approx(1)
    assert stoi(wav, noisy, RATE) < 0.95
    for size in (1, 300, 2000):
        assert math.isnan(stoi(wav[:size], wav[:size], RATE))
    assert math.isnan(stoi(torch.zeros(RATE), wav[:RATE], RATE))
