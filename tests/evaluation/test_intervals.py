"""Bootstrap confidence intervals, against tables, formulas and NumPy."""

import math

import numpy as np
import pytest
import torch

from speechbrain_vq.evaluation.bitrate import BitRate
from speechbrain_vq.evaluation.intervals import (
    PoissonBootstrap,
    WeightedCounts,
    WeightedRatios,
    estimate,
)
from speechbrain_vq.evaluation.metric import NON_NEGATIVE, SHARE, Quantity
from speechbrain_vq.evaluation.phone_units import PhoneInformation
from speechbrain_vq.evaluation.probes import LinearProbes
from speechbrain_vq.evaluation.segmentation import Segmentation

from .synthetic import utterance


def test_replicates_without_utterances_do_not_count():
    """Utterances with equal statistics have no spread."""
    phones = [(0.0, 0.04, "a"), (0.04, 0.08, "b")]
    for metric, names in (
        (PhoneInformation(), ("pnmi", "phone_purity")),
        (BitRate(4), ("perplexity", "bits_per_second_entropy")),
    ):
        bootstrap = PoissonBootstrap(100, seed=0)
        for number in range(2):
            tokens = torch.tensor([[0], [0], [1], [2]])
            entry = {"phones": phones}
            one = utterance(tokens, 0.08, f"u{number}", entry)
            metric.update(one, bootstrap.weights(one.name))
        for name in names:
            value, low, high, _ = metric.compute()[name]
            assert value > 0 and low is None and high is None


@pytest.mark.parametrize(
    "build",
    [
        PhoneInformation,
        Segmentation,
        lambda: LinearProbes({f"utt-{number}" for number in range(30)}),
    ],
)
def test_intervals_count_only_utterances_that_contribute(build):
    """Those without labels change nothing, and one alone has no interval."""

    def estimates(labelled, bare):
        metric, bootstrap = build(), PoissonBootstrap(50)
        for number in range(labelled + bare):
            entry, tokens = {}, torch.arange(8)[:, None] // 4
            if number < labelled:
                phones = [[0, 0.5, "a"], [0.5, 1, "b"]]
                entry = {"phones": phones, "spk_id": "xy"[number % 2]}
            name = f"utt-{number}"
            one = utterance(tokens, name=name, entry=entry)
            metric.update(one, bootstrap.weights(name))
        values = metric.compute()
        return values, metric.notes(values)

    some, notes = estimates(6, 20)
    only, _ = estimates(6, 0)
    assert some == only and some
    assert ("phones: 20 of 26 utterances have none" in notes) == (
        build is PhoneInformation
    )
    alone, _ = estimates(1, 20)
    assert all(one.low is None for one in alone.values())


def test_several_ratios_of_one_utterance_have_no_interval():
    bootstrap, ratios = PoissonBootstrap(50), WeightedRatios()
    share = {"kept": Quantity("kept", bounds=SHARE)}
    for name, of, has_interval in (("utt-1", 9, False), ("utt-2", 8, True)):
        for kept in (3, 4):
            ratios.add("kept", kept, of, bootstrap.weights(name))
        ratios.add("kept", 0, 0, bootstrap.weights("empty"))
        estimates = ratios.estimates(share)
        assert (estimates["kept"].low is not None) == has_interval


def test_the_interval_of_a_mean_is_the_textbooks():
    bootstrap, ratios = PoissonBootstrap(400), WeightedRatios()
    values = np.random.default_rng(0).normal(5, 2, 300)
    for number, value in enumerate(values):
        ratios.add("mean", value, 1, bootstrap.weights(f"utt-{number}"))
    value, low, high, _ = estimate(ratios.values("mean"))
    assert value == pytest.approx(values.mean())
    margin = 1.96 * values.std(ddof=1) / math.sqrt(len(values))
    assert (high - low) / 2 == pytest.approx(margin, rel=0.12)
    assert high - value == pytest.approx(value - low)


def test_weights_are_poisson_and_belong_to_the_name():
    bootstrap = PoissonBootstrap(1000, seed=3)
    weights = bootstrap.weights("utt-1")
    assert weights[0] == 1 and weights.dtype == torch.int32
    assert weights[1:].double().mean() == pytest.approx(1, abs=0.1)
    assert weights[1:].double().var() == pytest.approx(1, abs=0.15)
    assert torch.equal(weights, PoissonBootstrap(1000, seed=3).weights("utt-1"))
    assert not torch.equal(weights, bootstrap.weights("utt-2"))
    assert not torch.equal(weights, PoissonBootstrap(1000, 4).weights("utt-1"))


def test_there_is_no_interval_without_replicates_or_data():
    share = Quantity("share", bounds=SHARE)
    assert estimate([2.0])[:3] == (2.0, None, None)
    assert estimate([1.0], share) == (1.0, None, None, share)
    assert estimate([2.0, 1.0, math.nan])[:3] == (2.0, None, None)
    assert estimate([2.0, 2.0, 2.0])[:3] == (2.0, None, None)
    value, low, high, _ = estimate([math.nan, 1.0, 2.0])
    assert math.isnan(value) and low is None and high is None
    below_zero = estimate([0.1, 9.0, 20.0], Quantity("rate", "", NON_NEGATIVE))
    assert below_zero.low == 0 and below_zero.high > 10


def test_counts_are_of_each_replicate():
    counts = WeightedCounts()
    weights = torch.tensor([[1, 0, 2], [1, 3, 1]]).int()
    # More than it has room for at first.
    counts.add(list(range(100)) * 2, weights[0])
    counts.add([0, 99, 200], weights[1])
    rows = dict(zip(counts.keys(), counts.table().tolist(), strict=True))
    assert rows[0] == [3, 3, 5] and rows[200] == [1, 3, 1]
    assert rows[50] == [2, 0, 4] and len(rows) == 101


def test_beyond_the_limit_nothing_is_counted():
    counts, weights = WeightedCounts(limit=3), torch.ones(2).int()
    counts.add("abc", weights)
    assert not counts.full and len(counts.keys()) == 3
    counts.add("d", weights)
    counts.add("a", weights)
    assert counts.full and counts.keys() == [] and len(counts.table()) == 0
