"""How near a reconstruction is to the original.

Authors
 * speechbrain_vq authors 2026
"""

import math

import torch
from torch.nn.functional import pad

from .dtw import dtw
from .f0 import fundamental

# To decibels: 10 / ln 10.
_DECIBELS = 10 / math.log(10)
_FLOOR = 1e-5


def mel_cepstra(
    wav: torch.Tensor, sample_rate: int, order: int = 13, n_mels: int = 80
) -> torch.Tensor:
    """The c of log |S| = c_0 + sum c_m cos(m w) on the mel scale, 25 ms
    windows every 10 ms.

    Arguments
    ---------
    wav : torch.Tensor
        Samples, [T].
    sample_rate : int
        In Hz.
    order : int
        Of the last coefficient.
    n_mels : int
        Number of bands.

    Returns
    -------
    torch.Tensor
        c_1 to c_order; without the loudness, c_0, [frames, order].
    """
    from torchaudio.functional import melscale_fbanks

    window = round(0.025 * sample_rate)
    spectrum = _spectrum(wav, window, round(0.01 * sample_rate))
    bands = melscale_fbanks(
        spectrum.shape[1], 0.0, sample_rate / 2, n_mels, sample_rate, "slaney"
    )
    return cepstra((spectrum @ bands).clamp(min=_FLOOR).log(), order)


def cepstra(log_mels: torch.Tensor, order: int) -> torch.Tensor:
    """Cosine coefficients 1 to ``order`` of logarithms of magnitudes.

    Arguments
    ---------
    log_mels : torch.Tensor
        [frames, bands].
    order : int
        Of the last coefficient.

    Returns
    -------
    torch.Tensor
        [frames, order].

    Example
    -------
    >>> angles = torch.pi * (torch.arange(40) + 0.5) / 40
    >>> cepstra(5 + 3 * torch.cos(2 * angles)[None], 3).round(decimals=4).abs()
    tensor([[0., 3., 0.]])
    """
    bands = log_mels.shape[1]
    angles = math.pi * (torch.arange(bands) + 0.5) / bands
    waves = torch.cos(angles.unsqueeze(1) * torch.arange(1, order + 1))
    return log_mels @ waves * (2 / bands)


def mel_cepstral_distortion(x: torch.Tensor, y: torch.Tensor) -> float:
    """MCD in decibels, 10 / ln 10 sqrt(2 sum (c_m - c'_m)^2) (Kubichek, 1993),
    the mean along the path of dynamic time warping.

    The figure depends on the bands and the order: compare like with like.

    Arguments
    ---------
    x, y : torch.Tensor
        Cepstra as ``mel_cepstra`` gives them, [frames, order].

    Returns
    -------
    float

    Example
    -------
    >>> x = torch.zeros(4, 2)
    >>> y = torch.tensor([[3.0, 4.0]]).expand(6, 2)
    >>> mel_cepstral_distortion(x, y) * math.log(10) / 10 / math.sqrt(2)
    5.0
    """
    # By products, a frame would not be at no distance from itself.
    exact = "donot_use_mm_for_euclid_dist"
    apart = torch.cdist(x.double(), y.double(), compute_mode=exact)
    costs = _DECIBELS * math.sqrt(2) * apart.unsqueeze(0)
    sizes = torch.tensor([len(x)]), torch.tensor([len(y)])
    return float(dtw(costs, *sizes))


def log_spectral_distance(
    x: torch.Tensor, y: torch.Tensor, sample_rate: int
) -> float:
    """The mean over frames of the root mean square over frequencies of the
    difference in decibels (Gray and Markel, 1976, equation 12), without
    warping; 32 ms windows every 8 ms, magnitudes floored at 1e-5.

    Arguments
    ---------
    x, y : torch.Tensor
        Samples, [T].
    sample_rate : int
        In Hz.

    Returns
    -------
    float
    """
    window = round(0.032 * sample_rate)
    x, y = (
        _spectrum(wav, window, window // 4).clamp(min=_FLOOR).log()
        for wav in _as_long(x, y)
    )
    difference = 2 * _DECIBELS * (x - y)
    return float(difference.square().mean(1).sqrt().mean())


def si_snr(original: torch.Tensor, other: torch.Tensor) -> float:
    """Scale-invariant signal-to-noise ratio in decibels (Le Roux et al., SDR -
    half-baked or well done?, 2019, equation 5), of zero-mean signals. A vocoder
    that makes its own phases has none to speak of.

    Arguments
    ---------
    original, other : torch.Tensor
        Samples, [T].

    Returns
    -------
    float

    Example
    -------
    >>> x = torch.tensor([1.0, -1.0, 1.0, -1.0])
    >>> round(si_snr(x, 7 * (x + torch.tensor([0.1, 0.1, -0.1, -0.1]))), 3)
    20.0
    """
    x, y = (
        wav.double() - wav.double().mean() for wav in _as_long(original, other)
    )
    target = (x @ y) / (x @ x).clamp(min=1e-12) * x
    noise = (y - target).square().sum().clamp(min=1e-12)
    return float(
        10 * torch.log10(target.square().sum().clamp(min=1e-12) / noise)
    )


def pitch_errors(
    original: torch.Tensor, other: torch.Tensor, sample_rate: int
) -> dict[str, tuple[float, int]]:
    """Sums of errors of the fundamental frequency, and of how many frames.

    ``f0_squared_error`` is in Hz^2, over frames voiced in both, of which the
    root of the mean is the F0 RMSE of voice conversion (Sisman et al., An
    overview of voice conversion and its challenges, 2021, section on objective
    evaluation); ``voicing`` counts the frames voiced in only one (voicing
    decision error, Nakatani et al., A method for fundamental frequency
    estimation and voicing decision, 2008). See ``fundamental`` for the limits.

    Arguments
    ---------
    original, other : torch.Tensor
        Samples, [T].
    sample_rate : int
        In Hz.

    Returns
    -------
    dict
        (sum, frames) each.
    """
    x, y = (fundamental(w, sample_rate) for w in _as_long(original, other))
    both = (x > 0) & (y > 0)
    squares = float((x - y)[both].square().sum())
    return {
        "f0_squared_error": (squares, int(both.sum())),
        "voicing": (float(((x > 0) != (y > 0)).sum()), len(x)),
    }


def stoi(original: torch.Tensor, other: torch.Tensor, rate: int) -> float:
    """Short-time objective intelligibility (Taal et al., An algorithm for
    intelligibility prediction of time-frequency weighted noisy speech, 2011),
    by pystoi, which must be there; nan for less than 30 frames of speech.

    Arguments
    ---------
    original, other : torch.Tensor
        Samples, [T].
    rate : int
        In Hz.

    Returns
    -------
    float
    """
    import warnings

    import pystoi

    x, y = (wav.double().numpy() for wav in _as_long(original, other))
    with warnings.catch_warnings():
        # It warns, and returns 1e-5, where there is too little.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(x, y, rate))
        except RuntimeWarning:
            return math.nan


def _as_long(x, y):
    size = min(len(x), len(y))
    return x[:size], y[:size]


def _spectrum(wav, window, hop):
    """Magnitudes, [frames, bins]."""
    if len(wav) < window:
        wav = pad(wav, (0, window - len(wav)))
    size = 2 ** math.ceil(math.log2(window))
    frames = torch.hann_window(window) * wav.float().unfold(0, window, hop)
    return torch.fft.rfft(frames, size).abs()
