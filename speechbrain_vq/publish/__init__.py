"""From a training run to a model folder, and from there to the Hub."""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .export import export_pretrained
    from .push import push_to_hub
    from .run import Run
    from .validate import ExportRefused

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "export": ["export_pretrained"],
        "push": ["push_to_hub"],
        "run": ["Run"],
        "validate": ["ExportRefused"],
    },
)
