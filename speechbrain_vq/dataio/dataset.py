"""Data sets of utterances to train and test on: their manifests and audio."""

import logging
import os
import random

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from .audio import AudioError, read_audio, usable_files
from .manifests import TOLERANCE, manifest_path, read_corpus, read_manifest

logger = logging.getLogger(__name__)


def read_dataset(folder: str | os.PathLike, split: str) -> DynamicItemDataset:
    """Read and check the manifest of a split to train or test on, and its
    audio. Items whose audio cannot be read are left out, with a warning for
    each; a ValueError if none is left. A ``length`` that is not that of the
    audio is corrected, with one warning."""
    items = read_manifest(manifest_path(folder, split), needed=["length"])
    paths = dict.fromkeys(item["wav"] for item in items.values())
    # The audio of our own manifests was decoded to make them.
    lengths = usable_files(paths, decode=not read_corpus(folder))
    usable = {k: item for k, item in items.items() if item["wav"] in lengths}
    wrong = []
    for name, item in usable.items():
        stated, length = item["length"], lengths[item["wav"]]
        if abs(stated - length) > TOLERANCE:
            wrong.append(f"{name}, {length:.2f} s and not {stated:g}")
            item["length"] = length
    if wrong:
        logger.warning(
            "The lengths of %d of %d items are not those of the audio, which "
            "are taken: %s%s",
            *(len(wrong), len(items)),
            *("; ".join(wrong[:3]), "; ..." * (len(wrong) > 3)),
        )
    if not usable:
        raise ValueError(
            f"None of the {len(items)} audio files of the manifest can be "
            "read; see the warnings above."
        )
    return DynamicItemDataset(usable)


class TrainingReader:
    """Reads the audio of a training, its validation and its test. A file that
    cannot be read any more, since it was prepared, is named and counts as
    silence: it ends no training of days. The tenth of them does, as where a
    disk is gone.

    Arguments
    ---------
    sample_rate : int
        Sample rate to read at.

    Example
    -------
    >>> read = TrainingReader(sample_rate=16000)
    >>> read("gone.wav", length=3.0, start=1.5, duration=1.0).shape
    torch.Size([16000])
    """

    _MOST_LOST = 10  # Of each process that reads

    def __init__(self, sample_rate: int):
        self.sample_rate, self._lost = sample_rate, set()

    def __call__(
        self,
        path: str,
        length: float,
        start: float = 0.0,
        duration: float | None = None,
    ) -> torch.Tensor:
        """Read a waveform [samples] from ``start`` on, of at most ``duration``
        seconds, of a file of so many seconds."""
        try:
            return read_audio(path, self.sample_rate, start, duration)
        except AudioError as error:
            if path not in self._lost:
                self._lost.add(path)
                if len(self._lost) == self._MOST_LOST:
                    raise
                logger.warning(
                    "%s It counts as silence from now on, as file %d: %d of "
                    "them end the run.",
                    *(error, len(self._lost), self._MOST_LOST),
                )
        seconds = length - start
        if duration is not None:
            seconds = min(seconds, duration)
        return torch.zeros(round(seconds * self.sample_rate))


def random_start(
    name: str, epoch: int, seconds: float, segment: float
) -> float:
    """Draw the start of a random segment of an utterance, in seconds; 0 where
    it is shorter than the segment. A function of the name and the epoch, so
    that a resumed run draws the same segments.

    Example
    -------
    >>> random_start("utt", 1, 3.0, 2.0) == random_start("utt", 1, 3.0, 2.0)
    True
    """
    latest = max(seconds - segment, 0)
    return random.Random(f"{name} {epoch}").uniform(0, latest)
