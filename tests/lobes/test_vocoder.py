"""A source-filter vocoder: its parts against independent computations, and what
it keeps of level, pitch and time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.signal import lfilter

from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.lobes.vocoder import (
    CLASSES,
    Controls,
    SourceFilterVocoder,
    f0,
    minimum_phase,
    pitch_targets,
    pulse_train,
)

RATE, HOP = 16000, 160


@pytest.fixture(scope="module")
def vocoder():
    torch.manual_seed(0)
    return SourceFilterVocoder(channels=16, num_layers=2).eval()


@given(st.floats(60.0, 480.0))
@settings(max_examples=20, deadline=None)
def test_a_pulse_is_the_sum_of_its_harmonics(pitch):
    pulses = pulse_train(torch.full((1, 20), pitch), HOP, RATE)[0].double()
    times = torch.arange(1, len(pulses) + 1).double() / RATE
    number = int(RATE / 2 / np.float32(pitch))
    harmonics = torch.arange(1, number + 1).double() * pitch
    waves = torch.cos(2 * torch.pi * harmonics[:, None] * times).sum(0)
    expected = waves * (2 / number) ** 0.5
    # F0 is in single precision.
    torch.testing.assert_close(pulses, expected, atol=0.05, rtol=0)


def test_pulses_follow_a_glide():
    track = torch.linspace(100, 200, 100).unsqueeze(0)
    pulses = pulse_train(track, HOP, RATE)[0]
    peaks = np.flatnonzero(pulses.numpy() > 0.35 * float(pulses.max()))
    starts = peaks[np.flatnonzero(np.diff(peaks, prepend=-100) > 20)]
    periods = np.diff(starts) / RATE
    middles = (starts[1:] + starts[:-1]) / 2
    expected = np.interp(middles, np.arange(80, 16000, HOP), track[0].numpy())
    # To a sample.
    assert np.abs(periods - 1 / expected).max() < 1.01 / RATE


def test_a_minimum_phase_filter_is_that_of_its_poles():
    # Two pairs of poles within the unit circle: minimum phase as it stands.
    poles = [0.9 * np.exp(0.3j), 0.8 * np.exp(1.5j)]
    denominator = np.poly([*poles, *np.conj(poles)]).real
    impulse = np.zeros(1024)
    impulse[0] = 1.0
    response = torch.from_numpy(lfilter([1.0], denominator, impulse))
    spectrum = torch.fft.rfft(response)
    torch.testing.assert_close(
        minimum_phase(spectrum.abs().log()), spectrum, atol=1e-4, rtol=1e-4
    )


def test_a_constant_filter_is_a_convolution(vocoder):
    torch.manual_seed(1)
    source = torch.randn(1, 50 * HOP)
    bands = torch.sin(torch.arange(80) / 8)
    ours = vocoder._filter(source, bands.expand(1, 50, 80))[0]
    response = torch.fft.irfft(minimum_phase(bands @ vocoder.to_bins))
    expected = np.convolve(source[0].numpy(), response.numpy())[: len(ours)]
    inner = slice(1200, -1200)  # Beyond the reach of the fades at the ends.
    # The filters are as long as the transform, and so fold.
    error = (ours - torch.from_numpy(expected))[inner]
    assert error.square().mean() < 1e-4 * ours[inner].square().mean()


def test_matching_gives_the_bands_their_magnitudes(vocoder):
    torch.manual_seed(2)
    wavs = torch.randn(1, 100 * HOP)
    features = LogMel()
    mels, one = features(wavs, torch.ones(1))
    # Its own ones change nothing.
    same = vocoder._match(wavs, mels)
    torch.testing.assert_close(same[:, HOP:-HOP], wavs[:, HOP:-HOP])
    tilt = torch.linspace(1.0, -1.0, 80)
    matched, _ = features(vocoder._match(wavs, mels + tilt), one)
    error = (matched - mels - tilt)[:, 5:-5].abs().mean()
    assert error < 0.25 * tilt.abs().mean()


def test_the_level_of_the_mels_is_the_level_of_the_waveform(vocoder):
    torch.manual_seed(3)
    mels = torch.randn(1, 60, 80) - 4
    quiet, loud = vocoder(mels), vocoder(mels + 1.5)
    torch.testing.assert_close(loud, quiet * np.exp(1.5), rtol=1e-2, atol=1e-2)


def test_blocks_leave_no_trace(vocoder, monkeypatch):
    mels = torch.randn(1, 50, 80) - 4
    whole = vocoder(mels)
    monkeypatch.setattr("speechbrain_vq.lobes.vocoder._BLOCK", 7)
    torch.testing.assert_close(vocoder(mels), whole, rtol=1e-4, atol=1e-4)


def test_the_same_mels_give_the_same_bits_whatever_was_drawn(vocoder):
    mels = torch.randn(2, 30, 80)
    first = vocoder(mels)
    torch.rand(7)
    state = torch.get_rng_state()
    assert torch.equal(vocoder(mels), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (2, 30 * HOP)


@given(st.floats(60.0, 500.0))
@settings(deadline=None)
def test_classes_of_pitch_hold_f0(pitch):
    targets = pitch_targets(torch.tensor([pitch]))
    assert targets.shape == (1, CLASSES)
    assert abs(float(targets.sum()) - 1) < 1e-5
    back = float(f0(targets.log())[0])
    assert abs(1200 * np.log2(back / pitch)) < 3.0


def test_a_voiced_frame_has_its_pitch_and_an_unvoiced_one_none(vocoder):
    """By the autocorrelation of the output, of controls that are made up."""
    frames, flat = 100, torch.zeros(1, 100, 80)
    noise = torch.randn(1, 16000, generator=torch.Generator().manual_seed(5))
    mels = LogMel()(noise, torch.ones(1))[0].mean(1, keepdim=True)
    for voicing, bound in ((20.0, 0.9), (-20.0, 0.3)):
        controls = Controls(
            torch.zeros(1, frames, CLASSES),
            torch.full((1, frames), voicing),
            flat,
            flat - (10.0 if voicing > 0 else 0.0),
            mels.expand(1, frames, 80),
        )
        generator = torch.Generator().manual_seed(0)
        pitch = torch.full((1, frames), 125.0)
        wav = vocoder.synthesize(controls, pitch, generator)[0].detach()
        one, other = wav[2000:10000], wav[2000 + RATE // 125 :][:8000]
        correlation = float((one @ other) / (one.norm() * other.norm()))
        assert (correlation > bound) == (voicing > 0), correlation


def test_gradients_reach_every_parameter(vocoder):
    controls = vocoder.controls(torch.randn(1, 20, 80) - 4)
    wavs = vocoder.synthesize(controls, torch.full((1, 20), 110.0))
    (wavs.square().mean() + controls.pitch.square().mean()).backward()
    for name, parameter in vocoder.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
        if not name.startswith("layers"):  # Behind weights that begin at 0.
            assert parameter.grad.abs().sum() > 0, name
    vocoder.zero_grad()
