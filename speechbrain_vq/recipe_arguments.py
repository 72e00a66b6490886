"""Parse the command line of a recipe, without slow imports."""

import functools
import importlib.util
import inspect
import json
import pydoc
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
from ruamel.yaml.comments import CommentedMap

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
        if not limit.isdecimal():
            raise ValueError(
                f"--optimizer_step_limit={limit}: must be a number of steps."
            )
        run_opts = replace(run_opts, optimizer_step_limit=int(limit))
    names = re.findall(r"^(\w+):", overrides, re.M)
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"--{name} is given twice.")
    try:
        options = load(overrides) or {}
    except YAMLError as error:
        lines = ", ".join(f"--{line}" for line in overrides.split("\n"))
        # Braces are missing, as in --vq='entropy_weight: 0'.
        bare = re.search(r"^(\w+): (\w+: .*)", overrides, re.M)
        hint = f". Is it --{bare[1]}='{{{bare[2]}}}'?" if bare else ""
        raise ValueError(
            f"{lines} is not valid yaml: {one_line(error)}{hint}"
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


# Keys that cannot be null if their default is a number.
_COUNT = re.compile(
    r"(_size|_dim|_rate|_length|channels|_layers|_images|_speakers|_buckets)$|"
    r"^(seed|segment|chunk|lr|n_mels|n_fft|stride)$"
)


def _is_list(value) -> bool:
    """Return whether a value is a list, and not the arguments of a tag."""
    tag = getattr(getattr(value, "tag", None), "value", None)
    return isinstance(value, list) and tag is None


def _check_value(name: str, value, default) -> None:
    """Raise ValueError if a key with a numeric default has a value that is not
    a number or is out of range."""
    if _is_list(default) and not isinstance(value, list):
        raise ValueError(
            f"--{name}={value}: {name} must be a list, such as "
            f"[{', '.join(map(str, default)) or 'A, B'}]."
        )
    if not isinstance(default, int | float):
        return
    if value is None:
        if not isinstance(default, bool) and _COUNT.search(name):
            raise ValueError(f"--{name} needs a number, such as {default}.")
        return
    if not isinstance(value, int | float):
        kind = "an integer" if isinstance(default, int) else "a number"
        kind = "True or False" if isinstance(default, bool) else kind
        raise ValueError(
            f"--{name}={value}: {name} must be {kind}, such as {default}."
        )
    if isinstance(default, bool) or isinstance(value, bool) or default < 0:
        return
    # Rejects NaN, infinity, and numbers that overflow in fp32.
    if not value < 3.4e38:
        raise ValueError(
            f"--{name}={value}: {name} must be finite, such as {default}."
        )
    positive = default > 0 and _POSITIVE.match(name)
    if value < 0 or positive and value == 0:
        allowed = "above 0" if positive else "0 or more"
        if positive and isinstance(default, int):
            allowed = "an integer >= 1"
        raise ValueError(
            f"--{name}={value}: {name} must be {allowed}, such as {default}."
        )
    if isinstance(default, int) and value != int(value):
        raise ValueError(
            f"--{name}={value}: {name} must be an integer, such as {default}."
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
        if isinstance(value, dict) and preset[key] is None:
            raise ValueError(
                f"The preset {name!r} has no {key} to change; see hparams/ for "
                "presets that have one."
            )
        if isinstance(preset[key], dict):
            if not isinstance(value, dict | None):
                raise ValueError(
                    f"--vq: {key} takes changes as '{{key: value}}', or null, "
                    f"got {value!r}."
                )
            for argument in value or ():
                _check_argument(preset[key], key, argument)
    for key, value in own.items():
        # A recipe's own changes of a section need a preset that has it.
        if not isinstance(value, dict) or isinstance(preset.get(key), dict):
            recursive_update(preset, {key: value})
    recursive_update(preset, changes)
    copy = Path(tempfile.mkdtemp(dir=_copies().name)) / path.name
    copy.write_text(dump(preset), "utf-8")
    return copy


def _check_argument(section: CommentedMap, key: str, name: str) -> None:
    """Raise ValueError if the class of a section takes no such argument."""
    cls = pydoc.locate(section.tag.value.removeprefix("!new:"))
    known = list(inspect.signature(cls).parameters)
    if name not in known:
        raise ValueError(unknown_name(f"argument of {key}", name, known))


@functools.cache
def _copies() -> tempfile.TemporaryDirectory:
    """Return the folder of modified presets, which is removed at exit."""
    return tempfile.TemporaryDirectory(prefix="speechbrain_vq-")
