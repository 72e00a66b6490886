"""Find recipes and read their yaml files, in a checkout or installed."""

import ast
import io
import re
from pathlib import Path

from ruamel.yaml import YAML, YAMLError

from speechbrain_vq._names import suggestion, unknown_name
from speechbrain_vq.presets import package_folder, preset_path

# Recipes of `train FOLDER`, by the value of --recipe.
FOLDER_RECIPES = {
    "units": "MiniSpeech/unit-discovery",
    "codec": "DebianSpeech/speech-codec",
    "voices": "VCTK/voice-conversion",
}


def folder_recipe(name: str) -> str:
    """Return the recipe, by its short or full name, that trains on any folder
    of recordings."""
    if name in FOLDER_RECIPES.values():
        return name
    if name not in FOLDER_RECIPES:
        kind = "folder recipe"
        raise ValueError(unknown_name(kind, name, FOLDER_RECIPES))
    return FOLDER_RECIPES[name]


def recipe_names() -> list[str]:
    """List all recipes by name, such as ``MiniSpeech/unit-discovery``."""
    recipes = package_folder("recipes")
    scripts = recipes.glob("*/*/train.py")
    return sorted(p.parent.relative_to(recipes).as_posix() for p in scripts)


def describe_recipe(name: str) -> str:
    """Return the first sentence of the docstring of a recipe's script."""
    source = recipe_path(f"{name}/train.py").read_text("utf-8")
    text = " ".join(ast.get_docstring(ast.parse(source)).split())
    text = re.split(r"[.:] ", text)[0].removeprefix("Recipe for ").rstrip(".")
    return text[:1].upper() + text[1:]


def recipe_yaml(recipe: str, name: str) -> Path:
    """Find a recipe's yaml file by its path, or by its name in the recipe's
    ``hparams``. Raises ValueError, with all known names, if there is none."""
    folder = recipe_path(f"{recipe}/train.py").parent / "hparams"
    if Path(name).is_file():
        return Path(name)
    known = sorted(path.name for path in folder.glob("*.yaml"))
    if name not in known:
        siblings = [str(p) for p in Path(name).parent.glob("*.yaml")]
        hint = suggestion(name, [*known, *siblings])
        raise ValueError(
            f"{recipe} has no {name}, and there is no such file here.{hint} "
            f"The recipe contains {', '.join(known)}."
        )
    return folder / name


def write_out(path: Path) -> str:
    """Return the text of a recipe's yaml file with all included files inlined,
    so that it can be moved.

    Example
    -------
    >>> yaml = recipe_yaml("MiniSpeech/unit-discovery", "train.yaml")
    >>> "!include" in write_out(yaml)
    False
    """
    from hyperpyyaml.core import recursive_update

    base, _, variant = read_recipe(str(path))
    text = Path(base).read_text("utf-8")
    include = re.search(r"^vq: !include:(\S+)\n((?: +.*\n)*)", text, re.M)
    if include:
        file = Path(base).parent / include[1]
        if "preset" in variant:
            file = preset_path(variant["preset"])
        preset = file.read_text("utf-8")
        if include[2]:
            values = load(preset)
            recursive_update(values, load(include[2]))
            preset = dump(values)
        preset = re.sub(r"^#+ ?#{3,}\n", "", preset, flags=re.M)
        preset = re.sub(r"^(?=.)", "    ", preset.strip("\n"), flags=re.M)
        begin, end = include.span()
        text = f"{text[:begin]}vq:\n{preset}\n{text[end:]}"
    if variant:
        values = load(text)
        recursive_update(values, variant)
        text = dump(values)
    return text


def load(text: str) -> dict:
    """Read yaml, keeping tags and comments."""
    return YAML().load(text)


def dump(values: dict) -> str:
    """Write values from ``load`` as yaml."""
    text, yaml = io.StringIO(), YAML()
    yaml.indent(mapping=4)
    yaml.width = 1000
    yaml.dump(values, text)
    return text.getvalue()


def one_line(error: Exception) -> str:
    """Return the message of an error, such as PyYAML's, as a single line."""
    return " ".join(str(error).split())


def recipe_path(relative: str) -> Path:
    """Return the absolute path of a file or folder below ``recipes/``. Raises
    ValueError, with the closest recipe, if there is none."""
    recipes = package_folder("recipes")
    path = recipes / relative
    if not path.exists():
        name = relative.removesuffix("/train.py")
        known = [*recipe_names(), *FOLDER_RECIPES]
        raise ValueError(unknown_name("recipe", name, known))
    return path


def read_recipe(hparams_file: str) -> tuple[str, dict, dict]:
    """Read the yaml file of a recipe, or a variant of one.

    A variant has a single key, ``recipe: !include:FILE``, with its overrides
    below. The file may itself be a variant.

    Returns the file at the end of the includes, the values in it, and the
    merged overrides of all variants."""
    from hyperpyyaml.core import recursive_update

    try:
        recipe = load(Path(hparams_file).read_text("utf-8"))
    except (UnicodeDecodeError, YAMLError) as error:
        raise ValueError(
            f"{hparams_file} is not a yaml file: {one_line(error)}"
        ) from error
    if not isinstance(recipe, dict):
        raise ValueError(
            f"{hparams_file} has no keys of a recipe: `speechbrain-vq config "
            "RECIPE` prints a complete file."
        )
    tag = getattr(getattr(recipe.get("recipe"), "tag", None), "value", None)
    if list(recipe) != ["recipe"] or not (tag or "").startswith("!include:"):
        return hparams_file, recipe, {}
    included = Path(hparams_file).parent / tag.removeprefix("!include:")
    base, values, overrides = read_recipe(str(included))
    recursive_update(overrides, recipe["recipe"])
    return base, values, overrides
