"""Unpack Debian packages fetched with ``apt-get download``."""

import pathlib
import re
import shutil
import tarfile
from collections.abc import Iterator
from typing import IO


def unpack(
    package: pathlib.Path, pattern: re.Pattern, folder: pathlib.Path
) -> None:
    """Unpack files of a package (``NAME_VERSION_ARCH.deb``) whose whole path
    matches a pattern. The pattern's first group is the path to write, relative
    to the folder."""
    with open(package, "rb") as file:
        names = []
        for name, size in _members(file, package):
            names.append(name)
            if not name.startswith("data.tar"):
                continue
            if name.endswith(".zst"):
                # As in newer Ubuntu packages. Python reads zstd since 3.14.
                raise ValueError(
                    f"{package} is packed with zstd: unpack it with `dpkg -x "
                    f"{package.name} FOLDER` and give that FOLDER."
                )
            _check_complete(file, package, size)
            _copy_matches(file, package, pattern, folder)
            return
    raise ValueError(
        f"{package} is not a Debian package: it has no data.tar (members: "
        f"{', '.join(names) or 'none'})."
    )


def _members(
    file: IO[bytes], package: pathlib.Path
) -> Iterator[tuple[str, int]]:
    """Yield the name and size of each member of an ar archive, with ``file``
    positioned at it."""
    if file.read(8) != b"!<arch>\n":
        raise ValueError(f"{package} is not a Debian package.")
    while len(header := file.read(60)) == 60:
        name = header[:16].decode("ascii", "replace").strip().rstrip("/")
        size, start = int(header[48:58]), file.tell()
        yield name, size
        # Members start at even offsets.
        file.seek(start + size + size % 2)


def _check_complete(file: IO[bytes], package: pathlib.Path, size: int) -> None:
    remaining = package.stat().st_size - file.tell()
    if remaining < size:
        raise ValueError(
            f"{package} is cut short: it has {remaining} of {size} bytes of "
            f"data. Fetch it again; {how_to_get(package)}."
        )


def _copy_matches(
    file: IO[bytes],
    package: pathlib.Path,
    pattern: re.Pattern,
    folder: pathlib.Path,
) -> None:
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                match = pattern.fullmatch(member.name)
                if match and member.isfile():
                    path = folder / match[1]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with open(path, "wb") as out:
                        shutil.copyfileobj(tar.extractfile(member), out)
    except (tarfile.TarError, EOFError, OSError) as error:
        raise ValueError(
            f"{package} cannot be unpacked: {error}. Fetch it again; "
            f"{how_to_get(package)}."
        ) from error


def how_to_get(*packages: pathlib.Path | str) -> str:
    """Return a sentence, without a period, on how to fetch packages, given by
    name or by file.

    >>> how_to_get("festvox-ru_0.5+dfsg-6_all.deb")
    '`apt-get download festvox-ru` fetches it on Debian and Ubuntu, without being root'
    """
    names = [pathlib.Path(package).name.split("_")[0] for package in packages]
    what = "it" if len(names) == 1 else "them"
    return (
        f"`apt-get download {' '.join(names)}` fetches {what} on Debian and "
        "Ubuntu, without being root"
    )
