"""ABX discriminability: how often a phone is nearer to another phone than to
a second realization of itself."""

import collections
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch.nn.functional import normalize

from .abx_items import MAX_SIZE_GROUP, Item, ItemSample, frames_of
from .dtw import dtw
from .intervals import estimate
from .metric import SHARE, Estimate, Metric, Quantity
from .utterances import Utterance

# Maximum number of item pairs to warp per error. It covers all pairs in a few
# hundred utterances. For larger data, confidence intervals are +-0.003 (any
# context, 50 speakers) to +-0.01 (same context, across speakers).
MAX_PAIRS = 4_000_000
# Maximum number of speakers of X for a phone, speaker and context.
MAX_X_ACROSS = 5
# Minimum cost of a cell, in pairs. Many cells have only one or two pairs.
_MIN_PAIRS = 400
_SPEAKERS = "within", "across"
# Maximum number of frame pairs in memory, and in a block to warp.
_FRAME_PAIRS, _BLOCK = 1 << 22, 1 << 20


class Cell(NamedTuple):
    """Indices of items X, A and B to compare: X and A of one phone, B of all
    other phones; A and B of ``speaker``, X of one speaker. In the same context,
    all have the same neighbors."""

    speaker: str
    phone: str
    x: list[int]
    a: list[int]
    b: list[int]

    @property
    def pairs(self) -> int:
        """Number of pairs of items to warp."""
        return len(self.x) * (len(self.a) + len(self.b))


def make_cells(
    items: Sequence[Item],
    speaker: str = "within",
    context: str = "within",
    max_x_across: int | None = MAX_X_ACROSS,
    seed: int = 0,
    max_pairs: float = math.inf,
) -> list[Cell]:
    """Create the cells of an ABX error.

    A and X are of one phone and B of another; A and B are of one speaker. X is
    of the same speaker (``speaker="within"``) or of up to ``max_x_across``
    others (``"across"``). With ``context="within"``, A, B and X have the same
    neighbors. If cells have more than ``max_pairs`` item pairs to warp, they
    are drawn at random, in rounds of one cell per phone and speaker.

    Example
    -------
    >>> ab = [Item("f", 0, 1, phone, "x", "y", "ann") for phone in "aab"]
    >>> make_cells(ab)[0][1:]
    ('a', [0, 1], [0, 1], [2])
    """
    cells = list(_all_cells(items, speaker, context, max_x_across, seed))
    if sum(max(cell.pairs, _MIN_PAIRS) for cell in cells) <= max_pairs:
        return cells
    rounds, order = collections.Counter(), []
    for cell in random.Random(seed).sample(cells, len(cells)):
        order.append((rounds[cell[:2]], cell))
        rounds[cell[:2]] += 1
    drawn, budget = [], max_pairs
    for _, cell in sorted(order, key=lambda entry: entry[0]):
        budget -= max(cell.pairs, _MIN_PAIRS)
        if budget < 0 and drawn:
            break
        drawn.append(cell)
    return drawn


def _all_cells(items, speaker, context, max_x_across, seed) -> Iterator[Cell]:
    tree = collections.defaultdict(
        lambda: collections.defaultdict(lambda: collections.defaultdict(list))
    )
    for index, item in enumerate(items):
        neighbors = (item.before, item.after) if context == "within" else ()
        tree[neighbors][item.phone][item.speaker].append(index)
    for neighbors in sorted(tree):
        for phone, by_speaker in sorted(tree[neighbors].items()):
            for name, a in by_speaker.items():
                b = [
                    index
                    for other, speakers in tree[neighbors].items()
                    if other != phone
                    for index in speakers.get(name, ())
                ]
                x_speakers = [name]
                if speaker == "across":
                    x_speakers = sorted(set(by_speaker) - {name})
                    draw = random.Random(f"{seed} {neighbors} {phone} {name}")
                    draw.shuffle(x_speakers)
                if b and (speaker == "across" or len(a) > 1):
                    for x in x_speakers[:max_x_across]:
                        yield Cell(name, phone, by_speaker[x], a, b)


def angular(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Compute angles divided by pi [I, J] between vectors [I, D] and [J, D];
    0.5 for zero vectors."""
    x, y = (normalize(vectors.double(), dim=1) for vectors in (x, y))
    # Round, since numerical errors would break ties.
    angles = (x @ y.T).clamp(-1, 1).acos() / math.pi
    return angles.float().round(decimals=6)


def identity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Compute the fraction of codebooks [I, J] in which codes [I, C] and [J, C]
    differ; 0 or 1 with one codebook."""
    return (x.unsqueeze(1) != y).float().mean(2)


def abx_error(
    features: Sequence[torch.Tensor],
    items: Sequence[Item],
    cells: Sequence[Cell],
    distance: Callable = angular,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the ABX error of each bootstrap replicate [R] (Schatz et al.,
    2013): 0.5 at chance, and nan if there are no cells.

    A triple is an error if X is nearer to B than to A, and half an error in a
    tie. As in ZeroSpeech and fastabx, errors are averaged over triples, then
    over neighbors and speakers of X, then over speakers of A and B, then over
    pairs of phones.

    ``features`` are the frames of each item [T, D], at least one, and ``cells``
    come from ``make_cells``. ``distance`` is ``angular`` for vectors, or
    ``identity`` for codes. The weight of a triple is the product of the weights
    [N, R] of its items.
    """
    if weights is None:
        weights = torch.ones(len(items), 1)
    names = sorted({item.phone for item in items})
    phones = {name: index for index, name in enumerate(names)}
    phone_of = torch.tensor([phones[item.phone] for item in items])
    shape = len(phones), len(phones), weights.shape[1]
    # Sums of errors and of weights, by pair of phones.
    by_phones = torch.zeros(2, *shape)
    by_speaker = collections.defaultdict(list)
    for cell in cells:
        by_speaker[cell.speaker].append(cell)
    for speaker_cells in by_speaker.values():
        sums = torch.zeros(2, *shape)
        for cell, errors in _triple_errors(speaker_cells, features, distance):
            x, a, b = map(torch.tensor, cell[2:])
            # Pairs of an item with itself get weight 0.
            pair = weights[x].unsqueeze(1) * weights[a]
            pair = (pair * (x.unsqueeze(1) != a).unsqueeze(2)).flatten(0, 1)
            by_b = torch.zeros(2, len(phones), shape[2])
            by_b[0].index_add_(0, phone_of[b], weights[b] * (errors.T @ pair))
            by_b[1].index_add_(0, phone_of[b], weights[b] * pair.sum(0))
            sums[:, phones[cell.phone]] += _mean(by_b)
        by_phones += _mean(sums)
    return torch.nanmean(_mean(by_phones, torch.nan)[0].flatten(0, 1), 0)


def _mean(sums, default=0.0):
    """Return the means, and their weights in further averages: 1, or 0 where
    there is no data."""
    exists = sums[1] > 0
    mean = torch.where(exists, sums[0] / sums[1].clamp(min=1e-9), default)
    return torch.stack([mean, exists.to(mean)])


def _triple_errors(cells, features, distance):
    """Yield each cell and the errors [X * A, B] of its triples."""
    for portion in _portions(cells, features):
        distances = _distances(portion, features, distance)
        for cell, from_x in zip(portion, distances, strict=True):
            to_a, to_b = from_x.split([len(cell.a), len(cell.b)], dim=1)
            difference = to_a.unsqueeze(2) - to_b.unsqueeze(1)
            yield cell, 0.5 * (1 + torch.sign(difference)).flatten(0, 1)


def _portions(cells, features):
    """Yield lists of cells with a bounded number of frame pairs."""
    portion, total = [], 0
    for cell in cells:
        x, a, b = (sum(len(features[i]) for i in part) for part in cell[2:])
        if portion and total + x * (a + b) > _FRAME_PAIRS:
            yield portion
            portion, total = [], 0
        portion.append(cell)
        total += x * (a + b)
    if portion:
        yield portion


def _distances(cells, features, distance):
    """Return the DTW distances [X, A + B] of each cell."""
    costs, first, stride, rows, columns, offset = [], [], [], [], [], 0
    for cell in cells:
        x, y = (
            [features[i] for i in part] for part in (cell.x, cell.a + cell.b)
        )
        cell_costs = distance(torch.cat(x), torch.cat(y))
        sizes = [torch.tensor([len(item) for item in side]) for side in (x, y)]
        starts = [size.cumsum(0) - size for size in sizes]
        width = cell_costs.shape[1]
        corners = starts[0].unsqueeze(1) * width + starts[1] + offset
        costs.append(cell_costs.flatten())
        first.append(corners.flatten())
        stride.append(torch.full((len(x) * len(y),), width))
        rows.append(sizes[0].repeat_interleave(len(y)))
        columns.append(sizes[1].repeat(len(x)))
        offset += cell_costs.numel()
    pairs = map(torch.cat, (costs, first, stride, rows, columns))
    parts = _warp(*pairs).split([len(part) for part in rows])
    return [
        part.view(len(cell.x), -1)
        for part, cell in zip(parts, cells, strict=True)
    ]


def _warp(costs, first, stride, rows, columns):
    """Compute DTW distances of pairs of items with ``rows`` and ``columns``
    frames, in blocks of similar length. The distance of frames i and j of pair
    n is ``costs[first[n] + i * stride[n] + j]``."""
    longest, order = torch.maximum(rows, columns).sort()
    distances, start = torch.empty(len(order)), 0
    while start < len(order):
        bound = int(1.25 * int(longest[start]) + 2)
        stop = int(torch.searchsorted(longest, bound, right=True))
        stop = min(stop, start + max(1, _BLOCK // bound**2))
        block = order[start:stop]
        heights, widths = rows[block], columns[block]
        steps = torch.arange(int(longest[stop - 1])).unsqueeze(1)
        # The last frame of an item repeats as padding, which dtw ignores.
        i = first[block] + torch.minimum(steps, heights - 1) * stride[block]
        j = torch.minimum(steps, widths - 1)
        block_costs = costs[i.unsqueeze(1) + j].permute(2, 0, 1)
        distances[block] = dtw(block_costs, heights, widths)
        start = stop
    return distances


class Abx(Metric):
    """ABX errors of units, codewords and latents, within and across speakers,
    in the same and in any context.

    Only frames of items are stored, so memory does not grow with the corpus.
    ``samples`` come from ``sample_items``.
    """

    label = "ABX error (0.5 is chance)"

    def __init__(self, samples: dict[str, ItemSample], seed: int = 0):
        self.samples, self.seed = samples, seed
        self._items = collections.defaultdict(list)
        for context, sample in samples.items():
            for item in sample.items:
                self._items[item.file].append((context, item))
        self._frames = collections.defaultdict(list)
        self._dropped = 0

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Add an utterance, see ``Metric``."""
        weights = weights.float()
        for context, item in self._items.get(utterance.name, ()):
            span = frames_of(item, utterance.token_rate)
            if not len(utterance.tokens[span]):
                self._dropped += 1
                continue
            frames = {"units": utterance.tokens[span].clone()}
            if utterance.latents is not None:
                frames["codewords"] = utterance.codewords[span].clone()
                frames["latents"] = utterance.latents[span].clone()
            self._frames[context].append((item, frames, weights))

    def compute(self) -> dict[str, Estimate]:
        """Compute the results, see ``Metric``."""
        estimates = {}
        for context, frames in self._frames.items():
            # Results must not depend on the order of utterances.
            frames = sorted(frames, key=lambda entry: entry[0])
            items, sources, weights = zip(*frames, strict=True)
            weights = torch.stack(weights)
            for speaker in _SPEAKERS:
                cells = make_cells(
                    items, speaker, context, MAX_X_ACROSS, self.seed, MAX_PAIRS
                )
                condition = _condition(speaker, context)
                label = f"{speaker} speakers, {_CONTEXTS[context]} context"
                for source in sources[0] if cells else ():
                    errors = abx_error(
                        [by_source[source] for by_source in sources],
                        items,
                        cells,
                        identity if source == "units" else angular,
                        weights,
                    )
                    quantity = Quantity(f"{label}: {source}", bounds=SHARE)
                    name = f"abx_{condition}_{source}"
                    estimates[name] = estimate(errors, quantity)
        return estimates

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Return notes on the results, see ``Metric``."""
        if not self._items:
            sources = dict.fromkeys(s.source for s in self.samples.values())
            return [
                f"ABX: there are no items ({', '.join(sources)}, from "
                "utterances with phones and a speaker)"
            ]
        notes = []
        for context, speaker in itertools.product(self.samples, _SPEAKERS):
            name = _condition(speaker, context)
            if f"abx_{name}_units" not in estimates:
                notes.append(
                    f"ABX {name.replace('_', ' ')}: no two items of a phone "
                    "with one of another phone by the same speaker"
                )
        if self._dropped:
            notes.append(f"{self._dropped} ABX items without a complete frame")
        return notes

    def settings(self) -> dict:
        """Return settings for the report, see ``Metric``."""
        if not self._items:
            return {}
        samples = self.samples.items()
        return {
            "abx_items_from": {c: sample.source for c, sample in samples},
            "abx_max_size_group": MAX_SIZE_GROUP,
            "abx_max_x_across": MAX_X_ACROSS,
            "abx_items": {c: len(sample.items) for c, sample in samples},
            "abx_items_of": {c: sample.total for c, sample in samples},
            "abx_max_pairs": MAX_PAIRS,
            "abx_frames": "those whose midpoint is in the item, as in fastabx",
        }


_CONTEXTS = {"within": "same", "any": "any"}


def _condition(speaker, context):
    """Return a name such as ``within_speaker_same_context``."""
    return f"{speaker}_speaker_{_CONTEXTS[context]}_context"
