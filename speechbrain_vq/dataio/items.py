"""Read and write ZeroSpeech item files: phones in context, for ABX."""

import logging
import math
import os
from collections.abc import Iterator, Sequence
from typing import NamedTuple

logger = logging.getLogger(__name__)

SILENCE = "SIL"
# Names of pauses in espeak, Kaldi, Festival and ZeroSpeech.
SILENCES = frozenset([SILENCE, "sil", "sp", "spn", "pau", "_", "#", ""])
# Longest gap between adjacent phones in seconds: alignments have steps of a few
# ms. The extra half ms allows for rounding.
MAX_GAP = 0.005 + 0.0005


class Item(NamedTuple):
    """Line of a ZeroSpeech item file: a phone in an utterance from ``onset`` to
    ``offset`` in seconds, the phones before and after it, and the speaker."""

    file: str
    onset: float
    offset: float
    phone: str
    before: str
    after: str
    speaker: str


def read_items(path: str | os.PathLike) -> Iterator[Item]:
    """Read a ZeroSpeech item file, with the columns ``#file onset offset #phone
    prev-phone next-phone speaker``. A ValueError names a malformed line."""
    with open(path, encoding="utf-8-sig") as lines:
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
                    f"speaker; got {line.strip()!r}."
                ) from None
            yield item


def make_items(
    file: str,
    phones: Sequence[tuple[float, float, str]],
    speaker: str,
    triphones: bool,
) -> list[Item]:
    """Make the items of an utterance: its phones (start, end, name) between two
    other phones, at most 5 ms apart, none of them a pause. A triphone lasts
    from the start of the previous phone to the end of the next one.

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
        if SILENCES.isdisjoint(names) and gap < MAX_GAP:
            times = (before[0], after[1]) if triphones else this[:2]
            items.append(Item(file, *times, *names, speaker))
    return items


def item_file(utts: dict[str, dict]) -> str:
    """Format the triphones of utterances as a ZeroSpeech item file; empty
    without phones, or if a name contains white space, which separates fields."""
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for utt_id, utt in utts.items():
        for item in make_items(utt_id, utt["phones"], utt["spk_id"], True):
            line = " ".join(map(str, item))
            if len(line.split()) != len(item):
                logger.warning("No phones.item: there is a space in %s", item)
                return ""
            lines.append(line)
    has_phones = any(utt["phones"] for utt in utts.values())
    return "\n".join(lines) + "\n" if has_phones else ""
