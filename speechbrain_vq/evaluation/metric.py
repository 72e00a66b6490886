"""Base class of metrics. To add one, subclass ``Metric`` and extend the
dictionary ``metrics`` in ``evaluate``.
"""

import math
from typing import NamedTuple

import torch

from .utterances import Utterance

SHARE, NON_NEGATIVE = (0.0, 1.0), (0.0, math.inf)


class Quantity(NamedTuple):
    """Label and unit of a value, as shown in reports, and its range, to which
    confidence intervals are clipped.

    Example
    -------
    >>> str(Quantity("log-spectral distance", "dB", NON_NEGATIVE))
    'log-spectral distance (dB)'
    """

    label: str
    unit: str = ""
    bounds: tuple[float, float] = (-math.inf, math.inf)

    def __str__(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label


UNNAMED = Quantity("")
# Codebook statistics of a Brain, by their keys in ``vq_stats``.
USAGE = {
    "bits_per_second": Quantity(
        "bit rate, by the entropy of the codes", "bits/s", NON_NEGATIVE
    ),
    "dead_codes": Quantity("codes never used", bounds=NON_NEGATIVE),
    "quantization_error": Quantity(
        "quantization error", "share of the variance", NON_NEGATIVE
    ),
    "used_codes_percent": Quantity("used codes", "%", (0.0, 100.0)),
}


class Estimate(NamedTuple):
    """Value (nan without data) and its 95 % confidence interval. ``low`` and
    ``high`` are None if the bootstrap replicates, if any, are all equal."""

    value: float
    low: float | None = None
    high: float | None = None
    quantity: Quantity = UNNAMED


class Metric:
    """Base class of metrics that compute values in one pass over utterances.

    Subclasses set ``label``, the title of their table, and implement
    ``update`` and ``compute``.
    """

    label = ""

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Accumulate an utterance. ``weights`` [1 + R] are its weights in the
        data, where it is 1, and in each bootstrap replicate."""
        raise NotImplementedError

    def compute(self) -> dict[str, Estimate]:
        """Compute the values over all utterances so far, by their keys in
        ``results.json``; empty without data."""
        raise NotImplementedError

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Explain which values are missing from ``estimates``."""
        return []

    def settings(self) -> dict:
        """Return the settings that the values depend on, for the report."""
        return {}

    def tables(self) -> dict:
        """Return counts for further analysis, see ``Evaluation.tables``."""
        return {}
