"""The interface of a metric: add one by a subclass, and to the dictionary
``metrics`` of ``evaluate``.
"""

import math
from typing import NamedTuple

import torch

from .utterances import Utterance

# Bounds of values.
SHARE, NON_NEGATIVE = (0.0, 1.0), (0.0, math.inf)


class Quantity(NamedTuple):
    """Describe a value: the label and unit that reports show, and the least and
    the greatest possible value, the bounds of confidence intervals.

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
# What a Brain measures of its codebooks, by the keys of ``vq_stats``.
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
    """A value on the data, nan without data, with the ends of its 95 %
    confidence interval, None without bootstrap replicates."""

    value: float
    low: float | None = None
    high: float | None = None
    quantity: Quantity = UNNAMED


class Metric:
    """Compute related values from utterances, in one pass over the data.

    Subclasses set ``label``, the title of their table, and implement
    ``update`` and ``compute``. Each estimate that ``compute`` returns carries
    its own label, unit and bounds; see ``Quantity``.
    """

    label = ""

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Accumulate an utterance, with its weights in the data (1) and in
        each bootstrap replicate, [1 + R]."""
        raise NotImplementedError

    def compute(self) -> dict[str, Estimate]:
        """Compute the values of all utterances so far, by their keys in
        ``results.json``; empty without data."""
        raise NotImplementedError

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Explain which values are missing from ``estimates``."""
        return []

    def settings(self) -> dict:
        """Return what the values depend on, for the report."""
        return {}

    def tables(self) -> dict:
        """Return counts that other programs may use."""
        return {}
