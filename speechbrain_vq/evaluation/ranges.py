"""Intervals that stay where the figure can be.

Authors
 * speechbrain_vq authors 2026
"""

import math
import re
from typing import Any

from .sampling import NORMAL, Figure

_SHARE, _POSITIVE = (0.0, 1.0), (0.0, math.inf)
# What names end in, or hold, and the least and the most that it can be.
_RANGES = (
    ("pnmi|(phone|cluster)_purity", _SHARE),
    ("precision|recall|f1", _SHARE),
    ("abx_.+", _SHARE),
    ("(speaker|gender|phone)_(from_.+|chance)", _SHARE),
    ("voicing_error|token_agreement(_own_voice)?", _SHARE),
    (".+:closer_to_target", _SHARE),
    ("stoi", (-1.0, 1.0)),
    ("r_value", (-math.inf, 1.0)),
    ("over_segmentation", (-1.0, math.inf)),
    ("entropy_of_.+|.+_per_second.*", _POSITIVE),
    (
        "mel_cepstral_distortion|log_spectral_distance|f0_rmse|.+:wer_.+",
        _POSITIVE,
    ),
)


def range_of(name: str) -> tuple[float, float]:
    """The least and the most that a figure can be, by its name.

    Example
    -------
    >>> range_of("pnmi_codebook_2"), range_of("si_snr")
    ((0.0, 1.0), (-inf, inf))
    """
    name = re.sub(r"_codebook_\d+$", "", name)
    for pattern, bounds in _RANGES:
        if re.fullmatch(pattern, name):
            return bounds
    return -math.inf, math.inf


def wilson(share: float, number: float) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927, Probable inference,
    the law of succession, and statistical inference).

    Arguments
    ---------
    share : float
        Of the cases, in 0..1.
    number : float
        Of cases that know nothing of each other.

    Returns
    -------
    tuple

    Example
    -------
    >>> low, high = wilson(1.0, 16)
    >>> round(low, 4), high
    (0.8064, 1.0)
    """
    squared = NORMAL**2 / number
    middle = share + squared / 2
    half = math.sqrt(squared * (share * (1 - share) + squared / 4))
    low, high = ((middle + s * half) / (1 + squared) for s in (-1, 1))
    # Rounding must not leave the share, or what there is, out.
    return min(max(low, 0.0), share), max(min(high, 1.0), share)


def in_range(figure: Figure, bounds: tuple[float, float], cases: int) -> Figure:
    """A figure whose interval does not go where no figure can be.

    With bounds at both sides it is Wilson's, of as many cases as would spread
    as the replicates do (the effective sample size of surveys: Kott, 2017, A
    note on Wilson coverage intervals for proportions estimated from complex
    samples; Franco et al., 2019, recommend it). At a bound itself replicates
    do not spread, and the cases are the utterances: that none of 16 was wrong
    does not say that none ever is. With a bound at one side, what is beyond
    is cut off.

    Arguments
    ---------
    figure : Figure
        As ``interval`` gives it.
    bounds : tuple
        The least and the most that it can be.
    cases : int
        Utterances that it was counted on.

    Returns
    -------
    Figure

    Example
    -------
    >>> value, low, high = in_range(Figure(0.9, 0.75, 1.05), (0, 1), cases=9)
    >>> round(low, 3), round(high, 3)
    (0.664, 0.976)
    """
    value, low, high = figure
    if low is None:
        return figure
    least, most = bounds
    size = most - least
    if not math.isfinite(size):
        return Figure(value, max(low, least), min(high, most))
    share = min(max((value - least) / size, 0.0), 1.0)
    error = (high - low) / 2 / NORMAL / size
    spread = share * (1 - share)
    if spread < 1e-9:
        number = cases
    elif error > 0:
        number = spread / error**2
    else:
        return figure
    low, high = (least + size * end for end in wilson(share, number))
    return Figure(value, min(low, value), max(high, value))


def figures_of(measure: Any, count: int) -> dict[str, Figure]:
    """The figures of a measure, each within its range; see ``in_range``.

    Arguments
    ---------
    measure : object
        With ``figures()``, and maybe ``cases``, of how many utterances each
        is, or ``done``, of how many all are.
    count : int
        Of all utterances.

    Returns
    -------
    dict
        From name to ``Figure``.
    """
    figures = measure.figures()
    most, cases = getattr(measure, "done", count), getattr(measure, "cases", {})
    return {
        name: in_range(figure, range_of(name), cases.get(name, most))
        for name, figure in figures.items()
    }
