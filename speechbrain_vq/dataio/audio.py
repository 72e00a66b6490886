"""Reading audio files of any rate and number of channels, or saying which
cannot be read and why.

Authors
 * speechbrain_vq authors 2026
"""

import logging
import pathlib
import random
from math import gcd

import numpy as np
import soundfile
import torch
from scipy.signal import resample_poly
from speechbrain.dataio.dataset import DynamicItemDataset

from speechbrain_vq.dataio.check import AudioError, check_audio

logger = logging.getLogger(__name__)


def read_audio(
    path: str | pathlib.Path,
    sample_rate: int,
    start: float = 0.0,
    duration: float | None = None,
) -> torch.Tensor:
    """Reads a file, or a piece of it, as one channel at a given rate.

    Arguments
    ---------
    path : path
        Any format that libsndfile reads.
    sample_rate : int
        In Hz; files of other rates are resampled.
    start : float
        In seconds.
    duration : float, optional
        In seconds; by default to the end.

    Returns
    -------
    torch.Tensor
        Samples, [T], in -1..1, the mean of the channels.

    Raises
    ------
    AudioError
        If the file is missing, not audio, cut short or empty.
    """
    if not pathlib.Path(path).exists():
        raise AudioError(f"{path}: there is no such file.")
    try:
        with soundfile.SoundFile(str(path)) as file:
            rate = file.samplerate
            if start:
                file.seek(round(start * rate))
            frames = -1 if duration is None else round(duration * rate)
            wanted = file.frames - file.tell()
            wanted = wanted if frames < 0 else min(frames, wanted)
            samples = file.read(frames, dtype="float32", always_2d=True)
    except (OSError, RuntimeError) as error:
        raise AudioError(f"{path}: cannot be read: {error}") from error
    if len(samples) < wanted:
        raise AudioError(
            f"{path}: cut short, {len(samples)} of {wanted} samples are there."
        )
    if len(samples) == 0:
        raise AudioError(f"{path}: holds no sound.")
    mono = samples.mean(axis=1)
    if rate != sample_rate:
        common = gcd(rate, sample_rate)
        mono = resample_poly(mono, sample_rate // common, rate // common)
    return torch.from_numpy(np.ascontiguousarray(mono, dtype=np.float32))


def usable(dataset: DynamicItemDataset, key: str = "wav") -> DynamicItemDataset:
    """Leaves out the items whose audio cannot be read, and names them.

    Arguments
    ---------
    dataset : DynamicItemDataset
        Items with a path each.
    key : str
        The item that holds the path.

    Returns
    -------
    DynamicItemDataset
        The dataset without them.

    Raises
    ------
    ValueError
        If nothing is left.
    """
    total = len(dataset)
    for name, item in list(dataset.data.items()):
        try:
            check_audio(item[key])
        except AudioError as error:
            logger.warning("Left out %s: %s", name, error)
            del dataset.data[name]
    dataset.data_ids = list(dataset.data)
    if not dataset.data:
        raise ValueError(
            f"None of the {total} audio files of the manifest can be read; "
            "see the warnings above."
        )
    if len(dataset) < total:
        logger.warning(
            "%d of %d files were left out.", total - len(dataset), total
        )
    return dataset


def random_start(name: str, epoch: int, seconds: float, piece: float) -> float:
    """Where to cut a random piece from an utterance: a function of its name
    and the epoch, so that a resumed run cuts what the run before it would.

    Arguments
    ---------
    name : str
        Name of the utterance.
    epoch : int
        The epoch.
    seconds : float
        Length of the utterance.
    piece : float
        Length of the piece, in seconds.

    Returns
    -------
    float
        In seconds; 0 where the utterance is shorter than the piece.

    Example
    -------
    >>> random_start("utt", 1, 3.0, 2.0) == random_start("utt", 1, 3.0, 2.0)
    True
    """
    return random.Random(f"{name} {epoch}").uniform(0, max(seconds - piece, 0))
