"""Fundamental frequency, frame by frame."""

import math

import torch

HOP = 0.01
# Range of the fundamental frequency, in Hz.
_LOWEST, _HIGHEST = 60.0, 400.0
# Least autocorrelation of a voiced frame, and least peak relative to that of
# the whole signal.
_VOICING, _SILENCE = 0.45, 0.03
# Boersma's is 0.01 and relies on a path finder to remove octave errors;
# without one, 0.06 leaves jumps in 1 % of the frames of MiniSpeech.
_OCTAVE_COST = 0.06


def fundamental(wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Estimate F0 by the autocorrelation method of Boersma (Accurate
    short-term analysis of the fundamental frequency, 1993), without its path
    finder.

    Frames are independent, so single ones may be off by an octave, above all
    in creaky voice; use a tracker such as pYIN or CREPE to study pitch itself.

    Arguments
    ---------
    wav : torch.Tensor
        Samples, [T].
    sample_rate : int
        Sampling rate in Hz.

    Returns
    -------
    torch.Tensor
        F0 in Hz every 10 ms, 0 in unvoiced frames.

    Example
    -------
    >>> time = torch.arange(8000) / 16000
    >>> f0 = fundamental(torch.sin(2 * torch.pi * 200 * time), 16000)
    >>> round(float(f0[25]))
    200
    """
    hop, size = round(HOP * sample_rate), round(3 / _LOWEST * sample_rate)
    wav = torch.nn.functional.pad(wav.double(), (size // 2, size // 2))
    frames = wav.unfold(0, size, hop)
    loud = frames.abs().amax(1) > _SILENCE * wav.abs().max().clamp(min=1e-9)
    window = torch.hann_window(size, periodic=False, dtype=wav.dtype)
    frames = (frames - frames.mean(1, keepdim=True)) * window
    shortest = max(2, math.floor(sample_rate / _HIGHEST))
    longest = math.ceil(sample_rate / _LOWEST)
    # Of the signal alone: the window's own autocorrelation is divided out.
    correlation = _autocorrelation(frames)[:, : longest + 2]
    correlation = correlation / _autocorrelation(window[None])[:, : longest + 2]
    lags = torch.arange(shortest, longest + 1)
    middle = correlation[:, lags]
    peak = (middle >= correlation[:, lags - 1]) & (
        middle > correlation[:, lags + 1]
    )
    strength = middle - _OCTAVE_COST * torch.log2(lags * _LOWEST / sample_rate)
    best = torch.where(peak, strength, -torch.inf).argmax(1)
    rows = torch.arange(len(frames))
    lag = lags[best]
    before, at, after = (correlation[rows, lag + step] for step in (-1, 0, 1))
    # The vertex of the parabola through three points.
    curvature = before - 2 * at + after
    curvature = torch.where(curvature < 0, curvature, -1.0)
    lag = lag + ((before - after) / (2 * curvature)).clamp(-0.5, 0.5)
    voiced = loud & (at > _VOICING) & peak[rows, best]
    return torch.where(voiced, sample_rate / lag, 0.0).float()


def _autocorrelation(frames):
    """Return the normalized autocorrelation, [N, lags]."""
    size = 2 ** math.ceil(math.log2(2 * frames.shape[1]))
    power = torch.fft.rfft(frames, size).abs().square()
    correlation = torch.fft.irfft(power, size)
    return correlation / correlation[:, :1].clamp(min=1e-12)
