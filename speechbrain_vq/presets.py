"""Where the presets and the recipes lie, in a checkout and once installed.

Authors
 * speechbrain_vq authors 2026
"""

import io
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
        If there is no such preset or a preset has no such key.
    """
    import ruamel.yaml
    import speechbrain

    yaml = ruamel.yaml.YAML()
    hparams_file, run_opts, overrides = speechbrain.parse_arguments(argv)
    given = yaml.load(overrides) or {}
    changes = given.pop("vq", {})
    if changes or "arm" in given:
        arm = given.get("arm")
        if arm is None:
            arm = yaml.load(Path(hparams_file).read_text("utf-8"))["arm"]
        text = io.StringIO()
        if given:
            yaml.dump(given, text)
        # A space would end the tag.
        path = quote(str(_changed_preset(yaml, arm, changes)))
        overrides = f"{text.getvalue()}\nvq: !include:{path}\n"
    return hparams_file, run_opts, overrides


def _changed_preset(yaml, arm: str, changes: dict) -> Path:
    """The file of a preset, or of a copy with other values."""
    path = preset_path(arm)
    if not changes:
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
    recursive_update(preset, changes)
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", delete=False) as file:
        yaml.dump(preset, file)
    return Path(file.name)
