"""Read the folder of a training run: its yaml, checkpoints, results, corpus."""

import functools
import logging
import math
import pathlib
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from hyperpyyaml import resolve_references
from ruamel.yaml.comments import CommentedMap
from speechbrain.utils.checkpoints import Checkpoint

from speechbrain_vq._names import unknown_name
from speechbrain_vq.dataio.manifests import (
    data_root,
    manifests_digest,
    read_corpus,
    read_json,
    write_json,
)
from speechbrain_vq.hub.folder import HPARAMS
from speechbrain_vq.recipe_files import load
from speechbrain_vq.training.checkpoints import SEAL
from speechbrain_vq.training.resume import AtomicCheckpointer

logger = logging.getLogger(__name__)

# Titles by the name in corpus.json. Any other corpus is the user's own.
CORPORA = {
    "minispeech": "MiniSpeech",
    "librispeech": "LibriSpeech",
    "vctk": "VCTK",
    "wsj": "WSJ",
    "festvox-ru": "festvox-ru",
    "DebianSpeech": "DebianSpeech",
}
# Written when the recipe has prepared the manifests, so that the corpus stays
# known if the run is moved or the manifests are deleted.
CORPUS_FILE = "trained_on.json"


class Corpus(NamedTuple):
    """Training data of a run: whether it is known, the name of the corpus (None
    for the user's own recordings), minutes of speech, language codes, an
    utterance of the test set that may be published, and a hash of the
    manifests, which other runs may replace."""

    known: bool = False
    name: str | None = None
    minutes: float | None = None
    languages: tuple[str, ...] = ()
    example: pathlib.Path | None = None
    digest: str | None = None


class Run:
    """Output folder of a training run, with its yaml."""

    def __init__(self, folder: str | pathlib.Path, hparams: CommentedMap):
        self.folder = pathlib.Path(folder)
        self.hparams = hparams

    @classmethod
    def open(cls, folder: str | pathlib.Path) -> "Run":
        """Open the folder of a run. References in its yaml are resolved, since
        it may not have been written by ``create_experiment_directory``."""
        path = pathlib.Path(folder) / HPARAMS
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is not the folder of a run: it has no {HPARAMS}."
            )
        text = path.read_text(encoding="utf-8")
        if "!ref" in text:
            with open(path, encoding="utf-8") as file:
                text = resolve_references(file).getvalue()
        return cls(folder, load(text))

    @functools.cached_property
    def checkpoints(self) -> list[Checkpoint]:
        """Checkpoints after the warm-up, or all if there are none."""
        checkpoints = self._all_checkpoints
        return [c for c in checkpoints if not in_warmup(c)] or checkpoints

    @property
    def latest(self) -> Checkpoint:
        """Latest checkpoint, the one that a Brain tests."""
        return max(
            self.checkpoints, key=lambda c: (c.meta["unixtime"], c.path.name)
        )

    def find_checkpoint(
        self,
        min_key: str | None = None,
        max_key: str | None = None,
        name: str | pathlib.Path | None = None,
    ) -> Checkpoint:
        """Find a checkpoint by name or path, or the one among ``checkpoints``
        with the lowest or highest value of a metric, by default the latest.

        Raises
        ------
        FileNotFoundError, ValueError
            If there is no such checkpoint or metric, or more than one argument
            is given.
        """
        if sum(choice is not None for choice in (min_key, max_key, name)) > 1:
            raise ValueError(
                "Only one of min_key, max_key and checkpoint may be given."
            )
        if name is not None:
            name = pathlib.Path(name).name
            by_name = {c.path.name: c for c in self._all_checkpoints}
            if name not in by_name:
                raise FileNotFoundError(
                    f"There is no checkpoint {name}. There are "
                    f"{', '.join(sorted(by_name))}."
                )
            return by_name[name]
        if min_key is not None:
            return min(self._with_key(min_key), key=lambda c: c.meta[min_key])
        if max_key is not None:
            return max(self._with_key(max_key), key=lambda c: c.meta[max_key])
        return self.latest

    @functools.cached_property
    def results(self) -> dict[str, Any]:
        """Test metrics; empty if there was no test."""
        path = self.folder / "results.json"
        return read_json(path) if path.is_file() else {}

    @functools.cached_property
    def corpus(self) -> Corpus:
        """Training data, according to the recipe's note or the manifests.

        Only MiniSpeech has an example, since its speech is synthetic. Human
        speech is published only if the user names a recording."""
        path = self.folder / CORPUS_FILE
        if path.is_file():
            note = read_json(path)
            example = pathlib.Path(note["example"] or "")
            note["example"] = example if example.is_file() else None
            return Corpus(**{**note, "languages": tuple(note["languages"])})
        corpus = self._read_manifests(self.manifest_folders())
        if not corpus.known and "sample_rate" in self.hparams:
            logger.warning(
                "The card cannot name the training data: the manifests were "
                "not found. Run the export where the recipe was run."
            )
        return corpus

    def write_corpus(self) -> None:
        """Write a note on the training data for later exports. Raises
        ValueError if the run has checkpoints of a training on other data."""
        corpus = self._read_manifests(self._folders())
        if not corpus.known:
            return
        has_begun = next(self._save_folder.glob("CKPT*"), None) is not None
        if has_begun and self._digest not in (None, corpus.digest):
            raise ValueError(
                f"The data has changed since the run in {self.folder} began: "
                "its test set might include training data. Restore the data, "
                "or choose another folder for the run (--output_folder)."
            )
        example = corpus.example and str(corpus.example.resolve())
        note = {**corpus._asdict(), "example": example}
        write_json(self.folder / CORPUS_FILE, note, indent=2)

    @property
    def _save_folder(self) -> pathlib.Path:
        saved = pathlib.Path(self.hparams.get("save_folder", "save"))
        # If the run was moved, save_folder may belong to another run by now.
        folder = self.folder / saved.name
        return folder if folder.is_dir() else saved

    @functools.cached_property
    def _all_checkpoints(self) -> list[Checkpoint]:
        folder, checkpoints = self._save_folder, []
        if folder.is_dir():
            checkpoints = AtomicCheckpointer(folder).list_checkpoints()
        if not checkpoints:
            is_model = (self.folder / "config.json").is_file()
            raise FileNotFoundError(
                f"{self.folder} is an exported model, not a run."
                if is_model
                else f"There is no checkpoint in {folder}."
            )
        return checkpoints

    def _with_key(self, key: str) -> list[Checkpoint]:
        metas = ((c, c.meta.get(key, math.nan)) for c in self.checkpoints)
        checkpoints = [c for c, value in metas if not math.isnan(value)]
        if not checkpoints:
            keys = {k for c in self.checkpoints for k in c.meta} - {SEAL}
            raise ValueError(unknown_name("metric", key, sorted(keys)))
        return checkpoints

    def manifest_folders(self) -> Iterator[pathlib.Path]:
        """Yield the folders in the yaml that may contain the manifests."""
        expected = self._digest
        for path in self._folders():
            if expected in (None, manifests_digest(path)):
                yield path

    @property
    def _digest(self) -> str | None:
        """Hash of the manifests that the run was trained on, if known."""
        note = self.folder / CORPUS_FILE
        return read_json(note).get("digest") if note.is_file() else None

    def _folders(self) -> Iterator[pathlib.Path]:
        """Yield the folders of manifests in the yaml, whatever their data."""
        for key in ("manifest_folder", "data_folder"):
            yield pathlib.Path(str(self.hparams.get(key)))

    def _read_manifests(self, folders: Iterable[pathlib.Path]) -> Corpus:
        """Read the corpus from the first of the folders that has one."""
        for folder in folders:
            about, path = read_corpus(folder), folder / "test.json"
            if about:
                break
        else:
            return Corpus()
        name, example = CORPORA.get(about.get("corpus")), None
        items = list(read_json(path).values()) if path.is_file() else []
        languages = {item.get("lang") for item in items} - {None, ""}
        if name == "MiniSpeech" and items:
            wav = items[0]["wav"].format(data_root=data_root(folder))
            example = pathlib.Path(wav) if pathlib.Path(wav).is_file() else None
        languages = tuple(sorted(languages))
        about = name, about.get("minutes"), languages, example
        return Corpus(True, *about, manifests_digest(folder))


def read_state(checkpoint: Checkpoint, name: str) -> dict[str, Any]:
    """Read the state dict of a module from a checkpoint, on the CPU."""
    path = checkpoint.path / f"{name}.ckpt"
    if not path.is_file():
        raise FileNotFoundError(
            f"The checkpoint lacks {path.name}: add each module to the "
            "Checkpointer as a recoverable with the module's name."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def read_trainer_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the states of ``trainer`` and ``monitors`` that ``VQMixin`` saves;
    empty for a Brain without ``VQMixin``."""
    if not (checkpoint.path / "codebook_trainer.ckpt").is_file():
        return {}
    return read_state(checkpoint, "codebook_trainer")


def in_warmup(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint was saved during the warm-up of a quantizer.

    ``AtomicCheckpointer`` records it in the meta. Other Checkpointers of a VQ
    Brain save it in the trainer's state. Runs of version 0.1 have it in the
    states of their quantizers, see ``validate.find_problems``."""
    if checkpoint.meta.get("vq_warmup"):
        return True
    trainer = read_trainer_state(checkpoint).get("trainer", {})
    return any(s["bypass"] for s in trainer.get("quantizers", {}).values())
