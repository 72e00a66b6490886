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
# be, and of an au, which ends with its audio: its length and the place.
_NO_CHUNK = re.compile(
    r"^Length : (\d+)\n(?:RIFF|RF64|FORM).*"
    r"Unknown chunk marker(?: \(\w+\))? at position (0x[0-9A-F]+|\d+)",
    re.M | re.S,
)
_AU = re.compile(
    r"^Length : (\d+)$.*^  Data Offset : (\d+)\n  Data Size   : (\d+)$",
    re.M | re.S,
)
_FLAC_FRAME = re.compile(rb"\xff[\xf8\xf9]")
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
    if found := _NO_CHUNK.search(notes) or _AU.search(notes):
        length, *ends = (int(number, 0) for number in found.groups())
        _check_rest(sum(ends), length - sum(ends))


def _check_rest(end, more):
    """Refuse what goes on after its end, unless by tags of another kind."""
    if more > min(max(end // 10, 2**10), 2**16):
        raise ContainerError(
            f"its header states an end after {end} bytes, and {more} more "
            "follow, as where a recorder was stopped. Write a new header, as "
            "with `sox --ignore-length`."
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
        if head == b"fLaC":
            _check_flac(data)
        if head == b"caff":
            _check_caf(data)
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


def _check_caf(data):
    """Refuse a CAF file in which no chunk follows the audio where one should
    be, and leave it open after the first 8 bytes."""
    end, size = 8, data.seek(0, os.SEEK_END)
    while end < size:
        data.seek(end)
        if not re.fullmatch(b"[a-z]{4}", data.read(4)):
            _check_rest(end, size - end)
            break
        # -1 is up to the end of the file.
        length = int.from_bytes(data.read(8), "big", signed=True)
        end += 12 + length if length >= 0 else size
    data.seek(8)


def _check_flac(data):
    """Refuse a FLAC file whose last frame ends after the samples that its
    header states, and leave it open after the first 8 bytes.

    In the middle of a frame, bytes may look like the header of one; that one
    frame begins where another ends, they do not."""
    sizes = data.read(18)
    block, stated = int.from_bytes(sizes[2:4], "big"), sizes[13:18]
    stated = int.from_bytes(stated, "big") % 2**36
    data.seek(max(data.seek(0, os.SEEK_END) - 2**17, 0))
    tail, ends = data.read() + bytes(16), {}
    for place in reversed(list(_FLAC_FRAME.finditer(tail))):
        start, end = _flac_frame(tail[place.start() :][:16], block)
        if start == end:
            continue
        if stated and ends.get(end, 0) > stated:
            raise ContainerError(
                f"its header states {stated} samples, and "
                f"{ends[end] - stated} more follow. Convert it anew, as with "
                "`flac -d -F`."
            )
        if end in ends:
            break
        ends[start] = end
    data.seek(8)


def _flac_frame(header, block):
    """Return between which samples of its file a frame of FLAC is, of which a
    header that is none has none (RFC 9639, 9.1)."""
    ones, code = 8 - (header[4] ^ 0xFF).bit_length(), header[2] >> 4
    if code == 0 or ones in (1, 8):
        return 0, 0
    end = 4 + max(ones, 1)
    number = header[4] & (0x7F >> ones)
    for byte in header[5:end]:
        number = number << 6 | byte & 0x3F
    if code in (6, 7):
        start, end = end, end + code - 5
        size = int.from_bytes(header[start:end], "big") + 1
    else:
        size = 192 if code == 1 else 576 << code - 2 if code < 6 else 1 << code
    end += {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    checksum = 0
    for byte in header[:end]:
        checksum ^= byte
        for _ in range(8):
            checksum = (checksum << 1 ^ 7 * (checksum >> 7)) & 0xFF
    if checksum != header[end]:
        return 0, 0
    start = number * (1 if header[1] & 1 else block)
    return start, start + size


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
