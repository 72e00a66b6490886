"""Audio files that a container's own structure shows to be cut short, or to
hold several recordings end to end: libsndfile reads the first part of them
without an error."""

import os
import re
from typing import BinaryIO

JOINED = (
    "holds several recordings end to end, of which only the first can be "
    "read. Split it, or convert it to one wav or flac."
)


class ContainerError(ValueError):
    """Report an audio file that cannot be read in full."""


def check_wav_size(notes: str) -> None:
    """Refuse a wav that is shorter than its header states, by the notes of
    libsndfile.

    It trusts the size of the file more than the header, and only notes the
    difference. Sizes near the limit are what programs write that stream and do
    not know better.
    """
    sizes = re.search(r"^data : (\d+) \(should be (\d+)\)", notes, re.M)
    if sizes and int(sizes[2]) < int(sizes[1]) < 2**31 - 2**16:
        raise ContainerError(
            f"cut short, {sizes[2]} of {sizes[1]} bytes of audio."
        )


def check_single(head: bytes, data: BinaryIO) -> None:
    """Refuse a cut Ogg file, and recordings that are joined end to end; ``head``
    are the first four bytes, after which the file is to be read."""
    joined = False
    if head == b"OggS":
        joined = _walk_ogg(data)
    elif head == b"RIFF":
        data.seek(8 + int.from_bytes(data.read(4), "little"))
        joined = data.read(5).lstrip(b"\0").startswith(b"RIFF")
    elif head == b"fLaC":
        joined = _contains(data, b"fLaC\0\0\0\x22")
    if joined:
        raise ContainerError(JOINED)


def _contains(data, pattern):
    """Return whether the rest of a file contains some bytes."""
    overlap = b""
    while block := data.read(2**20):
        if pattern in overlap + block:
            return True
        overlap = block[1 - len(pattern) :]
    return False


def _walk_ogg(data):
    """Return whether a stream follows the end of another (RFC 3533)."""
    position, flags, ended = 0, 0, False
    while True:
        data.seek(position)
        header = data.read(27)
        if len(header) < 27 or not header.startswith(b"OggS"):
            break
        flags = header[5]
        if flags & 2 and ended:
            return True
        ended = ended or bool(flags & 4)
        segments = data.read(header[26])
        position += 27 + len(segments) + sum(segments)
    size = data.seek(0, os.SEEK_END)
    if position > size or not flags & 4:
        raise ContainerError(
            "cut short, its last page does not end the stream."
        )
    return False
