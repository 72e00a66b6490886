"""One HTML page on a run or a model: listen, look, compare, reproduce."""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .page import write_report

__getattr__, __dir__, __all__ = attach(__name__, {"page": ["write_report"]})
