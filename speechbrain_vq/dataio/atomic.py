"""Atomic replacement of files and folders, and a lock between processes."""

import contextlib
import ctypes
import datetime
import os
import pathlib
import socket
import tempfile
from collections.abc import Iterator

from filelock import FileLock, Timeout

# Linux: <fcntl.h> and <linux/fs.h>.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Write a file, in an existing folder, whole or not at all.

    The file is written under the temporary name that this yields, in the same
    folder and unique to this process, and renamed at the end. After an error
    the temporary file is removed, and the previous file is unchanged."""
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def made_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Make a folder and its parents, and remove those that are empty in the
    end."""
    path = pathlib.Path(os.path.abspath(path))
    new = [p for p in (path, *path.parents) if not p.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield path
    finally:
        with contextlib.suppress(OSError):
            for folder in new:
                folder.rmdir()


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Write a folder whole or not at all, by filling the empty one of the same
    name that this yields; see ``replace_folder``."""
    path = pathlib.Path(os.path.abspath(path))
    prefix = f".{path.name}.partial-"
    with (
        made_folder(path.parent) as parent,
        tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as beside,
    ):
        partial = pathlib.Path(beside, path.name)
        partial.mkdir()
        yield partial
        replace_folder(partial, path)


def replace_folder(new: pathlib.Path, target: pathlib.Path) -> None:
    """Replace a folder atomically; the old one ends up at or beside ``new``.

    Python renames a folder only to an empty place. Where the system exchanges
    two names (Linux, on most file systems), a reader or a killed process
    leaves either the old folder or the new one. Elsewhere there is a moment
    without a folder, and the old one is moved to ``<new>.old``.
    """
    if not target.exists():
        os.replace(new, target)
    elif not _exchange(new, target):
        os.replace(target, new.with_name(f"{new.name}.old"))
        os.replace(new, target)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchange two names; False where the system does not offer it."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = [os.fsencode(path) for path in (one, other)]
    folder = ctypes.c_int(_AT_FDCWD)
    return rename(folder, names[0], folder, names[1], _RENAME_EXCHANGE) == 0


def check_writable(folder: str | os.PathLike) -> None:
    """Raise an OSError unless files can be made in an existing folder."""
    try:
        # Permissions alone do not tell: file systems are read-only, or full.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            error.errno, f"cannot be written to ({error.strerror})", str(folder)
        ) from error


@contextlib.contextmanager
def exclusive(path: str | os.PathLike) -> Iterator[None]:
    """Hold a file, in an existing folder, against other processes and threads.

    The lock is on a file beside it, ``.<name>.lock``, which the system releases
    when the process ends (where a file system has no locks, the file itself
    is the lock, and is removed by hand after a kill). Raises a BlockingIOError
    that names the holder if another one writes.
    """
    path = pathlib.Path(path)
    # FileLock takes a folder without room for its file for a held lock.
    check_writable(path.parent)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    holder = path.with_name(f".{path.name}.holder")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        who = ""
        with contextlib.suppress(OSError):
            who = f" ({holder.read_text('utf-8')})"
        raise BlockingIOError(
            f"{path} is being written by another process{who}: wait until it "
            "has ended, or name another output."
        ) from None
    try:
        since = f"{datetime.datetime.now():%Y-%m-%d %H:%M:%S}"
        holder.write_text(
            f"{os.getpid()} on {socket.gethostname()}, since {since}", "utf-8"
        )
        yield
    finally:
        # Windows does not delete an open file; there it stays, unlocked.
        for file in (holder, lock.lock_file):
            with contextlib.suppress(OSError):
                os.unlink(file)
        lock.release()
