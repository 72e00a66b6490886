"""Distances between decoded waveforms and the originals."""

import importlib.util
import math
import random
import warnings
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import pad

from .dtw import dtw
from .judges import JudgedSpeech
from .metric import NON_NEGATIVE, Estimate, Quantity
from .utterances import MAX_DECODED, EvaluatedModel, Utterance

_DECIBELS = 10 / math.log(10)
# Lower bound of magnitudes, number of cepstral coefficients and of mel bands.
_FLOOR, _ORDER, _N_MELS = 1e-5, 13, 80


def mel_cepstra(wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Compute mel cepstra [frames, 13] of samples [T], in windows of 25 ms with
    a hop of 10 ms, without c_0, the loudness."""
    from torchaudio.transforms import MelSpectrogram

    window, hop = round(0.025 * sample_rate), round(0.01 * sample_rate)
    size = 2 ** math.ceil(math.log2(window))
    options = {"n_mels": _N_MELS, "power": 1, "norm": "slaney", "center": False}
    extract = MelSpectrogram(sample_rate, size, window, hop, **options)
    # Padding aligns the first window with the first sample.
    before = (size - window) // 2
    missing = max(window - len(wav), 0)
    wav = pad(wav.float(), (before, size - window - before + missing))
    return cepstra(extract(wav).clamp(min=_FLOOR).log().T)


def cepstra(log_mels: torch.Tensor) -> torch.Tensor:
    """Compute cepstra [frames, 13] of log-mels [frames, bands]: c_m, m = 1 to
    13, in log |S| = c_0 + sum c_m cos(m w)."""
    from torchaudio.functional import create_dct

    bands = log_mels.shape[1]
    return log_mels @ create_dct(_ORDER + 1, bands, None)[:, 1:] / bands


def mel_cepstral_distortion(x: torch.Tensor, y: torch.Tensor) -> float:
    """Compute MCD in dB, 10 / ln 10 sqrt(2 sum (c_m - c'_m)^2) (Kubichek,
    1993), between two ``mel_cepstra``, as the mean along the path of dynamic
    time warping.

    MCD depends on the numbers of bands and coefficients, so compare only values
    from the same implementation.
    """
    # With matrix products, the distance of equal frames would not be 0.
    exact = "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(x.double(), y.double(), compute_mode=exact)
    costs = _DECIBELS * math.sqrt(2) * distances.unsqueeze(0)
    sizes = torch.tensor([len(x)]), torch.tensor([len(y)])
    return float(dtw(costs, *sizes))


def stoi(original: torch.Tensor, other: torch.Tensor, rate: int) -> float:
    """Compute short-time objective intelligibility of samples [T] by pystoi
    (Taal et al., An algorithm for intelligibility prediction of time-frequency
    weighted noisy speech, 2011); nan for fewer than 30 frames of speech."""
    import pystoi

    size = min(len(original), len(other))
    # pystoi fails for less than a frame, and returns 0 for digital silence.
    if size < 0.1 * rate or not original[:size].any():
        return math.nan
    x, y = (wav[:size].double().numpy() for wav in (original, other))
    with warnings.catch_warnings():
        # If there is too little speech, pystoi warns and returns 1e-5.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            return float(pystoi.stoi(x, y, rate))
        except RuntimeWarning:
            return math.nan


def has_pystoi() -> bool:
    """Return whether pystoi is installed."""
    return importlib.util.find_spec("pystoi") is not None


def sample_names(names: Sequence[str], number: int, seed: int = 0) -> set[str]:
    """Draw at most ``number`` of the names."""
    number = min(number, len(names))
    return set(random.Random(seed).sample(sorted(names), number))


class Reconstruction(JudgedSpeech):
    """Mel-cepstral distortion, STOI and judges' scores of decoded utterances.
    ``names`` come from ``sample_names``."""

    label = "Reconstruction against the original"
    quantities = {
        "mel_cepstral_distortion": Quantity(
            "mel-cepstral distortion", "dB", NON_NEGATIVE
        ),
        "stoi": Quantity("STOI", bounds=(-1.0, 1.0)),
    }

    def __init__(
        self,
        model: EvaluatedModel,
        names: set[str],
        judges: dict[str, Callable],
    ):
        super().__init__(model, judges)
        self.names = names

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Add an utterance, see ``Metric``."""
        if utterance.name not in self.names or not len(utterance.tokens):
            return
        utterance = self.model.beginning(utterance)
        x, rate = utterance.wav, self.model.sample_rate
        y = self.model.reconstruct(utterance)[: round(MAX_DECODED * rate)]
        cepstra = [mel_cepstra(wav, rate) for wav in (x, y)]
        distortion = mel_cepstral_distortion(*cepstra)
        self._ratios.add("mel_cepstral_distortion", distortion, 1, weights)
        if has_pystoi() and not math.isnan(value := stoi(x, y, rate)):
            self._ratios.add("stoi", value, 1, weights)
        self.judge({"source": x, "output": y}, utterance.entry, weights)

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Return notes on the results, see ``Metric``."""
        if estimates and not has_pystoi():
            return ['STOI: pip install "speechbrain-vq[eval]"']
        return []

    def settings(self) -> dict:
        """Return settings for the report, see ``Metric``."""
        return {**self.model.settings(), "reconstructed": self.number}
