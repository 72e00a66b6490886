"""Audio files through the tokens and back.

Authors
 * speechbrain_vq authors 2026
"""

import logging
import os
import pathlib
from collections.abc import Callable, Iterable

from tqdm import tqdm

from .bulk import Tokenized
from .files import audio_endings, find_audio
from .tokenizer import VQTokenizer

logger = logging.getLogger(__name__)


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
    return each_file(
        places, folder, tokenizer.reconstruct_file, overwrite, progress
    )


def each_file(
    places: Iterable[str | os.PathLike],
    output: str | os.PathLike,
    write: Callable[[pathlib.Path, pathlib.Path], object],
    overwrite: bool = False,
    progress: bool = False,
) -> Tokenized:
    """Has a file written for each audio file.

    Arguments
    ---------
    places : iterable of path
        Audio files and folders of them.
    output : path
        The folder for the wav files; of one audio file also a file, such as
        ``NAME.wav``. It may lie in a folder of audio files: what is in it is
        not taken for one of them.
    write : callable
        Is given the path of a file and that of the one to write.
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
        If two files would be written under one name, or one over itself, or
        several are to be one file.
    """
    names = _names(find_audio(places), pathlib.Path(output))
    there = {path for path in names.values() if path.exists()}
    there = set() if overwrite else there
    if there:
        logger.warning(
            "%d of %d files in %s were there already, and stay as they are: "
            "to do them anew, overwrite them.",
            len(there),
            len(names),
            output,
        )
    bad = {}
    for path, written in tqdm(names.items(), disable=not progress):
        if written not in there:
            written.parent.mkdir(parents=True, exist_ok=True)
            try:
                write(path, written)
            except ValueError as error:
                said = str(error)
                known = said.startswith(str(path))
                bad[str(path)] = said if known else f"{path}: {said}"
    return Tokenized(len(names) - len(bad), bad, len(there))


def _is_file(output):
    """Whether a name is that of an audio file rather than of a folder."""
    # Those that cannot be written, too: what writes says so.
    known = audio_endings() | {".raw", ".m4a", ".mp4"}
    return output.suffix.lower() in known and not output.is_dir()


def _is_earlier(path, name, folder):
    """Whether an earlier run wrote it: into a folder that lies within the one
    that is searched, and where it is found again."""
    searched = path.parents[len(name.parts) - 1].resolve()
    folder = folder.resolve()
    return searched in folder.parents and folder in path.resolve().parents


def _names(found, folder):
    """Which file to write for which."""
    names, taken = {}, {}
    alone = _is_file(folder)
    if alone and len(found) > 1:
        raise ValueError(
            f"{folder} is the name of one file, but there are {len(found)} to "
            "write: name a folder."
        )
    for path, name in found.items():
        if _is_earlier(path, name, folder):
            continue
        output = folder if alone else folder / name.with_suffix(".wav")
        other = taken.setdefault(output, path)
        if other != path or output.resolve() == path.resolve():
            raise ValueError(
                f"{path} would be written as {output}, over {other}: take "
                "them one by one, or name another folder."
            )
        names[path] = output
    return names
