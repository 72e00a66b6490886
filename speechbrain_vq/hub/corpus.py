"""What a model was trained on, and an utterance of it to show.

Authors
 * speechbrain_vq authors 2026
"""

import json
import logging
import pathlib
from typing import Any, NamedTuple

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.manifests import read_corpus

logger = logging.getLogger(__name__)

# By what corpus.json calls them. The others are a user's own.
NAMES = {
    "minispeech": "MiniSpeech",
    "librispeech": "LibriSpeech",
    "vctk": "VCTK",
    "wsj": "WSJ",
    "festvox-ru": "festvox-ru",
}
# In the folder of a run: what its recipe found, which stays true wherever the
# run goes and whatever becomes of the manifests.
NOTE = "trained_on.json"


class Corpus(NamedTuple):
    """What a model was trained on.

    Arguments
    ---------
    known : bool
        Whether anything is known of it.
    name : str, optional
        None: somebody's own recordings.
    minutes : float, optional
        How much of it, where known.
    languages : tuple
        Codes of its languages.
    example : pathlib.Path, optional
        An utterance of the test set that may be passed on.
    """

    known: bool = False
    name: str | None = None
    minutes: float | None = None
    languages: tuple[str, ...] = ()
    example: pathlib.Path | None = None


def find_corpus(training: dict[str, Any], run_folder: pathlib.Path) -> Corpus:
    """The corpus of a run, by its note or the manifests that its yaml names.

    Only MiniSpeech gives an example by itself: its speech is made by this
    project, with voices of nobody. A recording of a person is passed on when
    somebody says so, and not because a model was made of it.

    Arguments
    ---------
    training : dict
        The yaml of the run.
    run_folder : pathlib.Path
        Its folder.

    Returns
    -------
    Corpus
        Nothing known in it where the manifests are gone, which is logged
        where there should be some.
    """
    if (run_folder / NOTE).is_file():
        return _read_note(run_folder / NOTE)
    corpus = _by_manifests(training, run_folder)
    if not corpus.known and "sample_rate" in training:
        logger.warning(
            "The card cannot say what the model was trained on: the manifests "
            "were not found. Run the export where the recipe was run."
        )
    return corpus


def note_corpus(training: dict[str, Any], run_folder: pathlib.Path) -> None:
    """Notes the corpus of a run in its folder, for exports later and from
    elsewhere.

    Arguments
    ---------
    training : dict
        The hyperparameters of the run.
    run_folder : pathlib.Path
        Its folder.
    """
    corpus = _by_manifests(training, run_folder)
    if not corpus.known:
        return
    note = {**corpus._asdict(), "example": None}
    if corpus.example is not None:
        note["example"] = str(corpus.example.resolve())
    text = json.dumps(note, indent=2) + "\n"
    with atomic_write(run_folder / NOTE) as partial:
        partial.write_text(text, encoding="utf-8")


def _by_manifests(training, run_folder):
    named = [training.get(k) for k in ("manifest_folder", "data_folder")]
    named = [pathlib.Path(name) for name in named if isinstance(name, str)]
    # A run that was moved takes its manifests along.
    folders = [run_folder / folder.name for folder in named[:1]]
    # What is named is meant from where the run was started.
    root = _started_in(training, run_folder)
    for folder in folders + [root / folder for folder in named]:
        if (folder / "corpus.json").is_file():
            return _read_corpus(folder)
    return Corpus()


def _started_in(training, run_folder):
    """Where a run was started, if it still lies where its yaml says; else
    here."""
    place = pathlib.Path(str(training.get("output_folder") or ""))
    parts = run_folder.resolve().parts
    number = len(place.parts)
    if number and not place.is_absolute() and parts[-number:] == place.parts:
        return pathlib.Path(*parts[:-number])
    return pathlib.Path()


def _read_note(path: pathlib.Path) -> Corpus:
    note = json.loads(path.read_text("utf-8"))
    example = note["example"] and pathlib.Path(note["example"])
    note["example"] = example if example and example.is_file() else None
    return Corpus(**{**note, "languages": tuple(note["languages"])})


def _read_corpus(folder: pathlib.Path) -> Corpus:
    about = read_corpus(folder)
    name = NAMES.get(about.get("corpus"))
    path = folder / "test.json"
    test = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    languages = {item.get("lang") for item in test.values()} - {None, ""}
    example = None
    if name == "MiniSpeech" and test:
        root = str(folder / about.get("data_root", "."))
        wav = next(iter(test.values()))["wav"]
        example = pathlib.Path(wav.format(data_root=root))
        example = example if example.is_file() else None
    minutes, languages = about.get("minutes"), tuple(sorted(languages))
    return Corpus(True, name, minutes, languages, example)
