"""Detect audio files that are cut short or contain several recordings end to
end. libsndfile reads the first part of such files without an error."""

import math
import os
import re
from typing import BinaryIO

JOINED = (
    "holds several recordings end to end, of which only the first can be "
    "read. Split it, or convert it to one wav or flac."
)


class AudioError(ValueError):
    """Audio that cannot be used."""


# libsndfile's note of a size in the header of a wav, aiff, au, svx, w64 or rf64
# that is not the size in the file.
_SIZES = re.compile(
    r"^ *(?:data|SSND|Data Size|BODY|riff|Riff size) *: (\d+) "
    r"\(should be (\d+)\)",
    re.M,
)
# Its note of a wav, rf64 or aiff in which no chunk follows the audio: the file
# size, and the position where a chunk should start.
_NO_CHUNK = re.compile(
    r"^Length : (\d+)\n(?:RIFF|RF64|FORM).*"
    r"Unknown chunk marker(?: \(\w+\))? at position (0x[0-9A-F]+|\d+)",
    re.M | re.S,
)
# sox writes this size if the true one is unknown; other programs write a larger
# one.
_UNKNOWN_SIZE = 0x7F000000
_SPHERE_SIZE = re.compile(
    rb"^(?:sample_count|channel_count|sample_n_bytes) -i (\d+)", re.M
)


def check_size(notes: str) -> None:
    """Raise an AudioError if a file contains less audio than its header states,
    or much more. ``notes`` is the log of libsndfile, which trusts the file size
    over the header, and only notes the difference."""
    for stated, actual in _SIZES.findall(notes):
        if int(actual) < int(stated) < _UNKNOWN_SIZE:
            raise AudioError(f"cut short, {actual} of {stated} bytes of audio.")
    if match := _NO_CHUNK.search(notes):
        length, end = (int(number, 0) for number in match.groups())
        # Tags of other formats may follow the audio.
        if length - end > min(max(end // 10, 2**10), 2**16):
            raise AudioError(
                f"its header states an end after {end} bytes, and "
                f"{length - end} more follow: the recorder was probably "
                "stopped. Write a new header, for example with "
                "`sox --ignore-length`."
            )


def check_sphere(data: BinaryIO) -> None:
    """Raise an AudioError for a SPHERE file that ends before its samples,
    which libsndfile does not report."""
    data.seek(0)
    header = data.read(1024)
    stated = math.prod(map(int, _SPHERE_SIZE.findall(header)))
    actual = data.seek(0, os.SEEK_END) - 1024
    # Audio with embedded compression is smaller; libsndfile does not read it.
    if b"embedded" not in header and actual < stated:
        raise AudioError(f"cut short, {actual} of {stated} bytes of audio.")


def check_ogg(data: BinaryIO) -> None:
    """Raise an AudioError for an Ogg file that is cut short, or in which one
    stream follows the end of another (RFC 3533)."""
    position, flags, ended = 0, 0, False
    while True:
        data.seek(position)
        header = data.read(27)
        if len(header) < 27 or not header.startswith(b"OggS"):
            break
        flags = header[5]
        if flags & 2 and ended:
            raise AudioError(JOINED)
        ended = ended or bool(flags & 4)
        segments = data.read(header[26])
        position += 27 + len(segments) + sum(segments)
    size = data.seek(0, os.SEEK_END)
    if position > size or not flags & 4:
        raise AudioError("cut short, its last page does not end the stream.")
