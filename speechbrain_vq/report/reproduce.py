"""Describe how to reproduce a run: its command and changes to the yaml."""

import pathlib
import re
import shlex
from typing import Any, NamedTuple

from hyperpyyaml.core import recursive_update

from speechbrain_vq.presets import preset_path
from speechbrain_vq.recipe_files import load, read_recipe, recipe_path
from speechbrain_vq.versions import versions

from .summary import Summary

# Keys that do not affect the training.
_PATHS = ("data_folder", "output_folder", "manifest_folder", "save_folder")
# Written by a run on a folder of recordings.
COMMAND_FILE = "command.txt"
_ORIGIN = re.compile(r"^# Generated .* from:\s*^# (.+)$", re.MULTILINE)


class Change(NamedTuple):
    """Key of a run's yaml, its value, and the value in the recipe or preset."""

    key: str
    value: Any
    default: Any


def changes(summary: Summary) -> list[Change]:
    """List the scalars in a run's yaml that differ from its recipe and preset;
    empty if these are unknown."""
    hparams, changed = summary.run.hparams, []
    recipe = _recipe_yaml(summary.run)
    if recipe is not None:
        for key, default in recipe[1].items():
            value = hparams.get(key, default)
            # Expressions such as `!ref` change only with the keys they use.
            is_own = _is_scalar(value) and not _is_tagged(default)
            if is_own and value != default and key not in _PATHS:
                changed.append(Change(key, value, default))
    if summary.preset and isinstance(hparams.get("vq"), dict):
        try:
            preset = load(preset_path(summary.preset).read_text("utf-8"))
        except ValueError:
            return changed
        for key, value in hparams["vq"].items():
            if _is_scalar(value) and value != preset.get(key, value):
                changed.append(Change(f"vq.{key}", value, preset[key]))
    return changed


def command(summary: Summary) -> str | None:
    """Return the command that repeats a run: the recorded one, or one with its
    recipe and changes, or None if both are unknown."""
    recorded = summary.run.folder / COMMAND_FILE
    if recorded.is_file():
        words = shlex.split(recorded.read_text("utf-8"))
        return _wrap_options(shlex.join(words[:3]), words[3:])
    section = summary.run.hparams.get("inference") or {}
    recipe = _recipe_yaml(summary.run)
    if not section.get("recipe") or recipe is None:
        return None
    options = [f"--data_folder={summary.run.hparams.get('data_folder')}"]
    if recipe[0].name != "train.yaml":
        options.insert(0, f"--config={recipe[0].name}")
    options += [
        f"--{c.key}={c.value}"
        for c in changes(summary)
        if not c.key.startswith("vq.")
    ]
    return _wrap_options(f"speechbrain-vq train {section['recipe']}", options)


def facts(summary: Summary) -> list[tuple[str, Any]]:
    """Return what a run depends on besides its yaml, as names and values."""
    rows = {"seed": summary.seed}
    if summary.run is not None:
        corpus = summary.run.corpus
        if corpus.known:
            rows["corpus"] = corpus.name or "own recordings"
            if corpus.minutes is not None:
                rows["corpus"] += f", {corpus.minutes:g} minutes"
        rows["trained with"] = summary.run.results.get("versions")
    rows["report by"] = versions("speechbrain")
    return [(name, row) for name, row in rows.items() if row is not None]


def _wrap_options(start, options):
    return " \\\n    ".join([start, *map(shlex.quote, options)])


def _recipe_yaml(run):
    """Find the recipe's yaml that a run used. Return its path and values."""
    section = run.hparams.get("inference") or {}
    head = (run.folder / "hyperparams.yaml").read_text("utf-8")[:2000]
    origin = _ORIGIN.search(head)
    name = pathlib.Path(origin[1].strip()).name if origin else "train.yaml"
    try:
        folder = recipe_path(f"{section['recipe']}/train.py").parent / "hparams"
        # For a variant, SpeechBrain records the file that its includes end at,
        # which may belong to another recipe.
        path = folder / name if (folder / name).is_file() else None
        path = path or folder / "train.yaml"
        _, values, overrides = read_recipe(str(path))
    except (KeyError, ValueError, OSError):
        return None
    recursive_update(values, overrides)
    return path, values


def _is_scalar(value):
    return isinstance(value, str | int | float | None)


def _is_tagged(value):
    return hasattr(value, "tag") and value.tag.value is not None
