"""Whether units change where phones do.

Authors
 * speechbrain_vq authors 2026
"""

import math
from collections.abc import Sequence

import torch


def unit_boundaries(tokens: torch.Tensor, token_rate: float) -> list[float]:
    """When units change.

    Arguments
    ---------
    tokens : torch.Tensor
        Tokens, [T] or [T, C].
    token_rate : float
        Tokens a second; token i lasts from i to i + 1 of its durations.

    Returns
    -------
    list of float
        In seconds, in order.

    Example
    -------
    >>> unit_boundaries(torch.tensor([4, 4, 7, 7, 2]), 50)
    [0.04, 0.08]
    """
    changed = tokens[1:] != tokens[:-1]
    if changed.dim() == 2:
        changed = changed.any(1)
    changes = changed.nonzero()[:, 0] + 1
    return [int(change) / token_rate for change in changes]


def phone_boundaries(phones: Sequence[tuple[float, float, str]]) -> list[float]:
    """Starts and ends of phones, but the first start and the last end.

    Arguments
    ---------
    phones : sequence
        (start, end, phone) in seconds, in order.

    Returns
    -------
    list of float
        In seconds, in order, each once.

    Example
    -------
    >>> phone_boundaries([(0, 0.1, "a"), (0.1, 0.2, "b"), (0.3, 0.4, "c")])
    [0.1, 0.2, 0.3]
    """
    times = {time for start, end, _ in phones for time in (start, end)}
    return sorted(times)[1:-1]


def matches(
    found: Sequence[float], reference: Sequence[float], tolerance: float = 0.02
) -> int:
    """The greatest number of pairs of a found and a reference boundary that
    are at most ``tolerance`` apart, none of them in two pairs.

    Arguments
    ---------
    found, reference : sequence of float
        In seconds, in order.
    tolerance : float
        In seconds.

    Returns
    -------
    int

    Example
    -------
    >>> matches([0.10, 0.11, 0.30], [0.12, 0.31])
    2
    """
    hits = i = j = 0
    while i < len(found) and j < len(reference):
        late = found[i] - reference[j]
        if abs(late) <= tolerance + 1e-9:
            hits, i, j = hits + 1, i + 1, j + 1
        elif late < 0:
            i += 1
        else:
            j += 1
    return hits


def segmentation_scores(
    hits: float, found: float, reference: float
) -> dict[str, float]:
    """Precision, recall, F1, over-segmentation, and the R-value (Räsänen,
    Laine and Altosaar, Interspeech 2009, equations 3 to 6), in 0..1.

    The R-value is 1 for the ideal, and lower the farther recall and
    over-segmentation are from it; boundaries at random do not raise it.

    Arguments
    ---------
    hits, found, reference : float
        Numbers of pairs, of found boundaries and of those of the reference.

    Returns
    -------
    dict
        nan where a denominator is 0.

    Example
    -------
    >>> segmentation_scores(10, 10, 10)["r_value"]
    1.0
    """
    precision = hits / found if found else math.nan
    recall = hits / reference if reference else math.nan
    total = found + reference
    over = found / reference - 1 if reference else math.nan
    to_ideal = math.hypot(1 - recall, over)
    to_line = (recall - 1 - over) / math.sqrt(2)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / total if total else math.nan,
        "over_segmentation": over,
        "r_value": 1 - (abs(to_ideal) + abs(to_line)) / 2,
    }
