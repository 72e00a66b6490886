"""Checkpoint folders, written atomically and verified by checksums."""

import contextlib
import errno
import hashlib
import importlib.metadata
import os
import re
import shutil

import yaml
from speechbrain.utils.checkpoints import METAFNAME, PARAMFILE_EXT, Checkpoint
from speechbrain.utils.distributed import if_main_process

from speechbrain_vq.dataio.atomic import replace_folder
from speechbrain_vq.versions import check_format

# Format of the checkpoints written here; later formats cannot be read.
FORMAT = 1
# Key of our entry in the metadata of a checkpoint.
SEAL = "speechbrain_vq"


class DamagedError(Exception):
    """A checkpoint is incomplete, or has changed since it was saved."""


def seal(saved):
    """Add checksums of a checkpoint's files to its metadata file, and one of
    the metadata itself as a comment in the last line."""
    checksums = {
        path.relative_to(saved.path).as_posix(): _checksum(path)
        for path in saved.path.rglob("*")
        if path.is_file() and path.name != METAFNAME
    }
    version = importlib.metadata.version("speechbrain-vq")
    seal = {"format": FORMAT, "version": version, "checksums": checksums}
    meta = {**saved.meta, SEAL: seal}
    content = yaml.dump(meta).encode()
    comment = f"# {_digest(content).hexdigest()}\n"
    (saved.path / METAFNAME).write_bytes(content + comment.encode())
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
    """Read a checkpoint; raise ``DamagedError`` unless it is complete.
    Checkpoints from other Checkpointers have no checksums to verify."""
    path = folder / METAFNAME
    if not path.is_file():
        raise DamagedError(f"{METAFNAME} is missing")
    content, meta = path.read_bytes(), None
    with contextlib.suppress(ValueError, yaml.YAMLError, RecursionError):
        meta = yaml.safe_load(content)
    time = meta.get("unixtime") if isinstance(meta, dict) else None
    if not isinstance(time, int | float):
        raise DamagedError(f"{METAFNAME} cannot be read")
    seal = meta.get(SEAL, {"format": 0, "checksums": {}})
    text, _, digest = content.rpartition(b"# ")
    # A flipped bit may be in our key.
    is_ours = SEAL in meta or re.fullmatch(rb"[0-9a-f]{32}\n", digest)
    if is_ours and digest != f"{_digest(text).hexdigest()}\n".encode():
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
    """Return the OSError raised by writing to a folder, which torch hides."""
    try:
        (folder / "probe").write_bytes(bytes(2**20))
    except OSError as error:
        return error


def remove_on_main(folder):
    """Remove a folder on the main process."""
    if if_main_process():
        shutil.rmtree(folder, ignore_errors=True)


def sync(path):
    """Flush a file, or the entries of a folder, to disk."""
    if os.name != "posix":  # Windows cannot open folders.
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # Not supported by the file system.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def move(saved, folder, numbered):
    """Move a complete checkpoint atomically into the folder of checkpoints."""
    target = folder / saved.path.name
    # Number checkpoints of the same second: SpeechBrain saw only the partial
    # folder.
    base, number = saved.path.name.rsplit("+", 1)
    while numbered and target.exists():
        number = f"{int(number) + 1:0{len(number)}d}"
        target = folder / f"{base}+{number}"
    # Older checkpoints are deleted next, so this one must survive a power
    # failure.
    for path in saved.path.rglob("*"):
        sync(path)
    sync(saved.path)
    replace_folder(saved.path, target)
    sync(folder)
    files = {k: target / path.name for k, path in saved.paramfiles.items()}
    return saved._replace(path=target, paramfiles=files)
