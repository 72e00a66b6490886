"""Find the presets, the recipes and the bundled models, in a checkout and
once installed.
"""

import ast
import io
import re
import tempfile
from collections.abc import Iterable, Mapping
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote
from warnings import warn

from speechbrain_vq._names import suggestion

_PACKAGE = Path(__file__).resolve().parent


def preset_names() -> list[str]:
    """List the quantizer presets, one variant of the paper or of a rival each.

    Returns
    -------
    names : list[str]
        The names, sorted.

    Example
    -------
    >>> "robust" in preset_names()
    True
    """
    return sorted(path.stem for path in _folder("hparams").glob("*.yaml"))


def preset_path(name: str) -> Path:
    """Find the yaml file of a preset.

    Arguments
    ---------
    name : str
        One of ``preset_names()``.

    Returns
    -------
    path : Path
        The absolute path of the file.

    Raises
    ------
    ValueError
        If there is no such preset.

    Example
    -------
    >>> preset_path("robust").name
    'robust.yaml'
    """
    names = preset_names()
    if name not in names:
        raise ValueError(_unknown("preset", name, names))
    return _folder("hparams") / f"{name}.yaml"


def quantizer_options(preset: str | Mapping) -> dict:
    """Read from a preset what ``VectorQuantizer`` takes.

    Arguments
    ---------
    preset : str or mapping
        One of ``preset_names()``, or what its file holds.

    Returns
    -------
    options : dict
        Arguments of the class; the schedule and the learning rate of the
        preset are for what trains it.

    Example
    -------
    >>> quantizer_options("ema")["codebook"]
    'ema'
    """
    import inspect

    from hyperpyyaml import load_hyperpyyaml

    from speechbrain_vq.nnet import VectorQuantizer

    if isinstance(preset, str):
        preset = load_hyperpyyaml(preset_path(preset).read_text("utf-8"))
    taken = inspect.signature(VectorQuantizer).parameters
    return {k: v for k, v in preset.items() if k in taken}


# For `train FOLDER`
FOLDER_RECIPES = {
    "units": "MiniSpeech/unit-discovery",
    "codec": "DebianSpeech/speech-codec",
    "voices": "VCTK/voice-conversion",
}


def folder_recipe(name: str) -> str:
    """Find the recipe that trains on any folder of recordings, by its short
    name or its own.

    Example
    -------
    >>> folder_recipe("units")
    'MiniSpeech/unit-discovery'
    """
    if name in FOLDER_RECIPES.values():
        return name
    if name not in FOLDER_RECIPES:
        raise ValueError(
            _unknown("recipe for a folder of recordings", name, FOLDER_RECIPES)
        )
    return FOLDER_RECIPES[name]


def recipe_names() -> list[str]:
    """List the recipes, such as ``MiniSpeech/unit-discovery``.

    Example
    -------
    >>> "MiniSpeech/unit-discovery" in recipe_names()
    True
    """
    recipes = _folder("recipes")
    scripts = recipes.glob("*/*/train.py")
    return sorted(p.parent.relative_to(recipes).as_posix() for p in scripts)


def describe_recipe(name: str) -> str:
    """Return the first sentence on a recipe.

    Example
    -------
    >>> describe_recipe("MiniSpeech/unit-discovery")
    'discovering speech units with a vector-quantized autoencoder'
    """
    source = recipe_path(f"{name}/train.py").read_text("utf-8")
    text = " ".join(ast.get_docstring(ast.parse(source)).split())
    return re.split(r"[.:] ", text)[0].removeprefix("Recipe for ").rstrip(".")


def describe_preset(name: str) -> str:
    """Return the first sentence on a preset.

    Example
    -------
    >>> describe_preset("ema")
    'EMA: a codebook of exponential moving averages, no gradient'
    """
    text = preset_path(name).read_text("utf-8")
    lines = re.findall(r"^# (?!#)(.*)", text.split("# Source")[0], re.M)
    return " ".join(lines).split(". ")[0].rstrip(".")


def recipe_yaml(recipe: str, name: str) -> Path:
    """Find a yaml file to train a recipe by.

    Arguments
    ---------
    recipe : str
        One of ``recipe_names()``.
    name : str
        A file, or the name of one of the recipe's own.

    Raises
    ------
    ValueError
        If there is no such recipe, or no such file.
    """
    folder = recipe_path(f"{recipe}/train.py").parent / "hparams"
    if Path(name).is_file():
        return Path(name)
    known = sorted(path.name for path in folder.glob("*.yaml"))
    if name not in known:
        beside = [str(p) for p in Path(name).parent.glob("*.yaml")]
        hint = suggestion(name, [*known, *beside])
        raise ValueError(
            f"{recipe} has no {name}, nor is it a file here.{hint} It has "
            f"{', '.join(known)}."
        )
    return folder / name


def write_out(path: Path) -> str:
    """Return the text of a recipe's yaml file with what it includes, so that
    it does not depend on where it lies.

    Arguments
    ---------
    path : Path
        The file.

    Example
    -------
    >>> yaml = recipe_yaml("MiniSpeech/unit-discovery", "train.yaml")
    >>> "!include" in write_out(yaml)
    False
    """
    import ruamel.yaml
    from hyperpyyaml.core import recursive_update

    yaml = ruamel.yaml.YAML()
    base, _, variant = _read_recipe(yaml, str(path))
    text = Path(base).read_text("utf-8")
    include = re.search(r"^vq: !include:(\S+)\n((?: +.*\n)*)", text, re.M)
    if include:
        file = Path(base).parent / include[1]
        if "preset" in variant:
            file = preset_path(variant["preset"])
        preset = file.read_text("utf-8")
        if include[2]:
            values = yaml.load(preset)
            recursive_update(values, yaml.load(include[2]))
            preset = _dump(yaml, values)
        preset = re.sub(r"^#+ ?#{3,}\n", "", preset, flags=re.M)
        preset = re.sub(r"^(?=.)", "    ", preset.strip("\n"), flags=re.M)
        begin, end = include.span()
        text = f"{text[:begin]}vq:\n{preset}\n{text[end:]}"
    if variant:
        values = yaml.load(text)
        recursive_update(values, variant)
        text = _dump(yaml, values)
    return text


def _dump(yaml, values) -> str:
    text = io.StringIO()
    yaml.dump(values, text)
    return text.getvalue()


def recipe_path(relative: str) -> Path:
    """Find a file or a folder of a recipe.

    Arguments
    ---------
    relative : str
        Path below ``recipes/``, with forward slashes.

    Returns
    -------
    path : Path
        The absolute path.

    Raises
    ------
    ValueError
        If there is no such file or folder.

    Example
    -------
    >>> recipe_path("MiniSpeech").is_dir()
    True
    """
    recipes = _folder("recipes")
    path = recipes / relative
    if not path.exists():
        name = relative.removesuffix("/train.py")
        raise ValueError(_unknown("recipe", name, recipe_names()))
    return path


def bundled(name: str) -> str:
    """Find a model that comes with the package.

    ``speech`` codes and decodes recorded speech at 16 kHz, by eight codebooks
    of which the first ones decode by themselves: what the recipe
    DebianSpeech/speech-codec gives, and ``make speech`` makes again. ``units``
    gives 512 units at 50 a second that hold the phones, from the same
    recordings (DebianSpeech/unit-discovery, ``make units``). ``mini`` is a
    small model of synthetic English, 512 units at 50 a second, to test
    with; recorded speech is not intelligible from it.

    Arguments
    ---------
    name : str
        Name of the model.

    Returns
    -------
    path : str
        The absolute path of its folder, for ``from_hparams``.

    Raises
    ------
    ValueError
        If there is none of that name.

    Example
    -------
    >>> from speechbrain_vq import VQTokenizer
    >>> VQTokenizer.from_hparams(bundled("mini")).token_rate
    50.0
    """
    if name not in bundled_names():
        raise ValueError(_unknown("bundled model", name, bundled_names()))
    return str(_PACKAGE / "pretrained" / name)


def bundled_names() -> list[str]:
    """List the models that come with the package.

    Returns
    -------
    names : list[str]
        The names, sorted.

    Example
    -------
    >>> "mini" in bundled_names()
    True
    """
    configs = (_PACKAGE / "pretrained").glob("*/config.json")
    return sorted(path.parent.name for path in configs)


def _folder(name: str) -> Path:
    """Find a folder in the package of a wheel, else in the checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Describe an unknown name: the closest one, and all known."""
    known = list(known)
    # Of the recipes of a corpus, unit discovery is the one to begin with.
    first = f"{name}/unit-discovery"
    hint = suggestion(first if first in known else name, known)
    message = f"No {kind} {name!r}.{hint}"
    # Of the keys of a yaml there are dozens.
    if hint and len(known) > 20:
        return message
    return f"{message} Known: {', '.join(known)}."


def parse_arguments(argv: list[str]) -> tuple[str, dict, str]:
    """Parse the command line of a recipe, as ``speechbrain.parse_arguments``.

    The yaml includes a preset under the key ``vq`` and names it under
    ``preset``. ``--preset=NAME`` includes the preset of that name instead, and
    ``--vq='{KEY: VALUE}'`` changes values of the preset; both may be given.
    What a recipe changes below its ``!include`` it changes in every preset that
    has such a thing: its times of re-initialization give none to a preset that
    never re-initializes.

    A yaml may also be a variant of another: one key, ``recipe:
    !include:train.yaml``, with the overrides that make the variant below it.

    Dashes in the name of a key count as underscores, and a boolean key without
    a value is true.

    Arguments
    ---------
    argv : list[str]
        Arguments after the name of the script.

    Returns
    -------
    tuple
        The yaml file (of a variant, the one it includes), run options and
        overrides. A variant's overrides may add keys: load them with
        ``overrides_must_match=False``.

    Raises
    ------
    ValueError
        If an argument is of no option or not of the type or in the range of
        its key, there is no such preset, or the preset or the recipe has no
        such key.
    """
    import ruamel.yaml
    import speechbrain
    from hyperpyyaml.core import recursive_update

    # SpeechBrain would append it to the value before it.
    for before, arg in pairwise(argv):
        is_value = before.startswith("-") and "=" not in before
        if re.match(r"\w+=", arg) and not is_value:
            raise ValueError(f"{arg!r} belongs to no option: write --{arg}.")
    yaml = ruamel.yaml.YAML()
    hparams_file, run_opts, overrides = speechbrain.parse_arguments(
        [_with_underscores(arg) for arg in argv]
    )
    try:
        given = yaml.load(overrides) or {}
    except ruamel.yaml.YAMLError as error:
        lines = ", ".join(f"--{line}" for line in overrides.split("\n"))
        raise ValueError(f"Not all of {lines} is yaml: {error}") from error
    hparams_file, recipe, variant = _read_recipe(yaml, hparams_file)
    key = "arm" if "arm" in recipe else "preset"
    # In yamls of 0.1, the preset is under ``arm``.
    for other in {"arm", "preset"} & set(given) - {key}:
        if other == "arm":
            warn("--arm is now --preset", FutureWarning, stacklevel=2)
        given[key] = given.pop(other)
    for name in given:
        if name not in recipe and name not in variant:
            raise ValueError(
                _unknown(f"key of {hparams_file}", name, [*recipe, *variant])
            )
        default = variant.get(name, recipe.get(name))
        if given[name] is None and isinstance(default, bool):
            given[name] = True
        _check_value(name, given[name], default)
    changes, own = given.pop("vq", {}), variant.pop("vq", {})
    include = ""
    if changes or own or key in given or key in variant:
        below = _own_changes(yaml, recipe, key)
        recursive_update(below, own)
        name = given.get(key, variant.get(key, recipe[key]))
        preset = _changed_preset(yaml, name, changes, below)
        # A space would end the tag.
        include = f"vq: !include:{quote(str(preset))}\n"
    recursive_update(variant, given)
    text = _dump(yaml, variant) if variant else ""
    return hparams_file, run_opts, text + include


def _with_underscores(argument: str) -> str:
    """Write the name of an option as the yamls do: --data_folder."""
    name, *rest = argument.split("=", 1)
    if name.startswith("--"):
        name = "--" + name[2:].replace("-", "_")
    return "=".join([name, *rest])


# What cannot be 0, where a yaml has a number for it.
_POSITIVE = re.compile(
    r"number_of_|.*(_size|_dim|_rate|_length|channels|_steps|_layers)$|"
    r"(lr|segment|longest|minutes|n_mels|n_fft|stride|num_speakers)$"
)


def _check_value(name: str, value, default) -> None:
    """Refuse a value of another type than a number, or out of range."""
    if not isinstance(default, int | float) or value is None:
        return
    if not isinstance(value, int | float):
        raise ValueError(
            f"--{name}={value}: {name} is a number or a boolean value, such "
            f"as {default}."
        )
    if isinstance(default, bool) or isinstance(value, bool) or default < 0:
        return
    positive = default > 0 and _POSITIVE.match(name)
    if value < 0 or positive and value == 0:
        least = "above 0" if positive else "0 or more"
        if positive and isinstance(default, int):
            least = "an integer >= 1"
        raise ValueError(
            f"--{name}={value}: {name} must be {least}, such as {default}."
        )
    if isinstance(default, int) and value != int(value):
        raise ValueError(
            f"--{name}={value}: {name} is a whole number, such as {default}."
        )


def _own_changes(yaml, recipe: dict, key: str) -> dict:
    """Return what a recipe changes in its preset: what stands below the
    ``!include``, or, where ``config`` has written the preset out, the values
    that differ."""
    if not isinstance(recipe["vq"], dict):
        return {}
    if recipe["vq"].tag.value:
        return recipe["vq"]
    preset = yaml.load(preset_path(recipe[key]).read_text("utf-8"))
    changed = {k: v for k, v in recipe["vq"].items() if v != preset.get(k, v)}
    return {
        key: {k: v for k, v in value.items() if v != preset[key].get(k)}
        if isinstance(value, dict) and isinstance(preset[key], dict)
        else value
        for key, value in changed.items()
    }


def _read_recipe(yaml, hparams_file: str) -> tuple[str, dict, dict]:
    """Read the file of a recipe, its values, and a variant's overrides."""
    recipe = yaml.load(Path(hparams_file).read_text("utf-8"))
    tag = getattr(getattr(recipe.get("recipe"), "tag", None), "value", None)
    if list(recipe) != ["recipe"] or not (tag or "").startswith("!include:"):
        return hparams_file, recipe, {}
    base = Path(hparams_file).parent / tag.removeprefix("!include:")
    return str(base), yaml.load(base.read_text("utf-8")), dict(recipe["recipe"])


def _changed_preset(yaml, name: str, changes: dict, own: dict) -> Path:
    """Return the file of a preset, or of a copy with changed values."""
    path = preset_path(name)
    if not (changes or own):
        return path
    from hyperpyyaml.core import recursive_update

    preset = yaml.load(path.read_text("utf-8"))
    if not isinstance(changes, dict):
        raise ValueError(
            f"--vq takes changes to a preset as '{{key: value}}', got {changes}"
        )
    for key, value in changes.items():
        if key not in preset:
            raise ValueError(_unknown("key of a preset", key, preset))
        if isinstance(value, dict) and preset[key] is None:
            raise ValueError(
                f"The preset {name!r} has no {key} to change; see hparams/ for "
                "one that has."
            )
    recursive_update(preset, _fitting(own, preset))
    recursive_update(preset, changes)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        yaml.dump(preset, file)
    return Path(file.name)


def _fitting(own: dict, preset: dict) -> dict:
    """Select a recipe's own values, without parts of what a preset lacks."""
    return {
        key: value
        for key, value in own.items()
        if not isinstance(value, dict) or isinstance(preset.get(key), dict)
    }
