"""Data sets of utterances to train and test on: their manifests and audio."""

import logging
import os
import random

from speechbrain.dataio.dataset import DynamicItemDataset

from .audio import usable_files
from .manifests import TOLERANCE, manifest_path, read_corpus, read_manifest

logger = logging.getLogger(__name__)


def read_dataset(folder: str | os.PathLike, split: str) -> DynamicItemDataset:
    """Read and check the manifest of a split to train or test on, and its
    audio; see ``drop_unreadable``."""
    path = manifest_path(folder, split)
    dataset = DynamicItemDataset(read_manifest(path, needed=["length"]))
    # The audio of our own manifests was decoded to make them.
    return drop_unreadable(dataset, decode=not read_corpus(folder))


def drop_unreadable(
    dataset: DynamicItemDataset, decode: bool = True
) -> DynamicItemDataset:
    """Remove the items whose audio, under ``wav``, cannot be read, with a
    warning for each; a ValueError if none is left. A ``length`` that is not
    that of the audio is corrected, with one warning. Without ``decode``, as for
    a corpus whose preparation decoded it, only the headers are read."""
    total, wrong = len(dataset), []
    paths = dict.fromkeys(item["wav"] for item in dataset.data.values())
    lengths = usable_files(paths, decode)
    for name, item in list(dataset.data.items()):
        length = lengths.get(item["wav"])
        if length is None:
            del dataset.data[name]
        elif abs(item.get("length", length) - length) > TOLERANCE:
            wrong.append(f"{name}, {length:.2f} s and not {item['length']:g}")
            item["length"] = length
    dataset.data_ids = list(dataset.data)
    if wrong:
        logger.warning(
            "The lengths of %d of %d items are not those of the audio, which "
            "are taken: %s%s",
            *(
                len(wrong),
                total,
                "; ".join(wrong[:3]),
                "; ..." * (len(wrong) > 3),
            ),
        )
    if not dataset.data:
        raise ValueError(
            f"None of the {total} audio files of the manifest can be read; "
            "see the warnings above."
        )
    return dataset


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
