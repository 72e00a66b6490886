"""Evaluation of units: phones, ABX, probes, bit rate, decoded speech."""

from .evaluate import Evaluation, evaluate
from .metric import Estimate, Metric, Quantity
from .report import write_report

__all__ = [
    "Estimate",
    "Evaluation",
    "Metric",
    "Quantity",
    "evaluate",
    "write_report",
]


def __getattr__(name):
    if name == "Figure":
        import warnings

        warnings.warn(
            "Figure is now Estimate", DeprecationWarning, stacklevel=2
        )
        return Estimate
    raise AttributeError(f"{__name__} has no attribute {name}")
