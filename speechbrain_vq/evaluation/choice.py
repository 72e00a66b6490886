"""A choice of ABX items of bounded size, of a corpus of any.

Authors
 * speechbrain_vq authors 2026
"""

import collections
import functools
import hashlib
import heapq
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from .items import Item, make_items, read_items

# What a choice of items has at most, by context: of the same one, they are
# phones with their neighbours, three times as long.
MOST_ITEMS = {"within": 20_000, "any": 40_000}


class Chosen(NamedTuple):
    """Items to compare.

    Arguments
    ---------
    items : list of Item
        The items.
    of : int
        How many there were.
    source : str
        Where they are from.
    """

    items: list[Item]
    of: int
    source: str


class Again:
    """Things that are made anew each time that they are gone through, so that
    they need not be kept; ``number`` says how many they were the last time.

    Arguments
    ---------
    make : callable
        Gives the things.

    Example
    -------
    >>> twice = Again(lambda: (number for number in range(3)))
    >>> list(twice), list(twice)
    ([0, 1, 2], [0, 1, 2])
    """

    def __init__(self, make: Callable[[], Iterable]):
        self.make, self.number = make, 0

    def __iter__(self) -> Iterator:
        self.number = 0
        for thing in self.make():
            self.number += 1
            yield thing


def choose_items(
    entries: dict[str, dict],
    path: str | os.PathLike | None,
    max_size_group: int | None,
    seed: int = 0,
) -> tuple[dict[str, Chosen], list[str]]:
    """The items of a manifest, by context: for the same one triphones, or
    those of a file, and for any one phones. Who says them must be known.

    Arguments
    ---------
    entries : dict
        The manifest.
    path : path, optional
        A ZeroSpeech item file.
    max_size_group : int, optional
        See ``capped``.
    seed : int
        Of the choice.

    Returns
    -------
    tuple
        ``Chosen`` by context, ``"within"`` and ``"any"``, and in words which
        items of the file are of no use.

    Raises
    ------
    ValueError
        If the file is none.
    """
    found, told = {}, []
    for context, triphones in (("within", True), ("any", False)):
        source = "made of the manifest's phones"
        items = Again(functools.partial(_made, entries, triphones))
        if path and context == "within":
            source = str(path)
            items = Again(functools.partial(_given, entries, path))
            told += _of_no_use(entries, path)
        most = MOST_ITEMS[context]
        some = capped(items, context, max_size_group, max_items=most, seed=seed)
        found[context] = Chosen(some, items.number, source)
    return found, told


def _made(entries, triphones):
    for name, entry in entries.items():
        if entry.get("spk_id"):
            yield from make_items(
                name, entry["phones"], entry["spk_id"], triphones
            )


def _given(entries, path):
    return (item for item in read_items(path) if item.file in entries)


def _of_no_use(entries, path):
    number, unknown, example = 0, 0, None
    for item in read_items(path):
        number += 1
        if item.file not in entries:
            unknown, example = unknown + 1, example or item.file
    if not unknown:
        return []
    return [
        f"{unknown} of {number} ABX items are of files that the manifest does "
        f"not name, e.g. {example}"
    ]


def capped(
    items: Iterable[Item],
    context: str = "within",
    max_size_group: int | None = 10,
    max_speakers: int | None = 50,
    max_phones: int | None = 200,
    max_items: int | None = None,
    seed: int = 0,
) -> list[Item]:
    """A random choice of items: so many of each speaker, phone and
    (``context="within"``) neighbours, of so many speakers and phones.

    If these are too many still, whole neighbours (or, for ``context="any"``,
    phones) are left out, at random: what is compared with each other stays
    together. No more is kept in memory than what is chosen, and the choice
    does not depend on the order, but for that within a group.

    Arguments
    ---------
    items : iterable of Item
        The items, which are gone through three times, see ``Again``.
    context : str
        ``"within"`` or ``"any"``.
    max_size_group : int, optional
        How many of a group; None: all.
    max_speakers, max_phones : int, optional
        How many speakers and phones; None: all.
    max_items : int, optional
        How many items, unless the first neighbours (or phone) alone have more;
        None: all.
    seed : int
        Of the choice.

    Returns
    -------
    list of Item
        In the order in which they came.
    """
    if iter(items) is items:
        raise TypeError("Items are gone through three times: give a list.")
    speakers, phones = set(), set()
    for item in items:
        speakers.add(item.speaker)
        phones.add(item.phone)
    speakers = set(_some(sorted(speakers), max_speakers, f"{seed}"))
    phones = set(_some(sorted(phones), max_phones, f"{seed}"))

    def groups():
        for item in items:
            if item.speaker in speakers and item.phone in phones:
                where = (item.before, item.after) if context == "within" else ()
                yield (item.speaker, item.phone, *where), item

    sizes = _sizes(groups(), context, max_size_group, max_items, seed)
    chosen = {
        key: set(_some(range(size), max_size_group, f"{seed} {key}"))
        for key, size in sizes.items()
    }
    found, passed = [], dict.fromkeys(chosen, 0)
    for key, item in groups():
        if key in chosen:
            if passed[key] in chosen[key]:
                found.append(item)
            passed[key] += 1
    return found


def _sizes(groups, context, max_size_group, max_items, seed):
    """How many items there are of each group that is not left out."""
    most_in_group = math.inf if max_size_group is None else max_size_group
    kept, heap, total, limit = {}, [], 0, None
    for key, _ in groups:
        # What is left out at once, or not at all.
        where = key[2:] if context == "within" else key[1]
        if where not in kept:
            rank = _rank(f"{seed} {where}")
            if limit is not None and rank >= limit:
                continue
            kept[where] = collections.Counter()
            heapq.heappush(heap, (-rank, where))
        kept[where][key] += 1
        total += kept[where][key] <= most_in_group
        while max_items is not None and total > max_items and len(heap) > 1:
            rank, last = heapq.heappop(heap)
            limit = -rank
            total -= sum(
                min(size, most_in_group) for size in kept.pop(last).values()
            )
    return {key: n for sizes in kept.values() for key, n in sizes.items()}


def _rank(text):
    """A number that looks random, the same for the same text."""
    return int.from_bytes(
        hashlib.blake2b(text.encode(), digest_size=8).digest(), "big"
    )


def _some(things, size, seed):
    if size is None or len(things) <= size:
        return things
    return random.Random(seed).sample(things, size)
