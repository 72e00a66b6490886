"""Phone information of units, against scikit-learn and closed forms.

Authors
 * speechbrain_vq authors 2026
"""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score

from speechbrain_vq.evaluation.plots import plot_phone_units
from speechbrain_vq.evaluation.units import (
    PhoneUnitCounts,
    cluster_purity,
    mutual_information,
    phone_information,
    phone_purity,
    phones_at,
    pnmi,
)


def test_mutual_information_is_scikit_learns():
    random = np.random.default_rng(0)
    phones, units = random.integers(0, 7, 500), random.integers(0, 30, 500)
    counts = np.zeros((7, 30), dtype=int)
    np.add.at(counts, (phones, units), 1)
    ours = mutual_information(torch.tensor(counts))
    assert ours == pytest.approx(mutual_info_score(phones, units))


def test_pnmi_knows_independence_and_identity():
    assert pnmi(torch.tensor([[1, 2], [3, 6]])) == pytest.approx(0)
    assert pnmi(torch.eye(5).long()) == pytest.approx(1)
    assert pnmi(torch.tensor([[3, 4]])) == 0.0
    # A collapsed codebook tells nothing, and not less than nothing.
    assert pnmi(torch.randint(1, 99, (40, 1))) == 0.0


def test_pnmi_of_a_noisy_channel():
    """A binary symmetric channel with error e has 1 - H(e) of one bit."""
    counts = torch.tensor([[90, 10], [10, 90]])
    error = -(0.9 * math.log2(0.9) + 0.1 * math.log2(0.1))
    assert pnmi(counts) == pytest.approx(1 - error)


def test_renaming_units_changes_nothing():
    counts = torch.randint(0, 9, (6, 40), generator=torch.manual_seed(0))
    order = torch.randperm(40)
    assert pnmi(counts) == pytest.approx(pnmi(counts[:, order]))


def test_a_phone_counts_where_the_middle_of_a_unit_lies():
    phones = [(0.0, 0.031, "a"), (0.031, 0.05, "b"), (0.06, 0.1, "a")]
    table = PhoneUnitCounts(num_units=3, token_rate=50.0)
    # Middles at 10, 30, 50, 70, 90 and 110 ms.
    table.add([0, 1, 2, 2, 1, 0], phones)
    assert table.counts().tolist() == [[1, 2, 1]]
    assert phones_at(phones, [0.031, 0.049, 0.055]) == ["b", "b", None]


def test_purities_are_those_of_hubert():
    counts = torch.tensor([[6, 0, 1], [0, 2, 1]])
    # Phones of units: 6 + 2 + 1; units of phones: 6 + 2; of ten.
    assert phone_purity(counts) == 0.9
    assert cluster_purity(counts) == 0.8
    alone = torch.eye(4).long()
    assert phone_purity(alone) == cluster_purity(alone) == 1
    one_unit = torch.tensor([[3], [7]])
    assert phone_purity(one_unit) == 0.7 and cluster_purity(one_unit) == 1
    assert phone_purity(torch.zeros(2, 2)) == 0


def test_conditional_entropies_are_scikit_learns():
    random = np.random.default_rng(1)
    phones, units = random.integers(0, 5, 400), random.integers(0, 20, 400)
    counts = np.zeros((5, 20), dtype=int)
    np.add.at(counts, (phones, units), 1)
    found = phone_information(torch.tensor(counts))
    of_phones, of_units = entropy(counts.sum(1)), entropy(counts.sum(0))
    shared = mutual_info_score(phones, units)
    assert found["entropy_of_phone_given_unit"] * math.log(2) == pytest.approx(
        of_phones - shared
    )
    assert found["entropy_of_unit_given_phone"] * math.log(2) == pytest.approx(
        of_units - shared
    )
    assert found["pnmi"] == pytest.approx(shared / of_phones)


def test_what_units_tell_leaves_no_entropy():
    found = phone_information(torch.tensor([[4, 4, 0], [0, 0, 8]]))
    assert found["entropy_of_phone_given_unit"] == 0
    assert found["entropy_of_unit_given_phone"] == pytest.approx(0.5)


def test_the_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    counts = torch.randint(0, 5, (3, 16))
    plot_phone_units(counts, ["a", "b", "$c"], tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes()[:4] == b"\x89PNG"
