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
    values: torch.Tensor | Iterable[float],
    quantity: Quantity = UNNAMED,
    cases: int = 2,
) -> Estimate:
    """Compute a 95 % confidence interval from ``values`` [1 + R], the value on
    the data followed by those on the bootstrap replicates. ``cases`` is the
    number of utterances that contribute. With fewer than two there is no
    interval, as all replicates are equal.

    The interval extends 1.96 standard errors to both sides (Efron and
    Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13), within the
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
    if min(len(replicates), cases) < 2 or not math.isfinite(value):
        return Estimate(value, quantity=quantity)
    error = float(np.std(replicates, ddof=1))
    ends = clip_interval(value, error, quantity.bounds, cases)
    return Estimate(value, *ends, quantity)


def clip_interval(
    value: float, error: float, bounds: tuple[float, float], cases: int
) -> tuple[float, float]:
    """Compute a 95 % confidence interval that stays within the bounds.

    With two finite bounds, this is the Wilson score interval for the effective
    number of cases, which has the given standard error (Kott, 2017, A note on
    Wilson coverage intervals for proportions estimated from complex samples).
    At a bound, where the standard error is 0, ``cases`` is used instead: no
    error in 16 utterances does not mean an error rate of 0. If a bound is
    infinite, the normal interval is clipped.
    """
    lower, upper = bounds
    size = upper - lower
    if not math.isfinite(size):
        margin = NORMAL * error
        return max(value - margin, lower), min(value + margin, upper)
    share = min(max((value - lower) / size, 0.0), 1.0)
    variance, squared = share * (1 - share), (error / size) ** 2
    if variance >= 1e-9 and squared == 0:
        return value, value
    number = cases if variance < 1e-9 else variance / squared
    low, high = (lower + size * end for end in wilson(share, number))
    return min(low, value), max(high, value)


def wilson(share: float, number: float) -> tuple[float, float]:
    """Compute the 95 % score interval of a proportion estimated from ``number``
    cases (Wilson, 1927, Probable inference, the law of succession, and
    statistical inference)."""
    squared = NORMAL**2 / number
    middle = share + squared / 2
    half = math.sqrt(squared * (share * (1 - share) + squared / 4))
    low, high = ((middle + s * half) / (1 + squared) for s in (-1, 1))
    # Rounding must not exclude the proportion or leave [0, 1].
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


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
        self._sums, self._weights = {}, {}
        self._cases = collections.Counter()

    def add(
        self, name: str, over: float, under: float, weights: torch.Tensor
    ) -> None:
        """Add to the numerator and the denominator of a ratio, with the weights
        [1 + R] of an utterance. Pass the same tensor for each of its terms."""
        if under > 0 and self._weights.get(name) is not weights:
            self._weights[name] = weights
            self._cases[name] += 1
        pair = torch.tensor([[over], [under]], dtype=torch.float64)
        self._sums[name] = self._sums.get(name, 0) + pair * weights.double()

    def values(self, name: str) -> torch.Tensor:
        """Return a ratio [1 + R]; nan where the denominator is 0."""
        over, under = self._sums[name]
        return over / torch.where(under > 0, under, torch.nan)

    def estimates(self, quantities: dict[str, Quantity]) -> dict[str, Estimate]:
        """Estimate all ratios whose denominator is not 0."""
        return {
            name: estimate(self.values(name), quantities[name], cases)
            for name, cases in self._cases.items()
        }
