"""From a name or a folder to a model: download it, and load it safely."""

import warnings
from typing import Any

from .errors import HubError
from .load import load_pretrained
from .plain import UnsafeHparamsError
from .registry import register_module

__all__ = [
    "HubError",
    "UnsafeHparamsError",
    "load_pretrained",
    "register_module",
]


def __getattr__(name: str) -> Any:
    """Name what replaces a public name that moved or is gone."""
    if name == "load_hparams_safely":
        # An AttributeError would lose its text in `from ... import`.
        raise ImportError(
            "load_hparams_safely is gone: model folders are read as data. "
            "load_pretrained loads a folder of registered classes "
            "(register_module adds one of your own); for any other yaml that "
            "you trust, hyperpyyaml.load_hyperpyyaml."
        )
    if name not in ("ExportRefused", "export_pretrained", "push_to_hub"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = "speechbrain_vq.publish"
    warnings.warn(
        f"speechbrain_vq.hub.{name} has moved to {place}.{name}",
        FutureWarning,
        stacklevel=2,
    )
    from speechbrain_vq import publish

    return getattr(publish, name)
