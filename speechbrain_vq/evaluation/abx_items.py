"""ABX items of a manifest or an item file, subsampled to a bounded number."""

import collections
import functools
import hashlib
import heapq
import math
import os
import random
from collections.abc import Callable, Iterable
from typing import NamedTuple

from speechbrain_vq.dataio.manifests import Item, make_items, read_items

# Greatest number of items of a speaker, phone and, in the same context,
# neighbours.
MAX_SIZE_GROUP = 10
# Greatest number of items by context: with neighbours they are triphones,
# three times as long as phones.
MOST_ITEMS = {"within": 20_000, "any": 40_000}


class ItemSample(NamedTuple):
    """ABX items to compare with each other, how many there were before
    subsampling, and their origin for the report."""

    items: list[Item]
    total: int = 0
    source: str = ""


def frames_of(item: Item, rate: float) -> slice:
    """Return the frames, at ``rate`` per second, whose middle lies in the item,
    as fastabx does; Libri-Light's ABX leaves out one more at the end."""
    # A middle on an edge in decimals must not fall off it in binary.
    start = math.ceil(round(item.onset * rate - 0.5, 6))
    return slice(
        max(start, 0), math.floor(round(item.offset * rate - 0.5, 6)) + 1
    )


def sample_items(
    entries: dict[str, dict],
    path: str | os.PathLike | None = None,
    seed: int = 0,
) -> tuple[dict[str, ItemSample], list[str]]:
    """Subsample the items of a manifest by context: triphones, or the items of
    a ZeroSpeech item file, to be compared within the same context, and phones
    for any context. Utterances without a speaker have no items.

    Returns ``ItemSample`` by context, ``"within"`` and ``"any"``, and notes on
    items that cannot be used.
    """
    samples, notes = {}, []
    for context, limit in MOST_ITEMS.items():
        source = "made of the manifest's phones"
        read = functools.partial(_items_of_phones, entries, context)
        if path and context == "within":
            source = str(path)
            read = functools.partial(_items_of_file, entries, path)
            notes += _note_unknown_files(entries, path)
        items, total = subsample(read, context, max_items=limit, seed=seed)
        samples[context] = ItemSample(items, total, source)
    spoken = [entry for entry in entries.values() if entry["phones"]]
    nameless = sum(not entry.get("spk_id") for entry in spoken)
    if nameless:
        notes.append(
            f"ABX items of {nameless} of {len(spoken)} utterances with phones: "
            "the manifest (spk_id) does not name the speaker"
        )
    return samples, notes


def _items_of_phones(entries, context):
    for name, entry in entries.items():
        if speaker := entry.get("spk_id"):
            triphones = context == "within"
            yield from make_items(name, entry["phones"], speaker, triphones)


def _items_of_file(entries, path):
    return (item for item in read_items(path) if item.file in entries)


def _note_unknown_files(entries, path):
    """Note items of files that the manifest does not have."""
    files = collections.Counter(item.file for item in read_items(path))
    unknown = [file for file in files if file not in entries]
    if not unknown:
        return []
    return [
        f"{sum(files[file] for file in unknown)} of {files.total()} ABX items "
        f"are of files that the manifest does not name, e.g. {unknown[0]}"
    ]


def subsample(
    read: Callable[[], Iterable[Item]],
    context: str = "within",
    max_size_group: float = MAX_SIZE_GROUP,
    max_speakers: float = 50,
    max_items: float = math.inf,
    seed: int = 0,
) -> tuple[list[Item], int]:
    """Draw at most so many items of each speaker, phone and
    (``context="within"``) neighbours, of so many speakers. ``read`` returns an
    iterable of all items, and is called three times.

    If these are still more than ``max_items``, all items of some neighbours
    (or, for ``context="any"``, phones) but the first are left out, so that
    items to be compared stay together. Memory is bounded by the size of the
    sample, which depends on the order of items only within a group.

    Returns the items, in their order, and the number of all items.
    """
    counts = collections.Counter(item.speaker for item in read())
    speakers = set(_draw(sorted(counts), max_speakers, f"{seed}"))

    def grouped():
        for item in read():
            if item.speaker in speakers:
                place = (item.before, item.after) if context == "within" else ()
                yield (item.speaker, item.phone, *place), item

    sizes = _group_sizes(grouped(), context, max_size_group, max_items, seed)
    drawn = {
        group: set(_draw(range(size), max_size_group, f"{seed} {group}"))
        for group, size in sizes.items()
    }
    items, position = [], dict.fromkeys(drawn, 0)
    for group, item in grouped():
        if group in drawn:
            if position[group] in drawn[group]:
                items.append(item)
            position[group] += 1
    return items, counts.total()


def _group_sizes(grouped, context, max_size_group, max_items, seed):
    """Count the items of each group, without what ``max_items`` leaves out."""
    # From neighbours (or phone), which are left out as a whole, to the sizes
    # of their groups; those of the greatest hash go first.
    sizes, heap, total, limit = {}, [], 0, None
    for group, _ in grouped:
        place = group[2:] if context == "within" else group[1]
        if place not in sizes:
            # Pseudo-random, and a function of the text alone.
            digest = hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8)
            rank = int.from_bytes(digest.digest(), "big")
            if limit is not None and rank >= limit:
                continue
            sizes[place] = collections.Counter()
            heapq.heappush(heap, (-rank, place))
        sizes[place][group] += 1
        total += sizes[place][group] <= max_size_group
        while total > max_items and len(heap) > 1:
            rank, last = heapq.heappop(heap)
            limit = -rank
            dropped = sizes.pop(last).values()
            total -= sum(min(size, max_size_group) for size in dropped)
    return {
        group: n for counts in sizes.values() for group, n in counts.items()
    }


def _draw(values, size, seed):
    if len(values) <= size:
        return values
    return random.Random(seed).sample(values, size)
