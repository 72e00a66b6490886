"""Where the presets, the recipes and the bundled models lie, in a checkout and
once installed.

Authors
 * speechbrain_vq authors 2026
"""

import io
import re
import tempfile
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from urllib.parse import quote

_PACKAGE = Path(__file__).resolve().parent


def preset_names() -> list[str]:
    """List the quantizer presets, one arm of the paper or of a rival each.

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


def quantizer_options(name: str) -> dict:
    """Read from a preset what ``VectorQuantizer`` takes.

    Arguments
    ---------
    name : str
        One of ``preset_names()``.

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

    preset = load_hyperpyyaml(preset_path(name).read_text("utf-8"))
    taken = inspect.signature(VectorQuantizer).parameters
    return {k: v for k, v in preset.items() if k in taken}


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
        found = recipes.glob("**/train.py")
        known = sorted(p.parent.relative_to(recipes).as_posix() for p in found)
        name = relative.removesuffix("/train.py")
        raise ValueError(_unknown("recipe", name, known))
    return path


def bundled(name: str) -> str:
    """Find a model that comes with the package.

    ``mini`` is what the recipe MiniSpeech/unit-discovery gives: 512 units of
    synthetic English at 50 a second, to try things with, offline. ``make
    mini`` makes it again.

    Arguments
    ---------
    name : str
        Of the model.

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
    found = (_PACKAGE / "pretrained").glob("*/config.json")
    known = {path.parent.name: path.parent for path in found}
    if name not in known:
        raise ValueError(_unknown("bundled model", name, sorted(known)))
    return str(known[name])


def _folder(name: str) -> Path:
    """Inside the package where a wheel was installed, else beside it."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name


def _unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Say what is not known, what was perhaps meant, and what is known."""
    known = list(known)
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"No {kind} {name!r}.{hint} Known: {', '.join(known)}."


def parse_arguments(argv: list[str]) -> tuple[str, dict, str]:
    """As ``speechbrain.parse_arguments``, for recipes that include a preset
    under the key ``vq`` and name it under ``arm``.

    ``--arm=NAME`` includes the preset of that name instead, and
    ``--vq='{KEY: VALUE}'`` changes values of the preset; both may be given.
    What a recipe changes below its ``!include`` it changes in every arm that
    has such a thing: its times of re-estimation give none to an arm that
    never re-estimates.

    Arguments
    ---------
    argv : list[str]
        What follows the name of the script.

    Returns
    -------
    tuple
        The yaml file, run options and overrides.

    Raises
    ------
    ValueError
        If there is no such preset, a preset has no such key, or it has a value
        that the recipe would not look at.
    """
    import ruamel.yaml
    import speechbrain

    yaml = ruamel.yaml.YAML()
    hparams_file, run_opts, overrides = speechbrain.parse_arguments(argv)
    given = yaml.load(overrides) or {}
    changes = given.pop("vq", {})
    if changes or "arm" in given:
        recipe = yaml.load(Path(hparams_file).read_text("utf-8"))
        own = recipe["vq"] if isinstance(recipe["vq"], dict) else {}
        arm = given.get("arm", recipe["arm"])
        preset = _changed_preset(yaml, arm, changes, own)
        _check_looked_at(yaml, hparams_file, arm, preset)
        text = io.StringIO()
        if given:
            yaml.dump(given, text)
        # A space would end the tag.
        path = quote(str(preset))
        overrides = f"{text.getvalue()}\nvq: !include:{path}\n"
    return hparams_file, run_opts, overrides


def _changed_preset(yaml, arm: str, changes: dict, own: dict) -> Path:
    """The file of a preset, or of a copy with other values: the recipe's own,
    as far as they fit, and those asked for."""
    path = preset_path(arm)
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
                f"The preset {arm!r} has no {key} to change; see hparams/ for "
                "one that has."
            )
    recursive_update(preset, _fitting(own, preset))
    recursive_update(preset, changes)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        yaml.dump(preset, file)
    return Path(file.name)


def _check_looked_at(yaml, hparams_file: str, arm: str, path: Path) -> None:
    """Refuses a preset that would have no effect: the recipe does not refer to
    a key in which it is not as the default one."""
    text = Path(hparams_file).read_text("utf-8")
    preset, default = (
        yaml.load(p.read_text("utf-8")) for p in (path, preset_path("robust"))
    )
    if "<vq>" in text:
        return
    looked_at = set(re.findall(r"<vq\[(\w+)\]", text))
    for key, value in preset.items():
        if key not in looked_at and value != default[key]:
            raise ValueError(
                f"{hparams_file} has no use for {key} of the preset {arm!r}, "
                f"which is {value}: it never refers to <vq[{key}]>. Take "
                f"another arm, or another recipe."
            )


def _fitting(own: dict, preset: dict) -> dict:
    """Of a recipe's own values, those for what the preset has."""
    fitting = {}
    for key, value in own.items():
        there = preset.get(key)
        if isinstance(value, dict):
            there = there if isinstance(there, dict) else {}
            fitting[key] = _fitting(value, there)
        elif there not in (None, "never", "forever"):
            fitting[key] = value
    return {k: v for k, v in fitting.items() if v != {}}
