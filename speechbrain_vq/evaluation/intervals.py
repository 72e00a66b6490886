"""Bootstrap confidence intervals, computed in one pass over the data."""

import collections
import math
import zlib
from collections.abc import Hashable, Iterable

import numpy as np
import torch

from .metric import UNNAMED, Estimate, Quantity

# Half-width of a 95 % interval of a normal distribution, in standard deviations.
NORMAL = 1.96


def estimate(
    values: torch.Tensor | Iterable[float], quantity: Quantity = UNNAMED
) -> Estimate:
    """Compute a 95 % confidence interval from ``values`` [1 + R], the value on
    the data followed by those on the bootstrap replicates. If all replicates
    are equal, as with a single utterance, there is no interval.

    The interval extends 1.96 standard errors to both sides (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13), clipped to the
    bounds of the quantity. A percentile interval might exclude the value
    itself, since entropies of resampled data are biased downwards.

    Example
    -------
    >>> value, low, high, _ = estimate([3.0, 2.0, 4.0])
    >>> value, round(low, 3), round(high, 3)
    (3.0, 0.228, 5.772)
    """
    value, *replicates = map(float, values)
    replicates = [r for r in replicates if math.isfinite(r)]
    margin = 0.0
    if len(replicates) > 1 and math.isfinite(value):
        margin = NORMAL * float(np.std(replicates, ddof=1))
    # Equal replicates may differ by rounding errors.
    if margin < 1e-6:
        return Estimate(value, quantity=quantity)
    lower, upper = quantity.bounds
    low, high = max(value - margin, lower), min(value + margin, upper)
    return Estimate(value, low, high, quantity)


class PoissonBootstrap:
    """Poisson bootstrap over utterances (Hanley and MacGibbon, 2006).

    The weight of an utterance in each replicate is a Poisson variable with mean
    1. It is a function of the seed and the utterance's name: the order of
    utterances does not matter, and models are compared on the same replicates.

    Example
    -------
    >>> PoissonBootstrap(3).weights("utt-1").shape
    torch.Size([4])
    """

    def __init__(self, replicates: int = 100, seed: int = 0):
        self.replicates, self.seed = replicates, seed

    def weights(self, name: str) -> torch.Tensor:
        """Return the integer weights [1 + R] of an utterance: 1 for the data,
        followed by its weight in each replicate."""
        random = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        drawn = torch.from_numpy(random.poisson(1.0, self.replicates))
        return torch.cat([torch.ones(1), drawn]).int()


class WeightedCounts:
    """Counts of keys, in the data and in each bootstrap replicate. With more
    than ``limit`` distinct keys, all counts are dropped and ``full`` is True.

    Example
    -------
    >>> counts = WeightedCounts()
    >>> counts.add(["a", "b", "a"], torch.tensor([1, 0, 2]))
    >>> counts.keys(), counts.table().tolist()
    (['a', 'b'], [[2, 0, 4], [1, 0, 2]])
    """

    def __init__(self, limit: int | None = None):
        self.limit, self.full = limit, False
        self._rows, self._table = {}, torch.zeros(0, 1, dtype=torch.int32)

    def add(self, keys: Iterable[Hashable], weights: torch.Tensor) -> None:
        """Count the keys of an utterance with its weights [1 + R]."""
        counts = collections.Counter(keys)
        if self.full or not counts:
            return
        rows = [self._rows.setdefault(k, len(self._rows)) for k in counts]
        if self.limit is not None and len(self._rows) > self.limit:
            self.full, self._rows, self._table = True, {}, self._table[:0]
            return
        missing = len(self._rows) - len(self._table)
        if missing > 0:
            more = max(missing, len(self._table), 64)
            before = self._table.expand(-1, len(weights))
            added = weights.new_zeros(more, len(weights))
            self._table = torch.cat([before, added])
        numbers = torch.tensor(list(counts.values()), dtype=torch.int32)
        numbers = numbers.unsqueeze(1) * weights
        self._table.index_add_(0, torch.tensor(rows), numbers)

    def keys(self) -> list:
        """Return the keys in the order of their first occurrence."""
        return list(self._rows)

    def table(self) -> torch.Tensor:
        """Return the counts [keys, 1 + R]."""
        return self._table[: len(self._rows)]


class WeightedRatios:
    """Ratios of sums, in the data and in each bootstrap replicate.

    Example
    -------
    >>> ratios = WeightedRatios()
    >>> ratios.add("length", 6.0, 2, torch.ones(1))
    >>> ratios.values("length")
    tensor([3.], dtype=torch.float64)
    """

    def __init__(self):
        self._sums = {}

    def add(
        self, name: str, over: float, under: float, weights: torch.Tensor
    ) -> None:
        """Add to the numerator and the denominator of a ratio, with the weights
        [1 + R] of an utterance."""
        pair = torch.tensor([[over], [under]], dtype=torch.float64)
        self._sums[name] = self._sums.get(name, 0) + pair * weights.double()

    def values(self, name: str) -> torch.Tensor:
        """Return a ratio [1 + R]; nan where the denominator is 0."""
        over, under = self._sums[name]
        return over / torch.where(under > 0, under, torch.nan)

    def estimates(self, quantities: dict[str, Quantity]) -> dict[str, Estimate]:
        """Estimate all ratios whose denominator is not 0."""
        return {
            name: estimate(self.values(name), quantities[name])
            for name, (_, under) in self._sums.items()
            if under[0] > 0
        }
