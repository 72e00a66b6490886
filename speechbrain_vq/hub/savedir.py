"""Copy the files of a model to the folder of the caller."""

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
    """Copy the files of one commit of a model to a folder of the caller.

    ``savedir`` is a new or empty folder, or one that this function made;
    without ``names`` the whole folder is copied. Files of the same commit of
    ``origin`` are not copied again unless ``fresh``.

    Raises
    ------
    FileExistsError
        If the folder holds other files, or is a file.
    """
    savedir = savedir.expanduser().resolve()
    if savedir.exists() and not savedir.is_dir():
        raise FileExistsError(
            f"savedir {savedir} is a file: name a new or an empty folder."
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
            f"savedir {savedir} holds other files, which would be lost: name "
            "a new or an empty folder."
        )
    with atomic_folder(savedir) as new:
        if names is None:
            shutil.copytree(folder, new, dirs_exist_ok=True)
        copy_files(folder, new, names or ())
        (new / MARK).write_text(text)
    return savedir
