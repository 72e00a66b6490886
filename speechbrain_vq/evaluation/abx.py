"""ABX: how often a phone is nearer to another phone than to itself.

Authors
 * speechbrain_vq authors 2026
"""

import collections
import math
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import normalize

from .cells import Comparisons, comparisons
from .dtw import dtw
from .items import Item

# Pairs of frames that are compared, and warped, at a time.
_AT_ONCE, _BLOCK = 1 << 22, 1 << 20


def angular(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The angle between vectors over pi: [I, D], [J, D] to [I, J]. Zero vectors
    are at a right angle to all."""
    x, y = (normalize(vectors.double(), dim=1) for vectors in (x, y))
    # Rounding errors, which no two sums share, must not undo ties.
    angles = (x @ y.T).clamp(-1, 1).acos() / math.pi
    return angles.float().round(decimals=6)


def identity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """The share of codebooks in which codes differ: [I, C], [J, C] to [I, J].
    Of one codebook, it is 0 or 1."""
    return (x.unsqueeze(1) != y).float().mean(2)


def abx(
    features: Sequence[torch.Tensor],
    items: Sequence[Item],
    speaker: str = "within",
    context: str = "within",
    distance: Callable = angular,
    max_x_across: int | None = 5,
    weights: torch.Tensor | None = None,
    seed: int = 0,
    among: Comparisons | None = None,
) -> torch.Tensor:
    """The ABX error, .5 at chance (Schatz et al., 2013), averaged as in
    ZeroSpeech and fastabx.

    A and X are of one phone and B of another, A and B of one speaker, and X of
    the same one (``speaker="within"``) or of another (``"across"``); with
    ``context="within"`` all three have the same neighbours. It is an error if
    X is nearer to B than to A, and half of one if both are as near. A cell is
    all A, B, X of given phones, speakers and neighbours. The errors of cells
    are averaged over neighbours and speakers of X, then over speakers of A and
    B, then over pairs of phones.

    Arguments
    ---------
    features : sequence of torch.Tensor
        The frames of each item, [T, D], at least one.
    items : sequence of Item
        What they are. See ``capped`` to bound their number.
    speaker, context : str
        ``"within"`` or ``"across"``, and ``"within"`` or ``"any"``.
    distance : callable
        Of frames: ``angular`` for vectors, ``identity`` for codes.
    max_x_across : int, optional
        Speakers of X for one phone, speaker and neighbours; None: all.
    weights : torch.Tensor, optional
        How often each item counts in each replicate, [N, R]; a triple counts
        as the product says.
    seed : int
        Of the choice of speakers of X.
    among : Comparisons, optional
        What to compare, as ``comparisons`` chose it; by default everything.

    Returns
    -------
    torch.Tensor
        The error in each replicate, [R]; nan if there is no cell.
    """
    if weights is None:
        weights = torch.ones(len(items), 1)
    if among is None:
        among = comparisons(items, speaker, context, max_x_across, seed)
    frames = _Frames(features, distance)
    phones = {
        name: i for i, name in enumerate(sorted({i.phone for i in items}))
    }
    kinds = torch.tensor([phones[item.phone] for item in items])
    shape = len(phones), len(phones), weights.shape[1]
    pairs = torch.zeros(2, *shape)
    by_speaker = collections.defaultdict(list)
    for cell in among.cells:
        by_speaker[cell.speaker].append(cell)
    for of_one in by_speaker.values():
        sums = torch.zeros(2, *shape)
        for phone, x, a, b, wrong in _judged(of_one, frames):
            # An item is no A for itself.
            pair = weights[x].unsqueeze(1) * weights[a]
            pair = (pair * (x.unsqueeze(1) != a).unsqueeze(2)).flatten(0, 1)
            of_b = torch.zeros(2, len(phones), shape[2])
            of_b[0].index_add_(0, kinds[b], weights[b] * (wrong.T @ pair))
            of_b[1].index_add_(0, kinds[b], weights[b] * pair.sum(0))
            sums[:, phones[phone]] += _mean(of_b)
        pairs += _mean(sums)
    return torch.nanmean(_mean(pairs, torch.nan)[0].flatten(0, 1), 0)


def _mean(sums, nothing=0.0):
    """The quotients, and where there are any."""
    there = sums[1] > 0
    mean = torch.where(there, sums[0] / sums[1].clamp(min=1e-9), nothing)
    return torch.stack([mean, there.to(mean)])


def _judged(cells, frames):
    """Yields (phone, X, A, B, which of the [X * A, B] are wrong)."""
    for some in _portions(cells, frames):
        distances = frames.distances(
            [(x, torch.cat([a, b])) for _, x, a, b in some]
        )
        for (phone, x, a, b), found in zip(some, distances, strict=True):
            to_a, to_b = found.split([len(a), len(b)], dim=1)
            difference = to_a.unsqueeze(2) - to_b.unsqueeze(1)
            wrong = 0.5 * (1 + torch.sign(difference))
            yield phone, x, a, b, wrong.flatten(0, 1)


def _portions(cells, frames):
    """Lists of cells with as many pairs of frames as memory is meant for."""
    some, total = [], 0
    for cell in cells:
        x, a, b = map(torch.tensor, cell[2:])
        frame_pairs = frames.number(x) * (frames.number(a) + frames.number(b))
        if some and total + frame_pairs > _AT_ONCE:
            yield some
            some, total = [], 0
        some.append((cell.phone, x, a, b))
        total += frame_pairs
    if some:
        yield some


class _Frames:
    """The frames of all items in a row, and distances of items."""

    def __init__(self, features, distance):
        self.distance = distance
        self.lengths = torch.tensor([len(item) for item in features])
        self.starts = _starts(self.lengths)
        self.frames = torch.cat(list(features)) if len(features) else None

    def number(self, items):
        """How many frames items have."""
        return int(self.lengths[items].sum())

    def distances(self, jobs):
        """Of all pairs of each (X, Y), [X, Y] each."""
        x = torch.cat([x.repeat_interleave(len(y)) for x, y in jobs])
        y = torch.cat([y.repeat(len(x)) for x, y in jobs])
        costs = self._codes if self.distance is identity else self._vectors
        found = _warped(costs(jobs, x, y), self.lengths[x], self.lengths[y])
        parts = found.split([len(x) * len(y) for x, y in jobs])
        return [
            part.view(len(x), -1)
            for part, (x, _) in zip(parts, jobs, strict=True)
        ]

    def _codes(self, jobs, x, y):
        """Codes are compared as they are needed: nothing is shared."""
        starts = self.starts[x], self.starts[y]

        def costs(block, rows, columns):
            x, y = (
                self.frames[start[block] + steps]
                for start, steps in zip(starts, (rows, columns), strict=True)
            )
            differ = x.unsqueeze(1) != y
            if differ.shape[3] == 1:
                return differ.squeeze(3).float()
            return differ.float().mean(3)

        return costs

    def _vectors(self, jobs, x, y):
        """Of vectors, all of a cell are compared at once."""
        flat, first, stride, offset = [], [], [], 0
        for x, y in jobs:
            costs = self.distance(self._of(x), self._of(y))
            inside = [_starts(self.lengths[side]) for side in (x, y)]
            at = inside[0].unsqueeze(1) * costs.shape[1] + inside[1] + offset
            first.append(at.flatten())
            stride.append(torch.full((at.numel(),), costs.shape[1]))
            flat.append(costs.flatten())
            offset += costs.numel()
        flat, first, stride = map(torch.cat, (flat, first, stride))

        def costs(block, rows, columns):
            at = first[block] + rows * stride[block]
            return flat[at.unsqueeze(1) + columns]

        return costs

    def _of(self, items):
        lengths = self.lengths[items]
        skipped = self.starts[items] - _starts(lengths)
        rows = skipped.repeat_interleave(lengths)
        return self.frames[rows + torch.arange(len(rows))]


def _starts(lengths):
    return lengths.cumsum(0) - lengths


def _warped(costs, rows, columns):
    """DTW of pairs of items with so many frames, in blocks of pairs about as
    long; ``costs`` of a block and of frames [I, N] and [J, N] are [I, J, N]."""
    longest, order = torch.maximum(rows, columns).sort()
    found, start = torch.empty(len(order)), 0
    while start < len(order):
        bound = int(1.25 * int(longest[start]) + 2)
        stop = int(torch.searchsorted(longest, bound, right=True))
        stop = min(stop, start + max(1, _BLOCK // bound**2))
        block = order[start:stop]
        steps = torch.arange(int(longest[stop - 1])).unsqueeze(1)
        # Beyond the end of an item anything will do, but it must be there.
        apart = costs(
            block,
            torch.minimum(steps, rows[block] - 1),
            torch.minimum(steps, columns[block] - 1),
        )
        found[block] = dtw(apart.permute(2, 0, 1), rows[block], columns[block])
        start = stop
    return found
