"""Data sets of utterances for training and testing."""

import logging
import os
import random

import torch
from speechbrain.dataio.dataset import DynamicItemDataset

from .audio import AudioError, read_audio, usable_files
from .manifests import TOLERANCE, manifest_path, read_corpus, read_manifest

logger = logging.getLogger(__name__)


def read_dataset(folder: str | os.PathLike, split: str) -> DynamicItemDataset:
    """Read the manifest of a split, and check it and its audio.

    Items with unreadable audio are skipped with warnings. A ``length`` that
    differs from the audio's is corrected, with a single warning for all items.
    Raises ValueError if no item is left."""
    items = read_manifest(manifest_path(folder, split), needed=["length"])
    paths = dict.fromkeys(item["wav"] for item in items.values())
    # The audio of a prepared corpus was decoded during preparation.
    lengths = usable_files(paths, decode=not read_corpus(folder))
    usable = {k: item for k, item in items.items() if item["wav"] in lengths}
    wrong = []
    for name, item in usable.items():
        stated, length = item["length"], lengths[item["wav"]]
        if abs(stated - length) > TOLERANCE:
            wrong.append(f"{name}, {length:.2f} s instead of {stated:g} s")
            item["length"] = length
    if wrong:
        logger.warning(
            "The lengths of %d of %d items differ from those of the audio, "
            "which are used instead: %s%s",
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
    """Reads audio during training, validation and testing. A file that has
    become unreadable since preparation is replaced by silence, with a warning,
    so that it does not end a run of several days. The tenth such file raises
    its AudioError, since the disk has probably failed.

    Arguments
    ---------
    sample_rate : int
        Sampling rate of the waveforms, in Hz.

    Example
    -------
    >>> read = TrainingReader(sample_rate=16000)
    >>> read("gone.wav", length=3.0, start=1.5, duration=1.0).shape
    torch.Size([16000])
    """

    _MAX_LOST = 10  # Files, in each process that reads

    def __init__(self, sample_rate: int):
        self.sample_rate, self._lost = sample_rate, set()

    def __call__(
        self,
        path: str,
        length: float,
        start: float = 0.0,
        duration: float | None = None,
    ) -> torch.Tensor:
        """Read a waveform [samples] of at most ``duration`` seconds, from
        ``start``. ``length`` is the length of the file, in seconds."""
        try:
            return read_audio(path, self.sample_rate, start, duration)
        except AudioError as error:
            if path not in self._lost:
                self._lost.add(path)
                if len(self._lost) == self._MAX_LOST:
                    raise
                logger.warning(
                    "%s The file is replaced by silence from now on. Lost "
                    "files so far: %d; the run ends at %d.",
                    *(error, len(self._lost), self._MAX_LOST),
                )
        seconds = length - start
        if duration is not None:
            seconds = min(seconds, duration)
        return torch.zeros(round(seconds * self.sample_rate))


def random_start(
    name: str, epoch: int, seconds: float, segment: float
) -> float:
    """Draw the start of a random segment of an utterance, in seconds; 0 if the
    utterance is shorter. It depends only on the arguments, so a resumed run
    draws the same segments.

    Example
    -------
    >>> random_start("utt", 1, 3.0, 2.0) == random_start("utt", 1, 3.0, 2.0)
    True
    """
    latest = max(seconds - segment, 0)
    return random.Random(f"{name} {epoch}").uniform(0, latest)
