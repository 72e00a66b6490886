"""The items of ABX: pieces of files in which a phone is said.

Authors
 * speechbrain_vq authors 2026
"""

import math

from speechbrain_vq.dataio.manifests import Item, make_items, read_items

__all__ = ["Item", "frames_of", "make_items", "read_items"]


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
