"""From a name or a folder to a model: download it, and load it safely.

Authors
 * speechbrain_vq authors 2026
"""

import warnings
from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .errors import HubError
    from .guard import UnsafeHparamsError, load_hparams_safely
    from .load import load_pretrained

_load, __dir__, __all__ = attach(
    __name__,
    {
        "errors": ["HubError"],
        "guard": ["UnsafeHparamsError", "load_hparams_safely"],
        "load": ["load_pretrained"],
    },
)


def __getattr__(name):
    """Load a public name; for one release, also those that moved."""
    if name not in ("ExportRefused", "export_pretrained", "push_to_hub"):
        return _load(name)
    place = "speechbrain_vq.publish"
    warnings.warn(
        f"speechbrain_vq.hub.{name} has moved to {place}.{name}",
        FutureWarning,
        stacklevel=2,
    )
    from speechbrain_vq import publish

    return getattr(publish, name)
