"""Evaluation of unit changes as phone boundaries."""

import itertools
import math
from collections.abc import Sequence

import torch

from speechbrain_vq.dataio.items import MAX_GAP

from .intervals import estimate
from .metric import SHARE, Estimate, Metric, Quantity
from .utterances import Utterance

# Maximum distance between matching boundaries, in seconds.
TOLERANCE = 0.02


def unit_boundaries(tokens: torch.Tensor, token_rate: float) -> list[float]:
    """Return the times in seconds at which tokens [T, C] change in any
    codebook."""
    changes = (tokens[1:] != tokens[:-1]).any(1).nonzero()[:, 0] + 1
    return [int(change) / token_rate for change in changes]


def phone_boundaries(phones: Sequence[tuple[float, float, str]]) -> list[float]:
    """Return the starts and ends of phones, except the first and the last
    boundary. The end of a phone and the start of the next are one boundary if
    they are at most 5 ms apart."""
    times = sorted(time for start, end, _ in phones for time in (start, end))
    apart = (b - a >= MAX_GAP for a, b in itertools.pairwise(times))
    return list(itertools.compress(times[1:], apart))[:-1]


def count_matches(detected: Sequence[float], reference: Sequence[float]) -> int:
    """Count the pairs in a maximum one-to-one matching of sorted boundaries at
    most ``TOLERANCE`` apart.

    Example
    -------
    >>> count_matches([0.10, 0.11, 0.30], [0.12, 0.31])
    2
    """
    hits = i = j = 0
    while i < len(detected) and j < len(reference):
        delay = detected[i] - reference[j]
        if abs(delay) <= TOLERANCE + 1e-9:
            hits, i, j = hits + 1, i + 1, j + 1
        elif delay < 0:
            i += 1
        else:
            j += 1
    return hits


def segmentation_scores(
    hits: float, detected: float, reference: float
) -> dict[str, float]:
    """Compute precision, recall, F1, over-segmentation and the R-value
    (Räsänen, Laine and Altosaar, Interspeech 2009, equations 3 to 6) from the
    numbers of matches, detected and reference boundaries; nan where a
    denominator is 0.

    The R-value is 1 for perfect recall without over-segmentation, and falls
    with the distance from this point. Random boundaries do not raise it.
    """
    precision = hits / detected if detected else math.nan
    recall = hits / reference if reference else math.nan
    total = detected + reference
    over = detected / reference - 1 if reference else math.nan
    to_ideal = math.hypot(1 - recall, over)
    to_line = (recall - 1 - over) / math.sqrt(2)
    return {
        "precision": precision,
        "recall": recall,
        "f1": 2 * hits / total if total else math.nan,
        "over_segmentation": over,
        "r_value": 1 - (abs(to_ideal) + abs(to_line)) / 2,
    }


class Segmentation(Metric):
    """``segmentation_scores`` of unit changes as phone boundaries."""

    label = f"Unit changes against phone boundaries ({1000 * TOLERANCE:g} ms)"
    quantities = {
        "precision": Quantity("precision", bounds=SHARE),
        "recall": Quantity("recall", bounds=SHARE),
        "f1": Quantity("F1", bounds=SHARE),
        "over_segmentation": Quantity(
            "over-segmentation", bounds=(-1.0, math.inf)
        ),
        "r_value": Quantity("R-value", bounds=(-math.inf, 1.0)),
    }

    def __init__(self):
        self._sums = None

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Count the boundaries between the first and last phone boundary."""
        phones = utterance.entry.get("phones")
        if not phones:
            return
        start, end = phones[0][0], phones[-1][1]
        detected = unit_boundaries(utterance.tokens, utterance.token_rate)
        detected = [time for time in detected if start < time < end]
        reference = phone_boundaries(phones)
        hits = count_matches(detected, reference)
        numbers = torch.tensor([[hits], [len(detected)], [len(reference)]])
        counts = numbers * weights
        self._sums = counts if self._sums is None else self._sums + counts

    def compute(self) -> dict[str, Estimate]:
        """Compute the results, see ``Metric``."""
        if self._sums is None:
            return {}
        scores = [segmentation_scores(*sums) for sums in self._sums.T.tolist()]
        return {
            name: estimate((s[name] for s in scores), quantity)
            for name, quantity in self.quantities.items()
        }

    def settings(self) -> dict:
        """Return the tolerance in seconds."""
        return {"segmentation_tolerance": TOLERANCE}
