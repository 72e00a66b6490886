"""Download a model, and load it without running its code."""

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
    """Point to the present place of a public name that moved."""
    if name not in ("ExportRefused", "export_pretrained", "push_to_hub"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    warnings.warn(
        f"speechbrain_vq.hub.{name} has moved to speechbrain_vq.publish.{name}",
        FutureWarning,
        stacklevel=2,
    )
    from speechbrain_vq import publish

    return getattr(publish, name)
