"""A folder takes another's place at once.

Authors
 * speechbrain_vq authors 2026
"""

import ctypes
import os
import pathlib

# Of Linux: <fcntl.h> and <linux/fs.h>.
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2


def replace_folder(new: pathlib.Path, place: pathlib.Path) -> None:
    """Puts a folder in a place; what was there is in the other's place
    afterwards.

    Python can rename a folder to an empty place only. Where the system can
    exchange two names (Linux, on most file systems), whoever looks, or kills,
    finds the old folder or the new one. Elsewhere there is an instant with
    none, and the old one lies beside ``new``.

    Arguments
    ---------
    new : pathlib.Path
        A folder, on the same file system.
    place : pathlib.Path
        Where it goes.
    """
    if not place.exists():
        os.replace(new, place)
    elif not _exchange(new, place):
        old = new.with_name(f"{new.name}.old")
        os.replace(place, old)
        os.replace(new, place)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Exchanges two names, or says that this cannot be done here."""
    try:
        rename = ctypes.CDLL(None).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    names = [os.fsencode(path) for path in (one, other)]
    at = ctypes.c_int(_AT_FDCWD)
    return rename(at, names[0], at, names[1], _RENAME_EXCHANGE) == 0
