"""Presets and bundled models, in a checkout or an installed package."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path

from speechbrain_vq._names import unknown_name

# Arguments of ``CodebookTrainer`` by key in presets and hparams.
TRAINER_OPTIONS = {
    "codebook_lr_multiplier": "lr_multiplier",
    "codebook_max_lr": "max_lr",
    "reinit_schedule": "schedule",
}

_PACKAGE = Path(__file__).resolve().parent
# Folder of the bundled vocoder.
BUNDLED_VOCODER = _PACKAGE / "pretrained" / "vocoder"


def preset_names() -> list[str]:
    """List the names of the presets: the paper's variants, and alternatives.

    Example
    -------
    >>> "robust" in preset_names()
    True
    """
    return sorted(
        path.stem for path in package_folder("hparams").glob("*.yaml")
    )


def preset_path(name: str) -> Path:
    """Return the path of a preset's yaml file; raise ValueError unless it is in
    ``preset_names()``.

    Example
    -------
    >>> preset_path("robust").name
    'robust.yaml'
    """
    names = preset_names()
    if name not in names:
        raise ValueError(unknown_name("preset", name, names))
    return package_folder("hparams") / f"{name}.yaml"


def quantizer_options(preset: str | Mapping) -> dict:
    """Return the arguments of ``VectorQuantizer`` in a preset, given by name or
    by the contents of its file.

    Example
    -------
    >>> quantizer_options("ema")["codebook"]
    'ema'
    """
    from speechbrain_vq.nnet import VectorQuantizer

    taken = inspect.signature(VectorQuantizer).parameters
    return {k: v for k, v in preset_values(preset).items() if k in taken}


def trainer_options(preset: str | Mapping) -> dict:
    """Return the arguments of ``CodebookTrainer`` in a preset.

    Example
    -------
    >>> trainer_options("ema")["schedule"] is None
    True
    """
    values = preset_values(preset)
    return {
        argument: values[key]
        for key, argument in TRAINER_OPTIONS.items()
        if key in values
    }


def preset_values(preset: str | Mapping) -> Mapping:
    """Read a preset, given by name or by the contents of its file; raise
    ValueError if it has an unknown key."""
    from hyperpyyaml import load_hyperpyyaml

    from speechbrain_vq.nnet import VectorQuantizer

    if isinstance(preset, str):
        return load_hyperpyyaml(preset_path(preset).read_text("utf-8"))
    known = {*inspect.signature(VectorQuantizer).parameters, *TRAINER_OPTIONS}
    for key in preset:
        if key not in known:
            raise ValueError(unknown_name("key of a preset", key, known))
    return preset


def describe_preset(name: str) -> str:
    """Return the first sentence of a preset's description."""
    text = preset_path(name).read_text("utf-8")
    lines = re.findall(r"^# (?!#)(.*)", text.split("# Source")[0], re.M)
    return " ".join(lines).split(". ")[0].rstrip(".")


def bundled(name: str) -> str:
    """Return the folder of a bundled model, for ``from_hparams``; raise
    ValueError unless it is in ``bundled_names()``.

    ``speech`` is a codec for recorded speech at 16 kHz with eight residual
    codebooks, the first of which can be decoded alone (recipe
    DebianSpeech/speech-codec). ``units`` has 512 phonetic units, at 50 per
    second (DebianSpeech/unit-discovery).

    Example
    -------
    >>> from speechbrain_vq import VQTokenizer
    >>> VQTokenizer.from_hparams(bundled("units")).token_rate
    50.0
    """
    if name not in bundled_names():
        raise ValueError(unknown_name("bundled model", name, bundled_names()))
    return str(_PACKAGE / "pretrained" / name)


def bundled_names() -> list[str]:
    """List the names of the bundled models."""
    configs = (_PACKAGE / "pretrained").glob("*/config.json")
    return sorted(path.parent.name for path in configs)


def package_folder(name: str) -> Path:
    """Return a folder of the installed package, or of the checkout."""
    installed = _PACKAGE / name
    return installed if installed.is_dir() else _PACKAGE.parent / name
