"""Xet on the loopback Hub: hf_xet writes and reads a store of its own.

With a "local" address for the storage server, hf_xet needs no server: it keeps
chunks and shards in a folder. A shard says which sha256 has which Xet hash.
That address is not documented (hf_xet 1.8.0); where it fails, so do the tests
of Xet and nothing else.
"""

import shutil
import struct
import tempfile
from pathlib import Path

RECORD = 48
HASH = 32


def fetch(blobs, folder, sha256, size):
    """Copy a file from hf_xet's store into `blobs`, if it is there."""
    hashes = {}
    for shard in folder.glob("**/shards/*.mdb"):
        hashes.update(read_shard(shard.read_bytes()))
    if sha256 not in hashes:
        return
    import hf_xet

    with tempfile.TemporaryDirectory() as temporary:
        # A copy, since the client's process has locked the store.
        store, path = Path(temporary, "store"), Path(temporary, "file")
        shutil.copytree(folder, store)
        group = hf_xet.XetSession().new_file_download_group(
            endpoint=f"local://{store}"
        )
        with group:
            info = hf_xet.XetFileInfo(hashes[sha256], size)
            group.start_download_file(info, str(path))
        blobs.add(path.read_bytes())


def read_shard(shard):
    """The Xet hash of each sha256 in a shard.

    After a header come the files, in records of 48 bytes: the file's hash,
    flags and number of segments; the segments; as many checks, if flagged; the
    sha256, if flagged. A hash of ones ends them.
    """
    found = {}
    position = RECORD
    while (name := shard[position : position + HASH]) != b"\xff" * HASH:
        flags, segments = struct.unpack_from("<II", shard, position + HASH)
        position += RECORD * (1 + segments * (2 if flags >> 31 else 1))
        if flags >> 30 & 1:
            sha256 = shard[position : position + HASH]
            found[_written(sha256)] = _written(name)
            position += RECORD
    return found


def _written(name):
    """A hash as hf_xet writes it: four little-endian words."""
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", name))
