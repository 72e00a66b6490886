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
    """Describe a value: reports read its label and unit, confidence intervals
    its bounds.

    Arguments
    ---------
    label : str
        Name in reports.
    unit : str
        Unit in reports, e.g. ``"Hz"``.
    bounds : tuple of float
        Least and greatest possible value.

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
    """A value with its 95 % confidence interval.

    Arguments
    ---------
    value : float
        Value on the data; nan without data.
    low, high : float, optional
        Ends of the interval; None without bootstrap replicates.
    quantity : Quantity
        Label, unit and bounds of the value.
    """

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
        """Accumulate an utterance.

        Arguments
        ---------
        utterance : Utterance
            The encoded utterance.
        weights : torch.Tensor
            Weight of the utterance in the data (1) and in each bootstrap
            replicate, [1 + R].
        """
        raise NotImplementedError

    def compute(self) -> dict[str, Estimate]:
        """Compute the values of all utterances so far.

        Returns
        -------
        dict
            From the key in ``results.json`` to ``Estimate``; empty without
            data.
        """
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
