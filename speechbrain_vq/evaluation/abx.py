"""ABX discriminability: how often a phone is nearer to another phone than to
itself."""

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

# Limit of pairs of items to warp for an error: enough for all of some hundred
# utterances, and of any number for intervals of +-.003 (any context, 50
# speakers) to +-.01 (same context, across speakers).
MOST_PAIRS = 4_000_000
# Limit of speakers of X for a phone, speaker and context.
MAX_X_ACROSS = 5
# Least cost of a cell in pairs: many cells have one or two.
_LEAST_PAIRS = 400
_SPEAKERS = "within", "across"
# Pairs of frames in memory, and in a block to warp.
_FRAME_PAIRS, _BLOCK = 1 << 22, 1 << 20


class Cell(NamedTuple):
    """Indices of items X, A and B: X and A of a phone, A and B of a speaker,
    X of one, B of all other phones; all of the same neighbours if the context
    matters."""

    speaker: str
    phone: str
    x: list[int]
    a: list[int]
    b: list[int]

    @property
    def pairs(self) -> int:
        """Number of pairs of items to warp."""
        return len(self.x) * (len(self.a) + len(self.b))

    @property
    def triples(self) -> int:
        """Number of triples; X and A are different items."""
        same = self.x is self.a
        return len(self.x) * (len(self.a) - same) * len(self.b)


class Cells(NamedTuple):
    """Cells to compare, how many triples they have, and how many there would
    be without a limit of pairs."""

    cells: list[Cell]
    triples: int
    total: int


def make_cells(
    items: Sequence[Item],
    speaker: str = "within",
    context: str = "within",
    max_x_across: int | None = MAX_X_ACROSS,
    seed: int = 0,
    max_pairs: int | None = None,
) -> Cells:
    """Make the cells of an ABX error.

    A and X are of one phone and B of another, A and B of one speaker, and X of
    the same one (``speaker="within"``) or of another (``"across"``), at most
    ``max_x_across``; with ``context="within"`` all three have the same
    neighbours. Of cells with more than ``max_pairs`` of items to warp, some are
    drawn at random in rounds, each with one of every phone and speaker.

    Example
    -------
    >>> ab = [Item("f", 0, 1, phone, "x", "y", "ann") for phone in "aab"]
    >>> make_cells(ab)[1:]
    (2, 2)
    """
    cells = list(_all_cells(items, speaker, context, max_x_across, seed))
    total = sum(cell.triples for cell in cells)
    if max_pairs is not None:
        cells = _draw_cells(cells, max_pairs, seed)
    return Cells(cells, sum(cell.triples for cell in cells), total)


def _all_cells(items, speaker, context, max_x_across, seed) -> Iterator[Cell]:
    tree = collections.defaultdict(
        lambda: collections.defaultdict(lambda: collections.defaultdict(list))
    )
    for index, item in enumerate(items):
        place = (item.before, item.after) if context == "within" else ()
        tree[place][item.phone][item.speaker].append(index)
    for place in sorted(tree):
        for phone, by_speaker in sorted(tree[place].items()):
            for own, a in by_speaker.items():
                b = [
                    index
                    for other, speakers in tree[place].items()
                    if other != phone
                    for index in speakers.get(own, ())
                ]
                others = [own]
                if speaker == "across":
                    others = sorted(set(by_speaker) - {own})
                    random.Random(f"{seed} {place} {phone} {own}").shuffle(
                        others
                    )
                if b and (speaker == "across" or len(a) > 1):
                    for x in others[:max_x_across]:
                        yield Cell(own, phone, by_speaker[x], a, b)


def _draw_cells(cells, max_pairs, seed):
    if sum(max(cell.pairs, _LEAST_PAIRS) for cell in cells) <= max_pairs:
        return cells
    draw, rounds, order = random.Random(seed), collections.Counter(), []
    for cell in draw.sample(cells, len(cells)):
        order.append((rounds[cell[:2]], len(order), cell))
        rounds[cell[:2]] += 1
    drawn, left = [], max_pairs
    for _, _, cell in sorted(order, key=lambda one: one[:2]):
        left -= max(cell.pairs, _LEAST_PAIRS)
        if left < 0 and drawn:
            break
        drawn.append(cell)
    return drawn


def angular(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Compute angles over pi, [I, D], [J, D] to [I, J]; .5 of zero vectors."""
    x, y = (normalize(vectors.double(), dim=1) for vectors in (x, y))
    # Rounding errors, which differ from sum to sum, must not break ties.
    angles = (x @ y.T).clamp(-1, 1).acos() / math.pi
    return angles.float().round(decimals=6)


def identity(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Compute the share of codebooks with different codes, [I, C], [J, C] to
    [I, J]; 0 or 1 with one codebook."""
    return (x.unsqueeze(1) != y).float().mean(2)


def abx_error(
    features: Sequence[torch.Tensor],
    items: Sequence[Item],
    cells: Sequence[Cell],
    distance: Callable = angular,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute the ABX error, .5 at chance (Schatz et al., 2013), averaged as in
    ZeroSpeech and fastabx, of each bootstrap replicate, [R]; nan without a
    cell.

    A triple is an error if X is nearer to B than to A, and half an error in a
    tie. Errors are averaged over triples, then over neighbours and speakers of
    X, then over speakers of A and B, then over pairs of phones.

    ``features`` are the frames of each item, [T, D], at least one; ``cells``
    those of ``make_cells``; ``distance`` is ``angular`` of vectors, or
    ``identity`` of codes. The weight of a triple is the product of those of
    its items, [N, R]."""
    if weights is None:
        weights = torch.ones(len(items), 1)
    distances = _Distances(features, distance)
    phones = {
        name: i for i, name in enumerate(sorted({i.phone for i in items}))
    }
    phone_of = torch.tensor([phones[item.phone] for item in items])
    shape = len(phones), len(phones), weights.shape[1]
    # Sums of errors, and of weights, by pair of phones.
    by_phones = torch.zeros(2, *shape)
    by_speaker = collections.defaultdict(list)
    for cell in cells:
        by_speaker[cell.speaker].append(cell)
    for own in by_speaker.values():
        sums = torch.zeros(2, *shape)
        for phone, x, a, b, errors in _triple_errors(own, distances):
            # An item is never both X and A.
            pair = weights[x].unsqueeze(1) * weights[a]
            pair = (pair * (x.unsqueeze(1) != a).unsqueeze(2)).flatten(0, 1)
            by_b = torch.zeros(2, len(phones), shape[2])
            by_b[0].index_add_(0, phone_of[b], weights[b] * (errors.T @ pair))
            by_b[1].index_add_(0, phone_of[b], weights[b] * pair.sum(0))
            sums[:, phones[phone]] += _mean(by_b)
        by_phones += _mean(sums)
    return torch.nanmean(_mean(by_phones, torch.nan)[0].flatten(0, 1), 0)


def _mean(sums, default=0.0):
    """Divide sums by weights; return the quotients, and where they exist."""
    exists = sums[1] > 0
    mean = torch.where(exists, sums[0] / sums[1].clamp(min=1e-9), default)
    return torch.stack([mean, exists.to(mean)])


def _triple_errors(cells, distances):
    """Yield (phone, X, A, B, errors [X * A, B]) of each cell."""
    for portion in _portions(cells, distances.lengths):
        both = distances.of([(x, torch.cat([a, b])) for _, x, a, b in portion])
        for (phone, x, a, b), of_cell in zip(portion, both, strict=True):
            to_a, to_b = of_cell.split([len(a), len(b)], dim=1)
            difference = to_a.unsqueeze(2) - to_b.unsqueeze(1)
            errors = 0.5 * (1 + torch.sign(difference))
            yield phone, x, a, b, errors.flatten(0, 1)


def _portions(cells, lengths):
    """Yield lists of cells (phone, X, A, B) of bounded size in frames."""
    portion, total = [], 0
    for cell in cells:
        x, a, b = map(torch.tensor, cell[2:])
        sizes = [int(lengths[items].sum()) for items in (x, a, b)]
        frame_pairs = sizes[0] * (sizes[1] + sizes[2])
        if portion and total + frame_pairs > _FRAME_PAIRS:
            yield portion
            portion, total = [], 0
        portion.append((cell.phone, x, a, b))
        total += frame_pairs
    if portion:
        yield portion


class _Distances:
    """Compute distances of items by dynamic time warping of their frames."""

    def __init__(self, features, distance):
        self.distance = distance
        self.lengths = torch.tensor([len(item) for item in features])
        self.starts = _starts(self.lengths)
        self.frames = torch.cat(list(features)) if len(features) else None

    def of(self, jobs):
        """Return the distances of all pairs of each (X, Y), [X, Y] each."""
        x = torch.cat([x.repeat_interleave(len(y)) for x, y in jobs])
        y = torch.cat([y.repeat(len(x)) for x, y in jobs])
        distances = _warp(self._costs(jobs), self.lengths[x], self.lengths[y])
        parts = distances.split([len(x) * len(y) for x, y in jobs])
        return [
            part.view(len(x), -1)
            for part, (x, _) in zip(parts, jobs, strict=True)
        ]

    def _costs(self, jobs):
        """Return a function that looks up precomputed distances of frames."""
        flat, first, stride, offset = [], [], [], 0
        for x, y in jobs:
            costs = self.distance(self._frames_of(x), self._frames_of(y))
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

    def _frames_of(self, items):
        lengths = self.lengths[items]
        skipped = self.starts[items] - _starts(lengths)
        rows = skipped.repeat_interleave(lengths)
        return self.frames[rows + torch.arange(len(rows))]


def _starts(lengths):
    return lengths.cumsum(0) - lengths


def _warp(costs, rows, columns):
    """Warp pairs of items with so many frames, in blocks of pairs of similar
    length; ``costs(block, frames [I, N], frames [J, N])`` is [I, J, N]."""
    longest, order = torch.maximum(rows, columns).sort()
    distances, start = torch.empty(len(order)), 0
    while start < len(order):
        bound = int(1.25 * int(longest[start]) + 2)
        stop = int(torch.searchsorted(longest, bound, right=True))
        stop = min(stop, start + max(1, _BLOCK // bound**2))
        block = order[start:stop]
        steps = torch.arange(int(longest[stop - 1])).unsqueeze(1)
        # Beyond the end of an item the last frame repeats, and is not read.
        of_block = costs(
            block,
            torch.minimum(steps, rows[block] - 1),
            torch.minimum(steps, columns[block] - 1),
        )
        distances[block] = dtw(
            of_block.permute(2, 0, 1), rows[block], columns[block]
        )
        start = stop
    return distances


class Abx(Metric):
    """Compute ABX errors of units, codewords and latents, within and across
    speakers, in the same and in any context.

    The frames of the items are kept, so memory grows with the items and not
    with the corpus. ``samples`` are those of ``sample_items``.

    Example
    -------
    >>> Abx({}).compute()
    {}
    """

    label = "ABX error (0.5 is chance)"

    def __init__(self, samples: dict[str, ItemSample], seed: int = 0):
        self.samples, self.seed = samples, seed
        self._items = collections.defaultdict(list)
        for context, sample in samples.items():
            for item in sample.items:
                self._items[item.file].append((context, item))
        self._frames = collections.defaultdict(list)
        self._dropped, self._cells = 0, {}

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Keep the frames of the items of an utterance."""
        weights = weights.float()
        for context, item in self._items.get(utterance.name, ()):
            at = frames_of(item, utterance.token_rate)
            if not len(utterance.tokens[at]):
                self._dropped += 1
                continue
            frames = {"units": utterance.tokens[at].clone()}
            if utterance.latents is not None:
                frames["codewords"] = utterance.codewords[at].clone()
                frames["latents"] = utterance.latents[at].clone()
            self._frames[context].append((item, frames, weights))

    def compute(self) -> dict[str, Estimate]:
        """Estimate the errors; conditions without a triple are left out."""
        estimates = {}
        for context, frames in self._frames.items():
            # Independent of the order of utterances.
            frames = sorted(frames, key=lambda one: one[0])
            items, sources, weights = zip(*frames, strict=True)
            weights = torch.stack(weights)
            for speaker in _SPEAKERS:
                cells = make_cells(
                    *(items, speaker, context),
                    seed=self.seed,
                    max_pairs=MOST_PAIRS,
                )
                condition = _condition(speaker, context)
                self._cells[condition] = cells
                files = {
                    items[index].file
                    for cell in cells.cells
                    for index in (*cell.x, *cell.a, *cell.b)
                }
                label = f"{speaker} speakers, {_PLACES[context]} context"
                for source in sources[0] if files else ():
                    errors = abx_error(
                        [by_source[source] for by_source in sources],
                        items,
                        cells.cells,
                        identity if source == "units" else angular,
                        weights,
                    )
                    quantity = Quantity(f"{label}: {source}", bounds=SHARE)
                    estimates[f"abx_{condition}_{source}"] = estimate(
                        errors, quantity, len(files)
                    )
        return estimates

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Explain missing conditions."""
        if not self._items:
            sources = {s.source: None for s in self.samples.values()}
            return [
                f"ABX: there are no items ({', '.join(sources)}, of "
                "utterances with phones and a speaker)"
            ]
        notes = []
        for context, speaker in itertools.product(self.samples, _SPEAKERS):
            name = _condition(speaker, context)
            if not any(key.startswith(f"abx_{name}_") for key in estimates):
                who = "one speaker" if speaker == "within" else "two speakers"
                place = " between the same neighbours" * (context == "within")
                notes.append(
                    f"ABX {name.replace('_', ' ')}: no phone is said twice by "
                    f"{who}{place}, beside another phone of the same speaker"
                )
        if self._dropped:
            notes.append(f"{self._dropped} ABX items without a whole frame")
        return notes

    def settings(self) -> dict:
        """Return sources and numbers of items and triples."""
        if not self._items:
            return {}
        samples, cells = self.samples.items(), self._cells.items()
        return {
            "abx_items_from": {c: sample.source for c, sample in samples},
            "abx_max_size_group": MAX_SIZE_GROUP,
            "abx_max_x_across": MAX_X_ACROSS,
            "abx_items": {c: len(sample.items) for c, sample in samples},
            "abx_items_of": {c: sample.total for c, sample in samples},
            "abx_triples": {name: some.triples for name, some in cells},
            "abx_triples_of": {name: some.total for name, some in cells},
            "abx_frames": "those whose middle is in the item, as fastabx",
        }


_PLACES = {"within": "same", "any": "any"}


def _condition(speaker, context):
    """Return a name such as within_speaker_same_context."""
    return f"{speaker}_speaker_{_PLACES[context]}_context"
