"""Boundaries, against closed forms and a search through all matchings."""

import itertools
import math
import random

import pytest
import torch

from speechbrain_vq.evaluation.segmentation import (
    count_matches,
    phone_boundaries,
    segmentation_scores,
    unit_boundaries,
)


def best_matching(boundaries, reference):
    if not boundaries:
        return 0
    rest = best_matching(boundaries[1:], reference)
    for i, time in enumerate(reference):
        if abs(time - boundaries[0]) <= 0.02 + 1e-9:
            left = reference[:i] + reference[i + 1 :]
            rest = max(rest, 1 + best_matching(boundaries[1:], left))
    return rest


def test_no_other_matching_has_more_pairs():
    draw = random.Random(0)
    for _ in range(300):
        boundaries, reference = (
            sorted(draw.randrange(15) / 100 for _ in range(draw.randrange(6)))
            for _ in range(2)
        )
        most = best_matching(boundaries, reference)
        assert count_matches(boundaries, reference) == most


def test_boundaries_are_where_something_changes():
    tokens = torch.tensor([[1, 1], [1, 1], [1, 2], [3, 2], [3, 2]])
    assert unit_boundaries(tokens, 50) == [0.04, 0.06]
    assert unit_boundaries(tokens[:, :1], 50) == [0.06]
    assert unit_boundaries(tokens[:0], 50) == []
    assert phone_boundaries([(0.0, 1.0, "a")]) == []
    # A phone may end a little before or after the next one starts.
    for gap in (1e-17, 0.004, -0.004):
        phones = [(k / 10, k / 10 + 0.1 - gap, "a") for k in range(5)]
        found = phone_boundaries(phones)
        assert found == pytest.approx([0.1, 0.2, 0.3, 0.4], abs=0.005)


def test_scores_have_the_values_of_the_paper():
    """Recall .75 and over-segmentation .1, in per cent: r1 = sqrt(25^2 +
    10^2), r2 = (-10 + 75 - 100) / sqrt(2)."""
    scores = segmentation_scores(hits=75, detected=110, reference=100)
    assert scores["precision"] == pytest.approx(75 / 110)
    assert scores["recall"] == 0.75 and scores["f1"] == pytest.approx(150 / 210)
    assert scores["over_segmentation"] == pytest.approx(0.1)
    r1, r2 = math.sqrt(25**2 + 10**2), -35 / math.sqrt(2)
    assert scores["r_value"] == pytest.approx(1 - (abs(r1) + abs(r2)) / 200)


def test_the_r_value_sees_through_over_segmentation():
    ideal = segmentation_scores(100, 100, 100)
    everywhere = segmentation_scores(100, 300, 100)
    assert ideal["r_value"] == 1 and ideal["f1"] == 1
    assert everywhere["recall"] == 1 and everywhere["r_value"] < 0
    nothing = segmentation_scores(0, 0, 0)
    assert all(map(math.isnan, itertools.islice(nothing.values(), 3)))
