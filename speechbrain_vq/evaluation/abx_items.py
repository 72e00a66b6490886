"""ABX items from a manifest or an item file, subsampled to a bounded number."""

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

# Maximum number of items of a group: a speaker, a phone and, in the same
# context, neighbors.
MAX_SIZE_GROUP = 10
# Maximum number of items by context. Items for the same context are triphones,
# three times as long as phones.
MAX_ITEMS = {"within": 20_000, "any": 40_000}


class ItemSample(NamedTuple):
    """ABX items to compare with each other, their number before subsampling,
    and their origin for the report."""

    items: list[Item]
    total: int = 0
    source: str = ""


def frames_of(item: Item, rate: float) -> slice:
    """Return the frames, at ``rate`` per second, whose midpoint lies in the
    item, as in fastabx. Libri-Light's ABX has one frame less at the end."""
    # Rounding keeps midpoints exactly on the edges of the item.
    start = math.ceil(round(item.onset * rate - 0.5, 6))
    stop = math.floor(round(item.offset * rate - 0.5, 6)) + 1
    return slice(max(start, 0), stop)


def sample_items(
    entries: dict[str, dict],
    path: str | os.PathLike | None = None,
    seed: int = 0,
) -> tuple[dict[str, ItemSample], list[str]]:
    """Subsample ABX items by context.

    Items for the same context (``"within"``) are triphones of the manifest, or
    the items of a ZeroSpeech item file at ``path``. Those for any context
    (``"any"``) are phones of the manifest. Utterances without a speaker have no
    items. Returns an ``ItemSample`` by context, and notes on unusable items.
    """
    samples, notes = {}, []
    for context, limit in MAX_ITEMS.items():
        source = "made from the manifest's phones"
        read = functools.partial(_items_of_phones, entries, context)
        if path and context == "within":
            source = str(path)
            read = functools.partial(_items_of_file, entries, path)
            notes += _note_unknown_files(entries, path)
        items, total = subsample(read, context, max_items=limit, seed=seed)
        samples[context] = ItemSample(items, total, source)
    spoken = [entry for entry in entries.values() if entry["phones"]]
    anonymous = sum(not entry.get("spk_id") for entry in spoken)
    if anonymous:
        notes.append(
            f"ABX items of {anonymous} of {len(spoken)} utterances with phones: "
            "the manifest does not name the speaker (spk_id)"
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
    """Return a note on items in files that the manifest does not list."""
    files = collections.Counter(item.file for item in read_items(path))
    unknown = [file for file in files if file not in entries]
    if not unknown:
        return []
    return [
        f"{sum(files[file] for file in unknown)} of {files.total()} ABX items "
        f"are in files that the manifest does not list, e.g. {unknown[0]}"
    ]


def subsample(
    read: Callable[[], Iterable[Item]],
    context: str = "within",
    max_size_group: float = MAX_SIZE_GROUP,
    max_speakers: float = 50,
    max_items: float = math.inf,
    seed: int = 0,
) -> tuple[list[Item], int]:
    """Draw at most ``max_size_group`` items of each group: a speaker, a phone
    and, for ``context="within"``, neighbors.

    Groups are from at most ``max_speakers`` speakers. If there are still more
    than ``max_items`` items, all items of some neighbors (of some phones for
    ``context="any"``) are dropped, so that items to be compared stay together.
    At least one of the neighbors (phones) is kept. Memory is bounded by the
    sample size. The sample depends on the order of items only within a group.

    ``read`` returns an iterable of all items, and is called three times.
    Returns the sample in its original order, and the total number of items.
    """
    counts = collections.Counter(item.speaker for item in read())
    speakers = set(_draw(sorted(counts), max_speakers, f"{seed}"))

    def grouped():
        """Yield the groups and items of the drawn speakers."""
        for item in read():
            if item.speaker in speakers:
                group = item.speaker, item.phone
                if context == "within":
                    group += item.before, item.after
                yield group, item

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
    """Count the items of each group that ``max_items`` does not exclude."""
    # Group sizes by neighbors (or phone). These are dropped as a whole, in the
    # descending order of their hashes.
    sizes, heap, total, limit = {}, [], 0, None
    for group, _ in grouped:
        key = group[2:] if context == "within" else group[1]
        if key not in sizes:
            # A pseudo-random rank that does not depend on the order of items.
            digest = hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8)
            rank = int.from_bytes(digest.digest(), "big")
            if limit is not None and rank >= limit:
                continue
            sizes[key] = collections.Counter()
            heapq.heappush(heap, (-rank, key))
        sizes[key][group] += 1
        total += sizes[key][group] <= max_size_group
        while total > max_items and len(heap) > 1:
            rank, key = heapq.heappop(heap)
            limit = -rank
            dropped = sizes.pop(key).values()
            total -= sum(min(size, max_size_group) for size in dropped)
    return {
        group: n for counts in sizes.values() for group, n in counts.items()
    }


def _draw(values, size, seed):
    if len(values) <= size:
        return values
    return random.Random(seed).sample(values, size)
