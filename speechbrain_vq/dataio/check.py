"""Whether an audio file is all there.

Authors
 * speechbrain_vq authors 2026
"""

import os
import re
from pathlib import Path

import soundfile


class AudioError(ValueError):
    """An audio file that cannot be used; the message names it."""


def check_audio(path: str | os.PathLike, tail: int = 1024) -> float:
    """Makes sure that a file can be read to its end, decoding only that end.

    Arguments
    ---------
    path : path
        The file.
    tail : int
        How many samples to decode.

    Returns
    -------
    float
        Its length in seconds.

    Raises
    ------
    AudioError
        If the file is missing, not audio, cut short or empty.
    """
    path = Path(path)
    if not path.exists():
        raise AudioError(f"{path}: there is no such file.")
    try:
        info = soundfile.info(path)
        if info.frames == 0:
            raise AudioError(f"{path}: holds no sound.")
        _check_wav_sizes(path, info.extra_info)
        if info.format == "OGG":
            _check_last_page(path)
        with soundfile.SoundFile(path) as audio:
            wanted = min(tail, info.frames)
            audio.seek(info.frames - wanted)
            if len(audio.read(wanted)) < wanted:
                raise AudioError(
                    f"{path}: cut short, its end cannot be decoded."
                )
    except (OSError, RuntimeError) as error:
        raise AudioError(f"{path}: cannot be read: {error}") from error
    return info.frames / info.samplerate


def _check_wav_sizes(path: Path, notes: str) -> None:
    # libsndfile trusts the size of the file more than the header of a wav,
    # and only notes the difference. Sizes near the limit are what programs
    # write that stream and do not know better.
    sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", notes, re.M)
    if sizes and int(sizes[2]) < int(sizes[1]) < 2**31 - 2**16:
        raise AudioError(
            f"{path}: cut short, {sizes[2]} of {sizes[1]} bytes of audio."
        )


def _check_last_page(path: Path) -> None:
    """The last Ogg page must have the end-of-stream flag (RFC 3533)."""
    longest_page = 65307
    with open(path, "rb") as ogg:
        ogg.seek(max(0, path.stat().st_size - longest_page))
        data = ogg.read()
    page = data.rfind(b"OggS")
    if page < 0 or not data[page + 5] & 4:
        raise AudioError(
            f"{path}: cut short, its last page does not end the stream."
        )
