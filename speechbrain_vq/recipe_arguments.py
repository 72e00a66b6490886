"""Parse the command line of a recipe, without slow imports."""

import functools
import importlib.util
import json
import re
import sys
import tempfile
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote
from warnings import warn

from hyperpyyaml.core import recursive_update
from ruamel.yaml import YAMLError

from speechbrain_vq._names import suggestion, unknown_name
from speechbrain_vq.presets import preset_path
from speechbrain_vq.recipe_files import dump, load, one_line, read_recipe


def parse_arguments(argv: list[str]) -> tuple[str, dict, str]:
    """Parse the command line of a recipe, like ``speechbrain.parse_arguments``.

    The yaml includes a preset under the key ``vq`` and gives its name under
    ``preset``. ``--preset=NAME`` includes another preset, and
    ``--vq='{KEY: VALUE}'`` overrides values of the preset; both may be given.
    Overrides below the yaml's ``!include`` apply to any preset, except in
    sections that it lacks: re-initialization times, for example, do not apply
    to a preset without a schedule.

    The yaml may be a variant of another, see ``recipe_files.read_recipe``.
    Dashes in a key are treated as underscores, and a boolean key without a
    value is true.

    Returns the yaml file (for a variant, the one at the end of its includes),
    the run options and the overrides. Overrides may add keys: load them with
    ``overrides_must_match=False``. Raises ValueError for an invalid or missing
    argument."""
    yaml, run_opts, options = split_arguments(argv)
    hparams_file, recipe, variant = read_recipe(yaml)
    # Yamls of version 0.1 give the name of the preset under ``arm``.
    key = "arm" if "arm" in recipe else "preset"
    for other in {"arm", "preset"} & set(options) - {key}:
        if other == "arm":
            warn("--arm is now --preset", FutureWarning, stacklevel=2)
        options[key] = options.pop(other)
    defaults = {**recipe, **variant}
    for name, value in options.items():
        if name not in defaults:
            hint = suggestion(name, defaults, lambda key: f"--{key}")
            raise ValueError(
                f"No option '--{name}'.{hint} `speechbrain-vq config` shows "
                "all keys of a recipe."
            )
        if value is None and isinstance(defaults[name], bool):
            options[name] = True
        if isinstance(value, str) and _is_list(defaults[name]):
            options[name] = [value]
        if value is not None and name.endswith("_folder"):
            options[name] = str(value)  # A folder may be named 2024.
        _check_value(name, options[name], defaults[name])
    changes = options.get("vq")
    for name in changes if isinstance(changes, dict) else ():
        default = defaults.get(name)
        # A key such as reinit_schedule may refer to the preset.
        if name in defaults and "<vq[" not in getattr(default, "value", ""):
            raise ValueError(f"--vq: {name} is an option of its own, --{name}.")
    for name, default in defaults.items():
        tag = getattr(getattr(default, "tag", None), "value", None)
        if tag == "!PLACEHOLDER" and name not in options:
            raise ValueError(f"--{name}=... is missing: {yaml} requires it.")
    changes, own = options.pop("vq", {}), variant.pop("vq", {})
    include = ""
    if changes or own or key in options or key in variant:
        below = _own_changes(recipe, key)
        recursive_update(below, own)
        name = options.get(key, variant.get(key, recipe[key]))
        preset = _changed_preset(name, changes, below)
        # A preset's own dimension takes precedence over the recipe's.
        dim = load(preset.read_text("utf-8")).get("codebook_dim")
        if dim is not None and "codebook_dim" in defaults:
            options.setdefault("codebook_dim", dim)
        # Quoted, because a space in the path would end the tag.
        include = f"vq: !include:{quote(str(preset))}\n"
    recursive_update(variant, options)
    text = dump(variant) if variant else ""
    return hparams_file, run_opts, text + include


def split_arguments(argv: list[str]) -> tuple[str, dict, dict]:
    """Split the command line of a recipe into its yaml file, run options, and
    the values of keys. Raises ValueError if it cannot be parsed."""
    # SpeechBrain appends a stray word to the previous value, or ignores it.
    for previous, arg in pairwise(argv):
        is_value = previous.startswith("-") and "=" not in previous
        if not arg.startswith("-") and not is_value:
            hint = f": write --{arg}" if re.match(r"\w+=", arg) else ""
            raise ValueError(f"Unexpected argument {arg!r}{hint}.")

    def with_underscores(option):
        """Replace hyphens in the names of options."""
        return "--" + option[1].replace("-", "_")

    argv = [re.sub("^--([^=]*)", with_underscores, arg) for arg in argv]
    yaml, run_opts, overrides = _run_options().from_command_line_args(argv)
    limit = run_opts["optimizer_step_limit"]
    if isinstance(limit, str):  # SpeechBrain does not convert it.
        run_opts = replace(run_opts, optimizer_step_limit=int(limit))
    try:
        options = load(overrides) or {}
    except YAMLError as error:
        raise ValueError(
            f"The options are not valid yaml: {one_line(error)}"
        ) from error
    return yaml, run_opts, options


def format_option(name: str, value) -> str:
    """Format an option of a recipe. A path is quoted, since values are yaml: a
    folder may be named "run #2", or 2024."""
    value = json.dumps(str(value)) if isinstance(value, Path) else value
    return f"--{name}={value}"


def _run_options() -> type:
    """Return SpeechBrain's ``RunOptions``, which parses its command line.

    Importing SpeechBrain takes seconds, so only the file of the class is
    loaded, unless SpeechBrain is already imported.
    """
    if "speechbrain" in sys.modules:
        return sys.modules["speechbrain"].RunOptions
    home = importlib.util.find_spec("speechbrain").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location(
        "run_opts", Path(home, "utils", "run_opts.py")
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.RunOptions


# Keys whose values must be positive if their default is.
_POSITIVE = re.compile(
    r"number_of_|.*(_size|_dim|_rate|_length|channels|_steps|_layers)$|"
    r"(lr|segment|longest|minutes|n_mels|n_fft|stride|num_speakers)$"
)


def _is_list(value) -> bool:
    """Return whether a value is a list, and not the arguments of a tag."""
    tag = getattr(getattr(value, "tag", None), "value", None)
    return isinstance(value, list) and tag is None


def _check_value(name: str, value, default) -> None:
    """Raise ValueError if a key with a numeric default has a value that is not
    a number or is out of range."""
    if value is None or not isinstance(default, int | float):
        return
    if isinstance(default, bool):
        expected, is_valid = "True or False", isinstance(value, int)
    else:
        minimum = ""
        is_valid = isinstance(value, int | float)
        if isinstance(default, int):
            is_valid = is_valid and float(value).is_integer()
        if default >= 0:
            positive = default > 0 and _POSITIVE.match(name)
            minimum = " above 0" if positive else ", 0 or more"
            is_valid = is_valid and (value > 0 if positive else value >= 0)
        kind = "an integer" if isinstance(default, int) else "a number"
        expected = kind + minimum
    if not is_valid:
        raise ValueError(
            f"--{name}={value}: {name} must be {expected}, such as {default}."
        )


def _own_changes(recipe: dict, key: str) -> dict:
    """Return a recipe's overrides of its preset: the values below the
    ``!include`` or, in a yaml written by ``config``, those that differ."""
    if not isinstance(recipe["vq"], dict):
        return {}
    if recipe["vq"].tag.value:
        return recipe["vq"]
    preset = load(preset_path(recipe[key]).read_text("utf-8"))
    changed = {k: v for k, v in recipe["vq"].items() if v != preset.get(k, v)}
    return {
        key: {k: v for k, v in value.items() if v != preset[key].get(k)}
        if isinstance(value, dict) and isinstance(preset[key], dict)
        else value
        for key, value in changed.items()
    }


def _changed_preset(name: str, changes: dict, own: dict) -> Path:
    """Return the file of a preset, or of a copy with the overrides from the
    command line and the recipe."""
    path = preset_path(name)
    if not (changes or own):
        return path
    preset = load(path.read_text("utf-8"))
    if not isinstance(changes, dict):
        raise ValueError(
            f"--vq takes changes to a preset as '{{key: value}}', got {changes}"
        )
    for key, value in changes.items():
        if key not in preset:
            raise ValueError(unknown_name("key of a preset", key, preset))
        is_section = isinstance(preset[key], dict)
        if value is not None and isinstance(value, dict) != is_section:
            raise ValueError(
                f"--vq: {key} of the preset {name!r} cannot be changed to "
                f"{value}; see hparams/{name}.yaml."
            )
    for key, value in own.items():
        # A recipe's own changes of a section need a preset that has it.
        if not isinstance(value, dict) or isinstance(preset.get(key), dict):
            recursive_update(preset, {key: value})
    recursive_update(preset, changes)
    copy = Path(tempfile.mkdtemp(dir=_copies().name)) / path.name
    copy.write_text(dump(preset), "utf-8")
    return copy


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
    """Return the folder of modified presets, which is removed at exit."""
    return tempfile.TemporaryDirectory(prefix="speechbrain_vq-")
