"""Audio files that a container's own structure shows to be cut short, or to
hold several recordings end to end: libsndfile reads the first part of them
without an error."""

import math
import os
import re
from typing import BinaryIO

JOINED = (
    "holds several recordings end to end, of which only the first can be "
    "read. Split it, or convert it to one wav or flac."
)


class ContainerError(ValueError):
    """Report an audio file that cannot be read in full."""


# What libsndfile notes of a size that is not that of the file: of wav, aiff, au,
# svx, w64 and rf64.
_SIZES = re.compile(
    r"^ *(?:data|SSND|Data Size|BODY|riff|Riff size) *: (\d+) "
    r"\(should be (\d+)\)",
    re.M,
)
# Of a wav, rf64 or aiff in which no chunk follows the audio where one should
# be: its length and the place.
_NO_CHUNK = re.compile(
    r"^Length : (\d+)\n(?:RIFF|RF64|FORM).*"
    r"Unknown chunk marker(?: \(\w+\))? at position (0x[0-9A-F]+|\d+)",
    re.M | re.S,
)
# sox writes it where it knows no size, and others write more.
_LEAST_UNKNOWN = 0x7F000000
# Heads of formats of which all files, or most, begin with the same 8 bytes.
_HEADS = (b"fLaC", b".snd", b"caff", b"RF64", b"riff", b"NIST")
_NIST_COUNT = re.compile(
    rb"^(?:sample_count|channel_count|sample_n_bytes) -i (\d+)", re.M
)


def check_size(notes: str) -> None:
    """Refuse a file that holds less than its header states, or much more, by
    the notes of libsndfile.

    It trusts the size of the file more than the header, and only notes the
    difference.
    """
    for stated, there in _SIZES.findall(notes):
        if int(there) < int(stated) < _LEAST_UNKNOWN:
            raise ContainerError(
                f"cut short, {there} of {stated} bytes of audio."
            )
    if found := _NO_CHUNK.search(notes):
        length, end = (int(number, 0) for number in found.groups())
        # Tags of another kind may follow.
        if length - end > min(max(end // 10, 2**10), 2**16):
            raise ContainerError(
                f"its header states an end after {end} bytes, and "
                f"{length - end} more follow, as where a recorder was stopped. "
                "Write a new header, as with `sox --ignore-length`."
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
    elif head in _HEADS:
        start = data.read(4)
        if head == b"NIST":
            _check_nist(data)
        joined = _contains(data, head + start)
    if joined:
        raise ContainerError(JOINED)


def _check_nist(data):
    """Refuse a SPHERE file that ends before its samples, of which libsndfile
    notes nothing, and leave it open after its header of 1024 bytes."""
    header = data.read(1024 - 8)
    counts = [int(number) for number in _NIST_COUNT.findall(header)]
    there = data.seek(0, os.SEEK_END) - 1024
    # Compressed ones, which libsndfile does not read, say that it is embedded.
    if b"embedded" not in header and there < math.prod(counts):
        raise ContainerError(
            f"cut short, {there} of {math.prod(counts)} bytes of audio."
        )
    data.seek(1024)


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
