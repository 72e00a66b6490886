"""Check whether a run may resume from the checkpoints in its folder."""

import io
import pathlib
from typing import Any

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

# How long and where: what a run that goes on may change.
FREE = {
    "number_of_steps",
    "number_of_epochs",
    "optimizer_step_limit",
    "ckpt_interval_steps",
    "num_workers",
    "valid_batch_size",
}
PLACES = ("output_folder", "save_folder", "manifest_folder", "train_log")


def check_resume(hparams_file: str, overrides: str, hparams: dict) -> None:
    """Refuse to resume a run with other hyperparameters: its checkpoint would
    be loaded all the same, and its results overwritten.

    Arguments
    ---------
    hparams_file : str
        Yaml file of the new run.
    overrides : str
        Overrides of the new run.
    hparams : dict
        Hyperparameters loaded from both.

    Raises
    ------
    ValueError
        If the folder has a checkpoint of a run with other hyperparameters.
    """
    saved = pathlib.Path(hparams["output_folder"]) / "hyperparams.yaml"
    checkpoints = pathlib.Path(hparams["save_folder"]).glob("CKPT*")
    if not saved.is_file() or next(checkpoints, None) is None:
        return
    with open(hparams_file, encoding="utf-8") as file:
        text = resolve_references(file, overrides).read()
    before, now = _values(saved.read_text(encoding="utf-8")), _values(text)
    changed = [
        f"{key} was {before[key]}, now it is {now[key]}"
        for key in now
        if key in before and now[key] != before[key]
    ]
    if changed:
        raise ValueError(
            f"{saved.parent} holds a run with other values: "
            f"{'; '.join(changed[:5])}. Give the values it had to go on with "
            "it, name another --output_folder, or remove this one."
        )


def _values(text: str) -> dict[str, Any]:
    """Read the plain values of a yaml file and those of the preset."""
    values = YAML().load(io.StringIO(text))
    plain = {
        key: value
        for key, value in values.items()
        if isinstance(value, str | int | float | list | None)
        and key not in (*FREE, *PLACES, "__set_seed")
    }
    preset = values.get("vq") or {}
    return plain | {f"vq[{key}]": _plain(preset[key]) for key in preset}


def _plain(value):
    """Drop the tag of a mapping: what is in it counts."""
    return dict(value) if isinstance(value, dict) else value
