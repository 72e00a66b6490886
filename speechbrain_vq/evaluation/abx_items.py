"""ABX items from a manifest or an item file, subsampled to a bounded number."""

import collections
import hashlib
import math
import os
import random
from collections.abc import Sequence
from typing import NamedTuple

from speechbrain_vq.dataio.items import Item, make_items, read_items

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
        if path and context == "within":
            source = str(path)
            listed = list(read_items(path))
            items = [item for item in listed if item.file in entries]
            if len(items) < len(listed):
                file = next(i.file for i in listed if i.file not in entries)
                notes.append(
                    f"{len(listed) - len(items)} of {len(listed)} ABX items are "
                    f"in files that the manifest does not list, e.g. {file}"
                )
        else:
            items = [
                item
                for name, entry in entries.items()
                if (speaker := entry.get("spk_id"))
                for item in make_items(
                    name, entry["phones"], speaker, context == "within"
                )
            ]
        drawn = subsample(items, context, max_items=limit, seed=seed)
        samples[context] = ItemSample(drawn, len(items), source)
    spoken = [entry for entry in entries.values() if entry["phones"]]
    anonymous = sum(not entry.get("spk_id") for entry in spoken)
    if anonymous:
        notes.append(
            f"ABX items of {anonymous} of {len(spoken)} utterances with phones: "
            "the manifest does not name the speaker (spk_id)"
        )
    return samples, notes


def subsample(
    items: Sequence[Item],
    context: str = "within",
    max_size_group: int = MAX_SIZE_GROUP,
    max_speakers: int = 50,
    max_items: float = math.inf,
    seed: int = 0,
) -> list[Item]:
    """Draw at most ``max_size_group`` items of each group: a speaker, a phone
    and, for ``context="within"``, neighbors. Return them in their order.

    Groups are from at most ``max_speakers`` speakers. If there are still more
    than ``max_items`` items, all items of some neighbors (of some phones for
    ``context="any"``) are dropped, so that items to be compared stay together.
    At least one of the neighbors (phones) is kept. The sample depends on the
    order of items only within a group.
    """
    speakers = sorted({item.speaker for item in items})
    speakers = set(_draw(speakers, max_speakers, f"{seed}"))
    # Indices of items by neighbors (or phone) and group.
    groups = collections.defaultdict(lambda: collections.defaultdict(list))
    for index, item in enumerate(items):
        if item.speaker in speakers:
            group, key = (item.speaker, item.phone), item.phone
            if context == "within":
                key = item.before, item.after
                group += key
            groups[key][group].append(index)

    def rank(key):
        """Return a random rank that does not depend on the order of items."""
        return hashlib.blake2b(f"{seed} {key}".encode(), digest_size=8).digest()

    sample: list[int] = []
    for key in sorted(groups, key=rank):
        drawn = [
            index
            for group, indices in groups[key].items()
            for index in _draw(indices, max_size_group, f"{seed} {group}")
        ]
        if sample and len(sample) + len(drawn) > max_items:
            break
        sample += drawn
    return [items[index] for index in sorted(sample)]


def _draw(values, size, seed):
    if len(values) <= size:
        return values
    return random.Random(seed).sample(values, size)
