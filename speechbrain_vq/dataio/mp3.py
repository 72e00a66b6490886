"""Count the frames of MP3 files, which have no container that states their
number.

libsndfile stops at the length in the header that Xing and LAME write. Without
one, it estimates the length from the first frame, which is wrong if the bit
rate varies. Frames are defined in ISO 11172-3 and 13818-3.
"""

import contextlib
import os
import re
import threading
from collections.abc import Iterator

from .containers import JOINED, AudioError

_RATES = (44100, 48000, 32000)
_KBPS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
# MPEG 1, 2 and 2.5, layer III, by the second byte of a header without checksum:
# frame size in bytes times Hz per kbps, bit rates, divisor of sampling rates.
_VERSIONS = {
    0xFB: (144000, _KBPS[0], 1),
    0xF3: (72000, _KBPS[1], 2),
    0xE3: (72000, _KBPS[1], 4),
}
_INFO = re.compile(rb".{13,38}(?:Xing|Info)\0\0\0(.)(....)", re.S)


_quiet = {"lock": threading.Lock(), "depth": 0, "stderr": None}


@contextlib.contextmanager
def quiet(is_mp3: bool) -> Iterator[None]:
    """Discard stderr, in all threads, while an MP3 is decoded: libmpg123 writes
    a line for each frame that it cannot decode, and libsndfile offers no way to
    turn that off."""
    if not is_mp3:
        yield
        return
    with _quiet["lock"]:
        _quiet["depth"] += 1
        # Without a stderr there is nothing to discard.
        with contextlib.suppress(OSError):
            if _quiet["depth"] == 1:
                _quiet["stderr"] = os.dup(2)
                with open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        with _quiet["lock"]:
            _quiet["depth"] -= 1
            if _quiet["depth"] == 0 and _quiet["stderr"] is not None:
                os.dup2(_quiet["stderr"], 2)
                os.close(_quiet["stderr"])
                _quiet["stderr"] = None


def with_length(content: bytes) -> bytes:
    """Return the content of an MP3 file with the number of frames in its
    header, and without tags. Content that is not MP3 is returned unchanged.

    Raises
    ------
    AudioError
        If frames are missing or damaged, or more than the header states.
    """
    start, stated, count = _skip_tags(content), None, 0
    position, following = start, start
    while size := _frame_size(content[position : position + 4]):
        following = position + size
        info = _INFO.match(content, position, following)
        if info and position > start:
            raise AudioError(JOINED)
        if info and info[1][0] & 1:
            stated = int.from_bytes(info[2], "big")
        if following > len(content):
            break
        count, position = count + (not info), following
    if not following > start:
        return content
    if _has_frames(content, position + 1):
        if content[position : position + 3] == b"ID3":
            raise AudioError(JOINED)
        raise AudioError(f"damaged, no MP3 frame at byte {position}.")
    # Some encoders count the frame of their header.
    if stated is not None and not stated - 1 <= count <= stated + 1:
        short = f"cut short, {count} of {stated} frames can be read."
        raise AudioError(short if count < stated else JOINED)
    frames = content[start:position]
    if stated is None:
        header = content[start : start + 4]
        return _info_frame(header, count, position) + frames
    return frames


def _skip_tags(content):
    start = 0
    while content[start : start + 3] == b"ID3":
        sizes, shifts = content[start + 6 : start + 10], (21, 14, 7, 0)
        start += 10 + sum(b << s for b, s in zip(sizes, shifts, strict=False))
    while content[start : start + 1] == b"\0":
        start += 1
    return start


def _frame_size(header):
    """Return the bytes in the frame with a header; 0 if it is not a header."""
    if len(header) < 4 or header[0] != 0xFF or header[1] | 1 not in _VERSIONS:
        return 0
    factor, kbps, divisor = _VERSIONS[header[1] | 1]
    bit_rate, rate = header[2] >> 4, header[2] >> 2 & 3
    if bit_rate in (0, 15) or rate == 3:
        return 0
    size = factor * kbps[bit_rate] // (_RATES[rate] // divisor)
    return size + (header[2] >> 1 & 1)


def _has_frames(content, position):
    """Return whether three adjacent frames start at or after a position."""
    for sync in re.finditer(
        b"\xff[\xe2\xe3\xf2\xf3\xfa\xfb]", content[position:]
    ):
        start = position + sync.start()
        for _ in range(3):
            size = _frame_size(content[start : start + 4])
            start += size
            if not size:
                break
        else:
            return True
    return False


def _info_frame(header, count, size):
    """Make a frame that states the number of frames."""
    mpeg1, mono = header[1] | 1 == 0xFB, header[3] >> 6 == 3
    # The bit rate makes the frame large enough.
    header = bytes((0xFF, header[1] | 1, 0x90 | header[2] & 0x0C, header[3]))
    side = 32 if mpeg1 and not mono else 9 if mono and not mpeg1 else 17
    numbers = (3, count, _frame_size(header) + size)
    body = b"Xing" + b"".join(n.to_bytes(4, "big") for n in numbers)
    return (header + bytes(side) + body).ljust(_frame_size(header), b"\0")
