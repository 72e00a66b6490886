"""The fundamental frequency, frame by frame.

Authors
 * speechbrain_vq authors 2026
"""

import math

import torch

HOP = 0.01
# Boersma's is 0.01, which leaves his path finder to sort out what falls an
# octave; without one, this leaves jumps in 1 % of the frames of MiniSpeech.
_OCTAVE_COST = 0.06


def fundamental(
    wav: torch.Tensor,
    sample_rate: int,
    lowest: float = 60.0,
    highest: float = 400.0,
    voicing: float = 0.45,
    silence: float = 0.03,
) -> torch.Tensor:
    """F0 by the autocorrelation of Boersma (Accurate short-term analysis of
    the fundamental frequency, 1993), without its path finder.

    The autocorrelation of a windowed frame is divided by that of the window.
    Frames are taken one by one, so that single ones may be off by an octave,
    most of all in creaky voice; a tracker such as pYIN or CREPE is better
    where pitch itself is the matter.

    Arguments
    ---------
    wav : torch.Tensor
        Samples, [T].
    sample_rate : int
        In Hz.
    lowest, highest : float
        In Hz.
    voicing : float
        The least autocorrelation of a voiced frame.
    silence : float
        The least peak of a voiced frame, as a share of that of the whole.

    Returns
    -------
    torch.Tensor
        In Hz, every 10 ms, 0 where there is no voice.

    Example
    -------
    >>> time = torch.arange(8000) / 16000
    >>> f0 = fundamental(torch.sin(2 * torch.pi * 200 * time), 16000)
    >>> round(float(f0[25]))
    200
    """
    hop, size = round(HOP * sample_rate), round(3 / lowest * sample_rate)
    wav = torch.nn.functional.pad(wav.double(), (size // 2, size // 2))
    frames = wav.unfold(0, size, hop)
    loud = frames.abs().amax(1) > silence * wav.abs().max().clamp(min=1e-9)
    window = torch.hann_window(size, periodic=False, dtype=wav.dtype)
    frames = (frames - frames.mean(1, keepdim=True)) * window
    shortest = max(2, math.floor(sample_rate / highest))
    longest = math.ceil(sample_rate / lowest)
    like = _autocorrelation(frames)[:, : longest + 2]
    like = like / _autocorrelation(window[None])[:, : longest + 2]
    lags = torch.arange(shortest, longest + 1)
    middle = like[:, lags]
    peak = (middle >= like[:, lags - 1]) & (middle > like[:, lags + 1])
    strength = middle - _OCTAVE_COST * torch.log2(lags * lowest / sample_rate)
    best = torch.where(peak, strength, -torch.inf).argmax(1)
    rows = torch.arange(len(frames))
    lag = lags[best]
    before, at, after = (like[rows, lag + step] for step in (-1, 0, 1))
    # The top of the parabola through three points.
    curve = before - 2 * at + after
    curve = torch.where(curve < 0, curve, -1.0)
    lag = lag + ((before - after) / (2 * curve)).clamp(-0.5, 0.5)
    voiced = loud & (at > voicing) & peak[rows, best]
    return torch.where(voiced, sample_rate / lag, 0.0).float()


def _autocorrelation(frames):
    """Normalized, [N, lags]."""
    size = 2 ** math.ceil(math.log2(2 * frames.shape[1]))
    power = torch.fft.rfft(frames, size).abs().square()
    like = torch.fft.irfft(power, size)
    return like / like[:, :1].clamp(min=1e-12)
