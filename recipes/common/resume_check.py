"""Check whether a run can resume from the checkpoints in its folder."""

import pathlib
from typing import Any

from hyperpyyaml import resolve_references
from ruamel.yaml import YAML

from speechbrain_vq.hub.folder import HPARAMS
from speechbrain_vq.publish import Run
from speechbrain_vq.recipe_files import dump, load

# Hyperparameters that may change when a run resumes.
FREE = {
    "number_of_steps",
    "number_of_epochs",
    "optimizer_step_limit",
    "ckpt_interval_steps",
    "epoch_steps",
    "make_minispeech",
    "num_workers",
    "valid_batch_size",
}
PLACES = ("output_folder", "save_folder", "manifest_folder", "train_log")


def check_resume(hparams_file: str, overrides: str) -> None:
    """Raise ValueError if the output folder contains a run with different
    hyperparameters, whose checkpoint would be loaded and results overwritten."""
    with open(hparams_file, encoding="utf-8") as file:
        hparams = YAML().load(resolve_references(file, overrides).read())
    folder = pathlib.Path(hparams["output_folder"])
    checkpoints = pathlib.Path(hparams["save_folder"]).glob("CKPT*")
    if not (folder / HPARAMS).is_file() or next(checkpoints, None) is None:
        return
    recorded = Run.open(folder).hparams
    # Other sections depend on keys that may change, such as the length.
    sections = set(load(overrides) or ()) - {*FREE, *PLACES, "vq"}
    before, now = (_values(v, sections) for v in (recorded, hparams))
    changed = [
        f"{key} was {before[key]}, now it is {now[key]}"
        for key in now
        if key in before and now[key] != before[key]
    ]
    if changed:
        raise ValueError(
            f"{folder} contains a run with other settings: "
            f"{'; '.join(changed[:5])}. Use the old ones to resume it, choose "
            "another folder (--output_folder), or remove this one."
        )


def _values(values: dict[str, Any], sections: set[str]) -> dict[str, Any]:
    """Select a yaml's plain values, those of the preset, and given sections."""
    plain = {
        key: value
        for key, value in values.items()
        if isinstance(value, str | int | float | list | None)
        and key not in (*FREE, *PLACES, "__set_seed")
    }
    for key in sections & values.keys() - plain.keys():
        plain[key] = dump(values[key]).strip()
    preset = values.get("vq") or {}
    return plain | {f"vq[{key}]": _plain(preset[key]) for key in preset}


def _plain(value):
    """Return a mapping without its yaml tag, to compare only the contents."""
    return dict(value) if isinstance(value, dict) else value
