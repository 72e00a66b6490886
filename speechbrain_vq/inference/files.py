"""Process many audio files, and write a wav file for each."""

import os
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tqdm import tqdm

from speechbrain_vq.dataio.audio import audio_endings, find_audio
from speechbrain_vq.dataio.waveforms import read_comment, with_source

from .tokenizer import VQTokenizer


class FileResults(NamedTuple):
    """Results of processing many files.

    ``done`` is the number of files with a result, including the ``existing``
    results of earlier runs. ``bad`` maps the path of each file without a result
    to the reason.
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

    Files are not split: an hour of audio requires several GB of memory.

    Arguments
    ---------
    places, tokenizer, progress
        See ``tokens.tokenize_to``.
    folder : path
        Output folder; the wav files are named after the audio files.
    overwrite : bool
        Whether to overwrite existing wav files.

    Returns
    -------
    FileResults
        Number of files done, and the reasons for the others.

    Raises
    ------
    ValueError, OSError
        If there are no audio files, or a wav file cannot be written, would
        overwrite its source, or would have the same name as another.
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

    ``output`` is a folder or, for a single audio file, ``NAME.wav``. It may be
    inside a folder of audio files: earlier outputs are not processed again.
    ``write`` takes the paths of an audio file and of its wav file, and writes
    the latter with the comment ``made_by`` and the source.
    """
    sources = _sources_by_output(find_audio(places), pathlib.Path(output))
    existing = {p for p in sources if p.exists() and not overwrite}
    for path in sorted(existing):
        comment = read_comment(path)
        expected = with_source(made_by, sources[path])
        # Version 0.1 did not state the source.
        if comment not in ("", made_by, expected):
            raise ValueError(
                f"{path} was made by {comment or 'another program'}, not by "
                f"{expected}. Choose another folder (--out), or overwrite it "
                "(--overwrite)."
            )
    bad = {}
    for target, path in tqdm(
        sources.items(), unit="file", disable=None if progress else True
    ):
        if target in existing:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(path, target)
        except ValueError as error:
            named = str(error).startswith(str(path))
            bad[str(path)] = str(error) if named else f"{path}: {error}"
    return FileResults(len(sources) - len(bad), bad, len(existing))


def _sources_by_output(files, output):
    """Map the wav files to write to their audio files."""
    sources = {}
    single = output.suffix.lower() in audio_endings() and not output.is_dir()
    if single and len(files) > 1:
        raise ValueError(
            f"{output} is the name of one file, but there are {len(files)} to "
            "write: choose a folder."
        )
    for path, name in files.items():
        searched = path.parents[len(name.parts) - 1].resolve()
        is_within = output.resolve() in path.resolve().parents
        if is_within and searched in output.resolve().parents:
            continue  # An output of an earlier run
        target = output if single else output / name.with_suffix(".wav")
        other = sources.setdefault(target, path)
        if other != path or target.resolve() == path.resolve():
            raise ValueError(
                f"The output for {path}, {target}, would overwrite {other} or "
                "its output: rename one of them, or choose different folders."
            )
    return sources
