"""From a finished run to a folder that others can load.

Authors
 * speechbrain_vq authors 2026
"""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .export import export_pretrained

__getattr__, __dir__, __all__ = attach(
    __name__, {"export": ["export_pretrained"]}
)
