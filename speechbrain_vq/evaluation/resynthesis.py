"""The measure of what comes back of some utterances.

Authors
 * speechbrain_vq authors 2026
"""

import importlib.util
import random
from collections.abc import Callable, Sequence

import torch

from . import reconstruction
from .sampling import Figure, Ratios
from .sources import LONGEST, Utterance


class Reconstruction:
    """What comes back of some utterances, see ``reconstruction``.

    Arguments
    ---------
    reconstruct : callable
        From an utterance to samples.
    sample_rate : int
        In Hz.
    names : set of str
        Utterances to reconstruct.
    judges : dict
        By name, callables that are given ``{"source", "output"}`` (samples),
        the sampling rate and the entry of the manifest, and return a dict of
        numbers.
    own_phases : bool
        Whether the samples have phases of their own: then they cannot be
        compared one by one, and there is no SI-SNR.
    """

    def __init__(
        self,
        reconstruct: Callable,
        sample_rate: int,
        names: set[str],
        judges: dict[str, Callable],
        own_phases: bool = False,
    ):
        self.reconstruct, self.sample_rate = reconstruct, sample_rate
        self.names, self.judges = names, judges
        self.own_phases = own_phases
        self.done, self._ratios = 0, Ratios()

    def add(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Reconstructs an utterance, if it is one of them."""
        if utterance.name not in self.names or not len(utterance.tokens):
            return
        output, rate = self.reconstruct(utterance), self.sample_rate
        self.done += 1
        most = round(LONGEST * rate)
        x, y = utterance.wav[:most], output[:most]
        cepstra = [reconstruction.mel_cepstra(wav, rate) for wav in (x, y)]
        numbers = {
            "mel_cepstral_distortion": (
                reconstruction.mel_cepstral_distortion(*cepstra),
                1,
            ),
            "log_spectral_distance": (
                reconstruction.log_spectral_distance(x, y, rate),
                1,
            ),
            **reconstruction.pitch_errors(x, y, rate),
        }
        if not self.own_phases:
            numbers["si_snr"] = reconstruction.si_snr(x, y), 1
        if has_pystoi():
            value = reconstruction.stoi(x, y, rate)
            if value == value:
                numbers["stoi"] = value, 1
        audio = {"source": x, "output": y}
        for name, judge in self.judges.items():
            for what, value in judge(audio, rate, utterance.entry).items():
                numbers[f"{name}:{what}"] = float(value), 1
        for name, pair in numbers.items():
            self._ratios.add(name, *pair, weights)

    def figures(self) -> dict[str, Figure]:
        """The measures, with intervals."""
        found = {
            name: self._ratios.figure(name) for name in self._ratios.names()
        }
        if found.pop("f0_squared_error", None):
            found["f0_rmse"] = self._ratios.figure(
                "f0_squared_error", torch.sqrt
            )
        if "voicing" in found:
            found["voicing_error"] = found.pop("voicing")
        return found


def some_names(names: Sequence[str], number: int, seed: int = 0) -> set[str]:
    """So many names at random.

    Example
    -------
    >>> len(some_names(["a", "b", "c"], 2))
    2
    """
    return set(
        random.Random(seed).sample(sorted(names), min(number, len(names)))
    )


def has_pystoi() -> bool:
    """Whether pystoi is installed."""
    return importlib.util.find_spec("pystoi") is not None
