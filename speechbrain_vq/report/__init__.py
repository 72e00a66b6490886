"""One HTML page on a run or a model: listen, look, compare, reproduce."""

from .page import write_report

__all__ = ["write_report"]
