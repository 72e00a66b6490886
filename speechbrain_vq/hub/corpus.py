"""What a model was trained on, and an utterance of it to show.

Authors
 * speechbrain_vq authors 2026
"""

import json
import pathlib
from typing import Any, NamedTuple

# By what corpus.json calls them. The others are a user's own.
NAMES = {"minispeech": "MiniSpeech"}


class Corpus(NamedTuple):
    """What a model was trained on.

    Arguments
    ---------
    name : str, optional
        None: somebody's own recordings.
    minutes : float, optional
        How much of it, where known.
    languages : tuple
        Codes of its languages.
    example : pathlib.Path, optional
        An utterance of the test set that may be passed on.
    """

    name: str | None = None
    minutes: float | None = None
    languages: tuple[str, ...] = ()
    example: pathlib.Path | None = None


def find_corpus(training: dict[str, Any], run_folder: pathlib.Path) -> Corpus:
    """The corpus of a run, by the manifests that its yaml names.

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
        Nothing in it where the manifests are gone.
    """
    named = training.get("manifest_folder"), training.get("data_folder")
    folders = [pathlib.Path(name) for name in named if isinstance(name, str)]
    # A run that was moved takes its manifests along.
    for folder in [run_folder / f.name for f in folders[:1]] + folders:
        if (folder / "corpus.json").is_file():
            return _read_corpus(folder)
    return Corpus()


def _read_corpus(folder: pathlib.Path) -> Corpus:
    about = json.loads((folder / "corpus.json").read_text("utf-8"))
    name = NAMES.get(about.get("corpus"))
    path = folder / "test.json"
    test = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    languages = {item.get("lang") for item in test.values()} - {None, ""}
    example = None
    if name and test:
        root = str(folder / about.get("data_root", "."))
        wav = next(iter(test.values()))["wav"]
        example = pathlib.Path(wav.format(data_root=root))
        example = example if example.is_file() else None
    return Corpus(name, about.get("minutes"), tuple(sorted(languages)), example)
