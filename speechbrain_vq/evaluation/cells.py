"""What is compared with what for an ABX error.

Authors
 * speechbrain_vq authors 2026
"""

import collections
import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .items import Item

# Pairs of items to warp for an error: enough for all of some hundred
# utterances, and of any number for intervals of +-.003 (any neighbours, 50
# speakers) to +-.01 (the same ones, across speakers).
MOST_PAIRS = 4_000_000
# What a cell costs at least, in pairs: many cells have one or two.
_LEAST = 400


class Cell(NamedTuple):
    """What is compared with what: all cells of a phone A and of all phones B,
    for a speaker of A and B, one of X, and neighbours.

    Arguments
    ---------
    speaker : str
        Of A and B.
    phone : str
        Of A and X.
    x, a, b : list of int
        Indices of the items.
    """

    speaker: str
    phone: str
    x: list[int]
    a: list[int]
    b: list[int]

    @property
    def pairs(self) -> int:
        """How many pairs of items are warped."""
        return len(self.x) * (len(self.a) + len(self.b))

    @property
    def triples(self) -> int:
        """How many triples there are; X is no A for itself."""
        itself = self.x is self.a
        return len(self.x) * (len(self.a) - itself) * len(self.b)


class Comparisons(NamedTuple):
    """What is compared for an ABX error.

    Arguments
    ---------
    cells : list of Cell
        What is taken.
    triples : int
        How many triples that are.
    of : int
        How many there would be of all cells.
    """

    cells: list[Cell]
    triples: int
    of: int


def comparisons(
    items: Sequence[Item],
    speaker: str = "within",
    context: str = "within",
    max_x_across: int | None = 5,
    seed: int = 0,
    max_pairs: int | None = None,
) -> Comparisons:
    """What to compare for an ABX error.

    Where there is more than ``max_pairs``, cells are drawn at random: in the
    first round one of each phone and speaker, and so on, so that what the
    error is averaged over is there as far as it can be.

    Arguments
    ---------
    items : sequence of Item
        What there is.
    speaker, context, max_x_across, seed
        As in ``abx``.
    max_pairs : int, optional
        Pairs of items to warp; None: all. Any cell counts for 400 at least.

    Returns
    -------
    Comparisons

    Example
    -------
    >>> ab = [Item("f", 0, 1, phone, "x", "y", "ann") for phone in "aab"]
    >>> comparisons(ab)[1:]
    (2, 2)
    """
    cells = list(_cells(items, speaker, context, max_x_across, seed))
    of = sum(cell.triples for cell in cells)
    if max_pairs is not None:
        cells = _drawn(cells, max_pairs, seed)
    return Comparisons(cells, sum(cell.triples for cell in cells), of)


def _cells(items, speaker, context, max_x_across, seed) -> Iterator[Cell]:
    tree = collections.defaultdict(
        lambda: collections.defaultdict(lambda: collections.defaultdict(list))
    )
    for index, item in enumerate(items):
        where = (item.before, item.after) if context == "within" else ()
        tree[where][item.phone][item.speaker].append(index)
    for where in sorted(tree):
        for phone, said in sorted(tree[where].items()):
            for who, a in said.items():
                b = [
                    index
                    for other, by in tree[where].items()
                    if other != phone
                    for index in by.get(who, ())
                ]
                others = [who]
                if speaker == "across":
                    others = sorted(set(said) - {who})
                    random.Random(f"{seed} {where} {phone} {who}").shuffle(
                        others
                    )
                if b and (speaker == "across" or len(a) > 1):
                    for x in others[:max_x_across]:
                        yield Cell(who, phone, said[x], a, b)


def _drawn(cells, max_pairs, seed):
    """Some of the cells, one of each speaker and phone after the other."""
    if sum(max(cell.pairs, _LEAST) for cell in cells) <= max_pairs:
        return cells
    draw, rounds, order = random.Random(seed), collections.Counter(), []
    for cell in draw.sample(cells, len(cells)):
        order.append((rounds[cell[:2]], len(order), cell))
        rounds[cell[:2]] += 1
    some, left = [], max_pairs
    for _, _, cell in sorted(order, key=lambda one: one[:2]):
        left -= max(cell.pairs, _LEAST)
        if left < 0 and some:
            break
        some.append(cell)
    return some
