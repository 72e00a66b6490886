"""Audio files through the tokens and back.

Authors
 * speechbrain_vq authors 2026
"""

import os
import pathlib
from collections.abc import Iterable

from tqdm import tqdm

from .bulk import Tokenized
from .files import find_audio
from .tokenizer import VQTokenizer


def reconstruct_files(
    places: Iterable[str | os.PathLike],
    tokenizer: VQTokenizer,
    folder: str | os.PathLike,
    overwrite: bool = False,
    progress: bool = False,
) -> Tokenized:
    """Writes what the tokens keep of audio files, each in its own voice.

    A file is taken whole: an hour needs several GB of memory.

    Arguments
    ---------
    places : iterable of path
        Audio files and folders of them.
    tokenizer : VQTokenizer
        The model.
    folder : path
        Where the wav files go, under the names of the files.
    overwrite : bool
        Whether to do again what is there.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Tokenized
        How many files are done, and which are bad.

    Raises
    ------
    FileNotFoundError
        If there are no audio files, or not one that is named.
    OSError
        If a file cannot be written, as on a full disk.
    ValueError
        If two files would be written under one name, or one over itself.
    """
    names = _names(find_audio(places), pathlib.Path(folder))
    done, bad = 0, {}
    for path, output in tqdm(names.items(), disable=not progress):
        if overwrite or not output.exists():
            output.parent.mkdir(parents=True, exist_ok=True)
            try:
                tokenizer.reconstruct_file(path, output)
            except ValueError as error:
                said = str(error)
                known = said.startswith(str(path))
                bad[str(path)] = said if known else f"{path}: {said}"
                continue
        done += 1
    return Tokenized(done, bad)


def _names(found, folder):
    """Which file to write for which."""
    names, taken = {}, {}
    for path, name in found.items():
        output = folder / name.with_suffix(".wav")
        other = taken.setdefault(output, path)
        if other != path or output.resolve() == path.resolve():
            raise ValueError(
                f"{path} would be written as {output}, over {other}: take "
                "them one by one, or name another folder."
            )
        names[path] = output
    return names
