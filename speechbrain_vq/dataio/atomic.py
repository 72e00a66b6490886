"""Replace files and folders atomically, and lock them between processes."""

import contextlib
import ctypes
import os
import pathlib
import tempfile
import threading
from collections.abc import Iterator

from filelock import FileLock, Timeout

# Constants of Linux's <fcntl.h> and <linux/fs.h>.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Replace a file atomically; its folder must exist.

    Yields a temporary path to write to. It is in the same folder, is unique to
    this thread, and is renamed at the end. After an error, the temporary file
    is deleted and the previous file is unchanged."""
    path = pathlib.Path(path)
    check_regular(path)
    writer = f"{os.getpid()}-{threading.get_ident()}"
    # File names have at most 255 bytes. Some writers infer the format from the
    # suffix.
    name = f".{path.stem[:50]}.{writer}.partial{path.suffix}"
    partial = path.with_name(name)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def check_regular(path: pathlib.Path) -> None:
    """Raise FileExistsError if a path exists and is not a regular file, such as
    a device or a pipe, which would be replaced by a file."""
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} exists and is not a regular file.")


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Replace a folder atomically, as ``replace_folder`` does. Yields an empty
    folder of the same name to fill."""
    path = pathlib.Path(os.path.abspath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{path.name}.partial-", dir=path.parent
    ) as scratch:
        partial = pathlib.Path(scratch, path.name)
        partial.mkdir()
        yield partial
        replace_folder(partial, path)


def replace_folder(new: pathlib.Path, target: pathlib.Path) -> None:
    """Replace a folder atomically; the old one ends up at or next to ``new``.

    Python cannot rename a folder over one that is not empty. On most Linux
    file systems, the two names are exchanged, so there is always an old or a
    new folder, even after a kill. Elsewhere, the old folder is first moved to
    ``<new>.old``, and for a moment there is none."""
    if not target.exists():
        os.replace(new, target)
    elif not _exchange(new, target):
        os.replace(target, new.with_name(f"{new.name}.old"))
        os.replace(new, target)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchange the names of two folders; return whether this is supported."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    paths = os.fsencode(one), os.fsencode(other)
    folder = ctypes.c_int(_AT_FDCWD)
    return rename(folder, paths[0], folder, paths[1], _RENAME_EXCHANGE) == 0


def check_writable(folder: str | os.PathLike) -> None:
    """Raise an OSError unless files can be created in an existing folder."""
    try:
        # Permissions do not show that a file system is read-only or full.
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(
            error.errno, f"cannot be written to ({error.strerror})", str(folder)
        ) from error


@contextlib.contextmanager
def exclusive(path: str | os.PathLike) -> Iterator[None]:
    """Lock a file against other processes and threads; its folder must exist.

    The lock is a file next to it, ``.<name>.lock``, which the system unlocks
    when the process ends. On a file system without locks, delete it by hand
    after a kill. If the lock is held, raises a BlockingIOError."""
    path = pathlib.Path(path)
    # FileLock would report a read-only folder as a held lock.
    check_writable(path.parent)
    lock = FileLock(path.with_name(f".{path.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(
            f"{path} is being written by another process: wait until it has "
            "finished, or choose another output."
        ) from None
    try:
        yield
    finally:
        # Windows cannot delete an open file, so an unlocked one remains there.
        with contextlib.suppress(OSError):
            os.unlink(lock.lock_file)
        lock.release()
