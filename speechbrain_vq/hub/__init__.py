"""From a finished run to a folder and the Hub, and from there to a model.

Authors
 * speechbrain_vq authors 2026
"""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .checks import ExportRefused
    from .errors import HubError
    from .export import export_pretrained
    from .guard import UnsafeHparamsError, load_hparams_safely
    from .load import load_pretrained
    from .push import push_to_hub

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "checks": ["ExportRefused"],
        "errors": ["HubError"],
        "export": ["export_pretrained"],
        "guard": ["UnsafeHparamsError", "load_hparams_safely"],
        "load": ["load_pretrained"],
        "push": ["push_to_hub"],
    },
)
