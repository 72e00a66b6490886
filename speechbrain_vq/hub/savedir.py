"""Copy the files of a model to a folder that the user chose."""

import json
import pathlib
import shutil
from collections.abc import Sequence

from speechbrain_vq.dataio.atomic import atomic_folder

from .folder import MARK, copy_files


def place(
    folder: pathlib.Path,
    savedir: pathlib.Path,
    names: Sequence[str] | None,
    origin: dict[str, str],
    fresh: bool = False,
) -> pathlib.Path:
    """Copy the files of a model to ``savedir``, and return its path.

    ``savedir`` must be new, empty, or written by this function. If ``names`` is
    None, the whole folder is copied. Unless ``fresh`` is set, nothing is copied
    if ``savedir`` already has the files of this commit.

    Raises
    ------
    FileExistsError
        If ``savedir`` is a file, or contains other files.
    """
    savedir = savedir.expanduser().resolve()
    if savedir.exists() and not savedir.is_dir():
        raise FileExistsError(
            f"savedir {savedir} is a file: choose a new or an empty folder."
        )
    if savedir == folder.resolve():
        return folder
    text = json.dumps({**origin, "files": names})
    mark = savedir / MARK
    if mark.is_file():
        if "commit" in origin and mark.read_text() == text and not fresh:
            return savedir
    elif savedir.exists() and any(savedir.iterdir()):
        raise FileExistsError(
            f"savedir {savedir} contains other files, which would be lost: "
            "choose a new or an empty folder."
        )
    with atomic_folder(savedir) as new:
        if names is None:
            shutil.copytree(folder, new, dirs_exist_ok=True)
        copy_files(folder, new, names or ())
        (new / MARK).write_text(text)
    return savedir
