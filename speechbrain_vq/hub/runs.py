"""What a run leaves in its folder.

Authors
 * speechbrain_vq authors 2026
"""

import json
import math
import pathlib
from typing import Any

import ruamel.yaml
import torch
from ruamel.yaml.comments import CommentedMap
from speechbrain.utils.checkpoints import Checkpoint, Checkpointer

from .folder import HPARAMS


def read_training(run_folder: pathlib.Path) -> CommentedMap:
    """The yaml of a run, as SpeechBrain's ``create_experiment_directory`` left
    it: no reference is to be resolved any more.

    Raises
    ------
    FileNotFoundError
        If the folder is not that of a run.
    """
    path = run_folder / HPARAMS
    if not path.is_file():
        raise FileNotFoundError(
            f"{run_folder} is not the folder of a run: it has no {HPARAMS}."
        )
    return ruamel.yaml.YAML().load(path.read_text(encoding="utf-8"))


def read_results(run_folder: pathlib.Path) -> dict[str, Any]:
    """What the run's test found; nothing where there was none."""
    path = run_folder / "results.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def find_checkpoint(
    run_folder: pathlib.Path,
    training: dict[str, Any],
    min_key: str | None = None,
    max_key: str | None = None,
    name: str | pathlib.Path | None = None,
) -> tuple[Checkpoint, str]:
    """A checkpoint of a run, one past the warm-up if there is any.

    Arguments
    ---------
    run_folder : pathlib.Path
        Its folder.
    training : dict
        Its yaml.
    min_key, max_key : str, optional
        Take the one of the lowest or highest such number in its meta; by
        default the latest.
    name : path, optional
        Take this one.

    Returns
    -------
    tuple
        The checkpoint, and the name of the latest, which is the one that the
        Brain tests.

    Raises
    ------
    FileNotFoundError
        If there is none, or none of that name.
    ValueError
        If none has that number, or more than one choice is given.
    """
    if sum(choice is not None for choice in (min_key, max_key, name)) > 1:
        raise ValueError("Give one of min_key, max_key and checkpoint.")
    known = _checkpoints(run_folder, training)
    trained = [c for c in known if not in_warmup(c)] or known
    latest = max(trained, key=lambda c: (c.meta["unixtime"], c.path.name))
    chosen = latest
    if name is not None:
        chosen = _named(known, pathlib.Path(name).name)
    elif min_key is not None:
        chosen = min(_noting(trained, min_key), key=lambda c: c.meta[min_key])
    elif max_key is not None:
        chosen = max(_noting(trained, max_key), key=lambda c: c.meta[max_key])
    return chosen, latest.path.name


def read_state(checkpoint: pathlib.Path, module: str) -> dict[str, Any]:
    """The state dict of a module in the folder of a checkpoint."""
    path = checkpoint / f"{module}.ckpt"
    if not path.is_file():
        raise FileNotFoundError(
            f"The checkpoint lacks {path.name}: give the Checkpointer every "
            "module as a recoverable of the module's name."
        )
    return torch.load(path, map_location="cpu", weights_only=True)


def in_warmup(checkpoint: Checkpoint) -> bool:
    """Return whether a checkpoint is of the warm-up of a quantizer.

    An ``AtomicCheckpointer`` notes it in the meta, and any Checkpointer of a
    VQ Brain saves it with the trainer's state. Runs of version 0.1 have it in
    the states of their quantizers, which see.
    """
    if checkpoint.meta.get("vq_warmup"):
        return True
    trainer = read_training_state(checkpoint).get("trainer", {})
    states = trainer.get("quantizers", {}).values()
    return any(state["bypass"] for state in states)


def read_training_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """Read the states of ``trainer`` and ``monitors`` that ``VQMixin`` saves in
    a checkpoint; plain Brains save none."""
    path = checkpoint.path / "codebook_trainer.ckpt"
    if not path.is_file():
        return {}
    return torch.load(path, map_location="cpu", weights_only=True)


def _checkpoints(run_folder, training) -> list[Checkpoint]:
    saved = pathlib.Path(training.get("save_folder", "save"))
    # A run that was moved takes its checkpoints along, and another one may
    # have taken its place since.
    folder = run_folder / saved.name
    folder = folder if folder.is_dir() else saved
    known = Checkpointer(folder).list_checkpoints() if folder.is_dir() else []
    if not known:
        raise FileNotFoundError(f"There is no checkpoint in {folder}.")
    return known


def _named(known: list[Checkpoint], name: str) -> Checkpoint:
    for checkpoint in known:
        if checkpoint.path.name == name:
            return checkpoint
    names = ", ".join(sorted(c.path.name for c in known))
    raise FileNotFoundError(f"There is no checkpoint {name}, but {names}.")


def _noting(known: list[Checkpoint], key: str) -> list[Checkpoint]:
    having = [c for c in known if not math.isnan(c.meta.get(key, math.nan))]
    if not having:
        keys = ", ".join(sorted({key for c in known for key in c.meta}))
        raise ValueError(f"No checkpoint notes '{key}', but {keys}.")
    return having
