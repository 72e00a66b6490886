"""The items of ABX: pieces of files in which a phone is said.

Authors
 * speechbrain_vq authors 2026
"""

import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

# What pauses are called by espeak, Kaldi, Festival and ZeroSpeech.
SILENCES = frozenset(["SIL", "sil", "sp", "spn", "pau", "_", "#", ""])
# Neighbours touch if nothing longer is between them, in seconds: alignments
# are in steps of a few ms.
_TOUCH = 0.005


class Item(NamedTuple):
    """A line of a ZeroSpeech item file.

    Arguments
    ---------
    file : str
        Name of the utterance.
    onset, offset : float
        In seconds.
    phone, before, after : str
        The phone, and its neighbours.
    speaker : str
        Who says it.
    """

    file: str
    onset: float
    offset: float
    phone: str
    before: str
    after: str
    speaker: str


def read_items(path: str | os.PathLike) -> Iterator[Item]:
    """Reads ``#file onset offset #phone prev-phone next-phone speaker``.

    Arguments
    ---------
    path : path
        The item file.

    Yields
    ------
    Item
        The item of each line.

    Raises
    ------
    ValueError
        If a line is none.
    """
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields or line.startswith("#file"):
                continue
            try:
                file, onset, offset, *names = fields
                item = Item(file, float(onset), float(offset), *names)
                if not 0 <= item.onset <= item.offset < math.inf:
                    raise ValueError
            except (ValueError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: an item has a file, an onset, an "
                    "offset, a phone, the phones before and after it, and a "
                    f"speaker; this is {line.strip()!r}."
                ) from None
            yield item


def make_items(
    file: str,
    phones: Sequence[tuple[float, float, str]],
    speaker: str,
    triphones: bool,
) -> list[Item]:
    """The items of an utterance, as the recipes write them: phones without a
    pause before, in or after them, whose neighbours touch them (5 ms).

    Arguments
    ---------
    file : str
        Name of the utterance.
    phones : sequence
        (start, end, phone) in seconds.
    speaker : str
        Who says it.
    triphones : bool
        Whether an item lasts from the phone before to the phone after.

    Returns
    -------
    list of Item

    Example
    -------
    >>> phones = [(0.0, 0.1, "a"), (0.1, 0.3, "b"), (0.3, 0.4, "c")]
    >>> make_items("utt", phones, "ann", triphones=True)[0][:4]
    ('utt', 0.0, 0.4, 'b')
    """
    items = []
    for before, this, after in zip(
        phones, phones[1:], phones[2:], strict=False
    ):
        names = this[2], before[2], after[2]
        gap = max(abs(this[0] - before[1]), abs(after[0] - this[1]))
        # Half a ms more: decimals are not exact in binary.
        if SILENCES.isdisjoint(names) and gap < _TOUCH + 0.0005:
            times = (before[0], after[1]) if triphones else this[:2]
            items.append(Item(file, *times, *names, speaker))
    return items


def frames_of(item: Item, rate: float) -> slice:
    """The frames whose middle is in the item, as fastabx has it; Libri-Light's
    ABX leaves out one more at the end.

    Arguments
    ---------
    item : Item
        The item.
    rate : float
        Frames a second.

    Returns
    -------
    slice

    Example
    -------
    >>> frames_of(Item("utt", 0.029, 0.071, "a", "b", "c", "ann"), 100)
    slice(3, 7, None)
    """
    # What lies on an edge in decimals must not fall off it in binary.
    start = math.ceil(round(item.onset * rate - 0.5, 6))
    return slice(
        max(start, 0), math.floor(round(item.offset * rate - 0.5, 6)) + 1
    )
