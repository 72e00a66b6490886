"""Intervals and counts of streams, against NumPy.

Authors
 * speechbrain_vq authors 2026
"""

import math

import numpy as np
import pytest
import torch

from speechbrain_vq.evaluation.sampling import (
    Ratios,
    Replicates,
    Tally,
    interval,
)


def test_the_interval_of_a_mean_is_the_textbooks():
    draws, ratios = Replicates(400), Ratios()
    values = np.random.default_rng(0).normal(5, 2, 300)
    for number, value in enumerate(values):
        ratios.add("mean", value, 1, draws.weights(f"utt-{number}"))
    value, low, high = ratios.figure("mean")
    assert value == pytest.approx(values.mean())
    margin = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(margin, rel=0.12)
    assert high - value == pytest.approx(value - low)


def test_weights_are_poisson_and_belong_to_the_name():
    draws = Replicates(1000, seed=3)
    weights = draws.weights("utt-1")
    assert weights[0] == 1 and weights.dtype == torch.int32
    assert weights[1:].double().mean() == pytest.approx(1, abs=0.1)
    assert weights[1:].double().var() == pytest.approx(1, abs=0.15)
    assert torch.equal(weights, Replicates(1000, seed=3).weights("utt-1"))
    assert not torch.equal(weights, draws.weights("utt-2"))
    assert not torch.equal(weights, Replicates(1000, 4).weights("utt-1"))


def test_there_is_no_interval_without_replicates_or_data():
    assert interval([2.0]) == (2.0, None, None)
    assert interval([2.0, 1.0, math.nan]) == (2.0, None, None)
    value, low, high = interval([math.nan, 1.0, 2.0])
    assert math.isnan(value) and low is None and high is None
    assert interval([1.0, 1.0, 1.0]) == (1.0, 1.0, 1.0)


def test_a_tally_counts_each_replicate():
    tally, weights = Tally(), torch.tensor([[1, 0, 2], [1, 3, 1]]).int()
    # More than it has room for at first.
    tally.add(list(range(100)) * 2, weights[0])
    tally.add([0, 99, 200], weights[1])
    rows = dict(zip(tally.keys(), tally.table().tolist(), strict=True))
    assert rows[0] == [3, 3, 5] and rows[200] == [1, 3, 1]
    assert rows[50] == [2, 0, 4] and len(rows) == 101


def test_a_tally_that_is_full_counts_nothing():
    tally, weights = Tally(limit=3), torch.ones(2).int()
    tally.add("abc", weights)
    assert not tally.full and len(tally.keys()) == 3
    tally.add("d", weights)
    tally.add("a", weights)
    assert tally.full and tally.keys() == [] and len(tally.table()) == 0
