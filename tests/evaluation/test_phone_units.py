"""Phone information of units, against scikit-learn and closed forms."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import entropy
from sklearn.metrics import mutual_info_score, normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from speechbrain_vq.evaluation.phone_units import (
    PhoneInformation,
    PhoneUnitCounts,
    nmi,
    phone_information,
    phone_purity,
    pnmi,
)

from .synthetic import spans, utterance


def test_pnmi_knows_independence_and_identity():
    assert pnmi(torch.tensor([[1, 2], [3, 6]])) == pytest.approx(0)
    assert pnmi(torch.eye(5).long()) == pytest.approx(1)
    assert pnmi(torch.tensor([[3, 4]])) == 0.0
    # A collapsed codebook tells nothing, and not less than nothing.
    assert pnmi(torch.randint(1, 99, (40, 1))) == 0.0


def test_a_phone_counts_where_the_middle_of_a_unit_lies():
    phones = [(0.0, 0.031, "a"), (0.031, 0.05, "b"), (0.06, 0.1, "a")]
    table = PhoneUnitCounts(num_units=3, token_rate=50.0)
    # Middles at 10, 30, 50, 70, 90 and 110 ms.
    table.add([0, 1, 2, 2, 1, 0], phones)
    assert table.counts().tolist() == [[1, 2, 1]]


def test_purities_are_those_of_hubert():
    counts = torch.tensor([[6, 0, 1], [0, 2, 1]])
    # Phones of units: 6 + 2 + 1; units of phones: 6 + 2; of ten.
    assert phone_purity(counts) == 0.9
    assert phone_information(counts)["cluster_purity"] == 0.8
    values = phone_information(torch.eye(4).long())
    assert values["phone_purity"] == values["cluster_purity"] == 1
    values = phone_information(torch.tensor([[3], [7]]))
    assert values["phone_purity"] == 0.7 and values["cluster_purity"] == 1
    assert phone_purity(torch.zeros(2, 2)) == 0
    assert phone_purity(torch.zeros(0, 4)) == 0


def test_conditional_entropies_are_scikit_learns():
    random = np.random.default_rng(1)
    phones, units = random.integers(0, 5, 400), random.integers(0, 20, 400)
    counts = np.zeros((5, 20), dtype=int)
    np.add.at(counts, (phones, units), 1)
    metrics = phone_information(torch.tensor(counts))
    entropies = {"phone": entropy(counts.sum(1))}
    entropies["unit"] = entropy(counts.sum(0))
    shared = mutual_info_score(phones, units)
    for one, other in (("phone", "unit"), ("unit", "phone")):
        nats = math.log(2) * metrics[f"entropy_of_{one}_given_{other}"]
        assert nats == pytest.approx(entropies[one] - shared)
    assert metrics["pnmi"] == pytest.approx(shared / entropies["phone"])


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_nmi_is_scikit_learns(noise):
    random = np.random.default_rng(0)
    classes = random.integers(0, 7, 500)
    others = random.integers(0, 30, 500)
    codes = np.where(random.random(500) < noise, others, classes)
    counts = torch.tensor(contingency_matrix(classes, codes))
    expected = normalized_mutual_info_score(classes, codes)
    assert nmi(counts) == pytest.approx(expected)
    # Codes that are never used change nothing.
    wider = torch.nn.functional.pad(counts, (0, 5))
    assert nmi(wider) == pytest.approx(expected)
    assert nmi(torch.tensor([[7]])) == 1.0
    assert nmi(torch.tensor([[7], [7]])) == 0.0


def test_within_languages_a_unit_that_tells_the_language_tells_nothing():
    metric, random = PhoneInformation(), np.random.default_rng(0)
    for number in range(40):
        language = (None, "ru", "", "ru")[number % 4]
        names = random.choice(["a", "b", "c"], 10)
        phones = spans(f"{language or ''}-{n}" for n in names)
        # Codebook 1 tells the language, codebook 2 the phone in Russian only.
        known = [ord(n) if language == "ru" else 5 for n in names]
        tokens = torch.tensor([[number % 2, unit] for unit in known])
        entry = {"phones": phones, "lang": language}
        metric.update(utterance(tokens, entry=entry), torch.ones(1).int())
    values = {key: one.value for key, one in metric.compute().items()}
    assert values["pnmi_codebook_1"] > 0.3
    assert values["pnmi_within_languages_codebook_1"] == pytest.approx(0)
    assert values["pnmi_within_languages_codebook_2"] == pytest.approx(0.5)


def test_each_codebook_and_replicate_has_its_table():
    metric = PhoneInformation()
    phones = {"phones": [(0.0, 0.5, "a"), (0.5, 1.0, "b")]}
    good = torch.tensor([[0, 7], [0, 7], [3, 7], [3, 7]])
    bad = torch.tensor([[1, 7], [1, 7], [1, 7], [1, 7]])
    metric.update(utterance(good, entry=phones), torch.tensor([1, 1, 2]).int())
    metric.update(utterance(bad, entry=phones), torch.tensor([1, 0, 1]).int())
    estimates = metric.compute()
    assert len(estimates) == 10 and metric.notes(estimates) == []
    first = estimates["pnmi_codebook_1"]
    # Half of the phones are known; in the first replicate, all.
    assert first.value == pytest.approx(0.5) and first.low < 0.5
    assert estimates["pnmi_codebook_2"].value == 0
    assert str(first.quantity) == "PNMI, codebook 1"
    tables = metric.tables()
    assert tables["phones"] == ["a", "b"]
    assert tables["phone_units"].tolist() == [[2, 2, 0, 0], [0, 2, 0, 2]]
    nameless = PhoneInformation()
    nameless.update(utterance(good), torch.ones(1).int())
    assert nameless.compute() == {} and "no phones" in nameless.notes({})[0]
