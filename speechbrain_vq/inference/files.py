"""Process many audio files: one wav file written for each."""

import os
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tqdm import tqdm

from speechbrain_vq.dataio.atomic import made_folder
from speechbrain_vq.dataio.audio import audio_endings, find_audio
from speechbrain_vq.dataio.waveforms import read_comment

from .tokenizer import VQTokenizer


class FileResults(NamedTuple):
    """Results of processing many files.

    ``done`` is the number of files with a result, those of an earlier run
    included; ``bad`` has the reason for each file without one, by path;
    ``existing`` is the number of results that existed before and were left.
    """

    done: int
    bad: dict[str, str]
    existing: int = 0


def reconstruct_files(
    places: Iterable[str | os.PathLike],
    tokenizer: VQTokenizer,
    folder: str | os.PathLike,
    overwrite: bool = False,
    progress: bool = False,
) -> FileResults:
    """Resynthesize audio files from their tokens, each in its own voice.

    A file is processed whole: an hour of audio needs several GB of memory.

    Arguments
    ---------
    places : iterable of path
        Audio files and folders of them.
    tokenizer : VQTokenizer
        The model.
    folder : path
        Output folder; its wav files have the names of the audio files.
    overwrite : bool
        Whether to overwrite existing wav files.
    progress : bool
        Whether to show a progress bar.

    Returns
    -------
    FileResults
        Number of files done, and the reasons for the others.

    Raises
    ------
    ValueError, OSError
        If there are no audio files, two wav files would have one name, one
        would overwrite its source, or one cannot be written.
    """
    write, made_by = tokenizer.reconstruct_file, tokenizer.made_by()
    return process_files(places, folder, write, made_by, overwrite, progress)


def process_files(
    places: Iterable[str | os.PathLike],
    output: str | os.PathLike,
    write: Callable[[pathlib.Path, pathlib.Path], object],
    made_by: str,
    overwrite: bool = False,
    progress: bool = False,
) -> FileResults:
    """Write a wav file for each audio file; see ``reconstruct_files``.

    ``output`` is a folder, for a single audio file also a file, such as
    ``NAME.wav``. It may lie in a folder of audio files: earlier outputs are not
    processed again. ``write`` gets the path of an audio file and that of the
    wav, in which it leaves the comment ``made_by``.
    """
    outputs = _output_paths(find_audio(places), pathlib.Path(output))
    existing = {p for p in outputs.values() if p.exists() and not overwrite}
    for path in sorted(existing):
        comment = read_comment(path)
        if comment not in ("", made_by):
            raise ValueError(
                f"{path} was made by {comment}, and now it is {made_by}. Name "
                "another folder (--out), or overwrite it (--overwrite)."
            )
    bad = {}
    for path, target in tqdm(
        outputs.items(), unit="file", disable=None if progress else True
    ):
        if target in existing:
            continue
        try:
            with made_folder(target.parent):
                write(path, target)
        except ValueError as error:
            reason = str(error)
            named = reason.startswith(str(path))
            bad[str(path)] = reason if named else f"{path}: {reason}"
    return FileResults(len(outputs) - len(bad), bad, len(existing))


def _is_earlier_output(path, name, output):
    """Return whether a file was found in the output folder."""
    searched = path.parents[len(name.parts) - 1].resolve()
    output = output.resolve()
    return searched in output.parents and output in path.resolve().parents


def _output_paths(files, output):
    """Map audio files to the wav files to write."""
    paths, sources = {}, {}
    # With formats that cannot be written: writing them gives the error.
    known = audio_endings() | {".raw", ".m4a", ".mp4"}
    single = output.suffix.lower() in known and not output.is_dir()
    if single and len(files) > 1:
        raise ValueError(
            f"{output} is the name of one file, but there are {len(files)} to "
            "write: name a folder."
        )
    for path, name in files.items():
        if _is_earlier_output(path, name, output):
            continue
        target = output if single else output / name.with_suffix(".wav")
        if not single and target.parent.resolve() == path.resolve().parent:
            raise ValueError(
                f"{path} would be written beside itself, as {target}, among "
                "the recordings: name a folder elsewhere."
            )
        other = sources.setdefault(target, path)
        if other != path or target.resolve() == path.resolve():
            raise ValueError(
                f"{path} would be written as {target}, over {other}: take "
                "them one by one, or give one of them another name."
            )
        paths[path] = target
    return paths
