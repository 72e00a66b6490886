"""Audio files in blocks, and which files are audio.

Authors
 * speechbrain_vq authors 2026
"""

import math
import os
import pathlib
from collections.abc import Iterable, Iterator
from math import gcd
from typing import BinaryIO

import soundfile
import torch
from scipy.signal import resample_poly

from speechbrain_vq.dataio.audio import AudioError

from .chunks import Span, in_pieces

# Half the length of scipy's filter, in steps of the slower rate.
_HALF = 10


def audio_blocks(
    source: str | os.PathLike | BinaryIO,
    sample_rate: int,
    seconds: float = 60.0,
    name: str | None = None,
) -> Iterator[torch.Tensor]:
    """Reads audio piece by piece, as one channel at a given rate.

    The blocks are those of the whole, bit for bit: the file is read on and
    on, without jumps, and resampled with what lies around a block.

    Arguments
    ---------
    source : path or file
        Any format that libsndfile reads.
    sample_rate : int
        In Hz; other rates are resampled.
    seconds : float
        Length of the blocks, about.
    name : str, optional
        What to call it in errors; the path by default.

    Yields
    ------
    torch.Tensor
        Samples, in -1..1, the mean of the channels.

    Raises
    ------
    AudioError
        If the file is missing, not audio, cut short or empty.
    """
    if isinstance(source, str | os.PathLike):
        source = os.fspath(source)
        name = name or source
        if not os.path.exists(source):
            raise AudioError(f"{name}: there is no such file.")
    try:
        with _Forward(source) as file:
            yield from _resampled(file, sample_rate, seconds, name)
    except (OSError, RuntimeError) as error:
        raise AudioError(f"{name}: cannot be read: {error}") from error


class _Forward(soundfile.SoundFile):
    """Soundfile seeks after each read, to where it is: MP3 then goes on with
    other last bits, and Opus decodes twice. This one only reads on."""

    def seekable(self):
        """Not here."""
        return False


def _resampled(file, sample_rate, seconds, name):
    blocks = _mono(file, seconds, name)
    if file.samplerate == sample_rate:
        yield from blocks
        return
    common = gcd(file.samplerate, sample_rate)
    up, down = sample_rate // common, file.samplerate // common
    reach = math.ceil((_HALF * max(up, down) / up + 1) / down)
    yield from in_pieces(
        lambda x: torch.from_numpy(resample_poly(x.numpy(), up, down)),
        blocks,
        Span(down, reach, reach),
        max(1, round(seconds * common)),
        up,
    )


def _mono(file, seconds, name):
    size, total = max(1, round(seconds * file.samplerate)), 0
    while True:
        samples = file.read(size, dtype="float32", always_2d=True)
        total += len(samples)
        if len(samples):
            yield torch.from_numpy(samples.mean(axis=1))
        if len(samples) < size:
            break
    if total < file.frames:
        raise AudioError(
            f"{name}: cut short, {total} of {file.frames} samples are there."
        )
    if total == 0:
        raise AudioError(f"{name}: holds no sound.")


def find_audio(
    places: Iterable[str | os.PathLike],
) -> dict[pathlib.Path, pathlib.Path]:
    """Audio files, and those in folders.

    Arguments
    ---------
    places : iterable of path
        Files, taken as they are, and folders, searched to the ground for
        names that end like audio; hidden ones are left out.

    Returns
    -------
    dict
        For each file, once and in order, its path within the folder given,
        or its name.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    found, places = {}, [pathlib.Path(place) for place in places]
    for place in places:
        if place.is_dir():
            inside = {p: p.relative_to(place) for p in sorted(place.rglob("*"))}
            found |= {
                path: part
                for path, part in inside.items()
                if path.suffix.lower() in audio_endings() and not _hidden(part)
            }
        else:
            found.setdefault(place, pathlib.Path(place.name))
    if not found:
        raise FileNotFoundError(
            f"There are no audio files in {', '.join(map(str, places))}: "
            f"none ends in {' '.join(sorted(audio_endings()))}."
        )
    return found


def audio_endings() -> set[str]:
    """How the names of files end that are taken for audio."""
    formats = {name.lower() for name in soundfile.available_formats()}
    return {f".{name}" for name in formats - {"raw"}} | {
        ".aif",
        ".oga",
        ".opus",
    }


def _hidden(part):
    return any(name.startswith(".") for name in part.parts)
