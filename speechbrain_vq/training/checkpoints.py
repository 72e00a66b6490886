"""Checkpoints as folders: written whole, sealed with checksums, and verified
when read."""

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import shutil

import yaml
from speechbrain.utils.checkpoints import METAFNAME, PARAMFILE_EXT, Checkpoint
from speechbrain.utils.distributed import if_main_process

from speechbrain_vq.versions import check_format

# Of the checkpoints written here. One of a later format is refused.
FORMAT = 1
# What is noted in the meta beside SpeechBrain's and the caller's.
SEAL = "speechbrain_vq"


class DamagedError(Exception):
    """A checkpoint is damaged, as the message says."""


def seal(saved):
    """Note in a checkpoint's meta the checksums of its files, and below the
    meta, as a comment, its own."""
    checksums = {
        path.relative_to(saved.path).as_posix(): _checksum(path)
        for path in saved.path.rglob("*")
        if path.is_file() and path.name != METAFNAME
    }
    version = importlib.metadata.version("speechbrain-vq")
    seal = {"format": FORMAT, "version": version, "checksums": checksums}
    meta = {**saved.meta, SEAL: seal}
    content = yaml.dump(meta).encode()
    own = f"# {_digest(content).hexdigest()}\n"
    (saved.path / METAFNAME).write_bytes(content + own.encode())
    return saved._replace(meta=meta)


def _digest(content=b""):
    return hashlib.blake2b(content, digest_size=16)


def _checksum(path):
    digest = _digest()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def read(folder, verify):
    """Read a checkpoint, and raise ``DamagedError`` where it is not whole.
    Those of other Checkpointers have no checksums to verify."""
    path = folder / METAFNAME
    if not path.is_file():
        raise DamagedError(f"{METAFNAME} is missing")
    content, meta = path.read_bytes(), None
    with contextlib.suppress(ValueError, yaml.YAMLError):
        meta = yaml.safe_load(content)
    time = meta.get("unixtime") if isinstance(meta, dict) else None
    if not isinstance(time, int | float):
        raise DamagedError(f"{METAFNAME} cannot be read")
    seal = meta.get(SEAL, {"format": 0, "checksums": {}})
    text, _, own = content.rpartition(b"# ")
    if SEAL in meta and own != f"{_digest(text).hexdigest()}\n".encode():
        raise DamagedError(f"{METAFNAME} has changed since it was saved")
    check_format(folder, seal["format"], FORMAT, seal.get("version"))
    for name, checksum in seal["checksums"].items() if verify else ():
        if not (folder / name).is_file():
            raise DamagedError(f"{name} is missing")
        if _checksum(folder / name) != checksum:
            raise DamagedError(f"{name} has changed since it was saved")
    files = {p.stem: p for p in folder.glob(f"*{PARAMFILE_EXT}")}
    return Checkpoint(folder, meta, files)


def probe(folder):
    """Why nothing can be written, which torch's writer does not say."""
    try:
        (folder / "probe").write_bytes(bytes(2**20))
    except OSError as error:
        return error


def remove_on_main(folder):
    if if_main_process():
        shutil.rmtree(folder, ignore_errors=True)


def sync(path):
    """Wait until a file, or the names in a folder, are on the disk."""
    if os.name != "posix":  # Windows opens no folder.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Of a file system that has no such thing.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def move(saved, folder, numbered):
    target = folder / saved.path.name
    # From the partial folder, SpeechBrain sees no others of this second.
    base, number = saved.path.name.rsplit("+", 1)
    while numbered and target.exists():
        number = f"{int(number) + 1:0{len(number)}d}"
        target = folder / f"{base}+{number}"
    if target.exists():
        # Deleted from elsewhere, so that half of it is never found.
        os.replace(target, saved.path.parent / "replaced")
    # Older ones are deleted next: a loss of power must not take this one.
    for path in saved.path.rglob("*"):
        sync(path)
    sync(saved.path)
    os.replace(saved.path, target)
    sync(folder)
    files = {k: target / path.name for k, path in saved.paramfiles.items()}
    return saved._replace(path=target, paramfiles=files)
