"""Unpack Debian packages fetched with ``apt-get download``."""

import pathlib
import subprocess

from speechbrain_vq.dataio.manifests import PathLike


def unpack(package: pathlib.Path, folder: PathLike) -> None:
    """Unpack the files of a package (``NAME_VERSION_ARCH.deb``) to a folder
    with ``dpkg-deb``, which every Debian and Ubuntu has."""
    command = ["dpkg-deb", "--extract", str(package), str(folder)]
    process = subprocess.run(command, capture_output=True, text=True)
    if process.returncode != 0:
        error = process.stderr.strip().splitlines()[-1]
        raise ValueError(
            f"{package} cannot be unpacked: {error}. Fetch it again; "
            f"{how_to_get(package)}."
        )


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
