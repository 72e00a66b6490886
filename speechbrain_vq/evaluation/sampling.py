"""How sure a figure is, counted while the data stream by: the Poisson
bootstrap.

Authors
 * speechbrain_vq authors 2026
"""

import math
import zlib
from collections.abc import Callable, Hashable, Iterable
from typing import NamedTuple

import numpy as np
import torch

# Standard errors to both sides of which 95 % of a normal distribution lie.
NORMAL = 1.96


class Figure(NamedTuple):
    """A figure and its 95 % confidence interval.

    Arguments
    ---------
    value : float
        Of the data as they are; nan where there were none.
    low, high : float, optional
        None where the data do not say.
    """

    value: float
    low: float | None = None
    high: float | None = None


def interval(values: torch.Tensor | Iterable[float]) -> Figure:
    """The value and 1.96 standard errors of the bootstrap to both sides
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13).

    Percentiles are not used: entropies of resampled data lie below those of
    the data, so that their percentiles may leave out the value itself. What
    cannot be all numbers goes through ``ranges.in_range`` afterwards.

    Arguments
    ---------
    values : torch.Tensor or iterable of float
        The figure of the data, then those of the replicates, [1 + R].

    Returns
    -------
    Figure

    Example
    -------
    >>> value, low, high = interval([3.0, 2.0, 4.0])
    >>> value, round(low, 3), round(high, 3)
    (3.0, 0.228, 5.772)
    """
    value, *others = [float(value) for value in values]
    others = [other for other in others if math.isfinite(other)]
    if len(others) < 2 or not math.isfinite(value):
        return Figure(value)
    margin = NORMAL * float(np.std(others, ddof=1))
    return Figure(value, value - margin, value + margin)


class Replicates:
    """How often each utterance counts in the data and in each replicate.

    In the Poisson bootstrap (Hanley and MacGibbon, 2006; Oza and Russell,
    2001) an utterance is in a replicate as often as a Poisson number of mean 1
    says, so that nothing must be kept to be drawn from. The number is a
    function of its name: the order of the data does not matter, and two models
    are compared on the same replicates.

    Arguments
    ---------
    number : int
        Of replicates; 0: no intervals.
    seed : int
        Of the draws.

    Example
    -------
    >>> Replicates(3).weights("utt-1").shape
    torch.Size([4])
    """

    def __init__(self, number: int = 100, seed: int = 0):
        self.number, self.seed = number, seed

    def weights(self, name: str) -> torch.Tensor:
        """How often an utterance counts, [1 + number], integers; the first is
        1, for the data as they are."""
        draw = np.random.default_rng([self.seed, zlib.crc32(name.encode())])
        drawn = torch.from_numpy(draw.poisson(1.0, self.number))
        return torch.cat([torch.ones(1), drawn]).int()


class Tally:
    """Counts of anything, in the data and in every replicate.

    Arguments
    ---------
    limit : int, optional
        Of different things; when there are more, nothing is counted any
        longer and ``full`` is True.

    Example
    -------
    >>> tally = Tally()
    >>> tally.add(["a", "b", "a"], torch.tensor([1, 0, 2]))
    >>> tally.keys(), tally.table().tolist()
    (['a', 'b'], [[2, 0, 4], [1, 0, 2]])
    """

    def __init__(self, limit: int | None = None):
        self.limit, self.full = limit, False
        self._rows, self._table = {}, None

    def add(self, things: Iterable[Hashable], weights: torch.Tensor) -> None:
        """Counts the things of an utterance, with its weights [1 + R]."""
        counts: dict = {}
        for thing in things:
            counts[thing] = counts.get(thing, 0) + 1
        if self.full or not counts:
            return
        rows = [self._rows.setdefault(t, len(self._rows)) for t in counts]
        if self.limit is not None and len(self._rows) > self.limit:
            self.full, self._rows, self._table = True, {}, None
            return
        self._grow(weights)
        numbers = torch.tensor(list(counts.values()), dtype=torch.int32)
        self._table.index_add_(
            0, torch.tensor(rows), numbers.unsqueeze(1) * weights
        )

    def keys(self) -> list:
        """What was counted, in the order in which it came."""
        return list(self._rows)

    def table(self) -> torch.Tensor:
        """How often, [things, 1 + R]."""
        if self._table is None:
            return torch.zeros(0, 1, dtype=torch.int32)
        return self._table[: len(self._rows)]

    def _grow(self, weights):
        wanted = len(self._rows)
        have = 0 if self._table is None else len(self._table)
        if wanted > have:
            table = weights.new_zeros(max(2 * have, wanted, 64), len(weights))
            if have:
                table[:have] = self._table
            self._table = table


class Ratios:
    """Sums over sums, in the data and in every replicate.

    Example
    -------
    >>> ratios = Ratios()
    >>> ratios.add("length", 6.0, 2, torch.ones(1))
    >>> ratios.figure("length").value
    3.0
    """

    def __init__(self):
        self._sums = {}

    def add(
        self, name: str, over: float, under: float, weights: torch.Tensor
    ) -> None:
        """Adds to both sums, with the weights [1 + R] of an utterance."""
        pair = torch.tensor([[over], [under]], dtype=torch.float64)
        self._sums[name] = self._sums.get(name, 0) + pair * weights.double()

    def names(self) -> list[str]:
        """Those with a value."""
        return [n for n, sums in self._sums.items() if sums[1, 0] > 0]

    def values(self, name: str) -> torch.Tensor:
        """The ratios, [1 + R]; nan where there was nothing."""
        over, under = self._sums[name]
        return over / torch.where(under > 0, under, torch.nan)

    def figure(
        self, name: str, function: Callable = lambda values: values
    ) -> Figure:
        """A function of the ratio, with its interval."""
        return interval(function(self.values(name)))
