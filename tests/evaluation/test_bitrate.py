"""Bit rates, against closed forms."""

import math

import pytest
import torch
from scipy.stats import entropy

from speechbrain_vq.evaluation.bitrate import BitRate, _bits

from .synthetic import utterance

ONCE = torch.ones(1).int()


def values(cost):
    return {name: one.value for name, one in cost.compute().items()}


def test_uniform_units_cost_as_much_as_a_fixed_code():
    cost = BitRate(codebook_size=8)
    cost.update(utterance(torch.arange(8).repeat(10)[:, None], 2.0), ONCE)
    estimates = values(cost)
    assert estimates["frames_per_second"] == 40
    assert estimates["tokens_per_second"] == 40
    for name in ("entropy", "log2_codes", "zerospeech", "runs"):
        assert estimates[f"bits_per_second_{name}"] == pytest.approx(120)
    assert estimates["used_codes_percent"] == 100
    assert estimates["perplexity"] == pytest.approx(8)


def test_one_unit_costs_nothing_but_a_fixed_code():
    cost = BitRate(codebook_size=16)
    cost.update(utterance(torch.full((100, 1), 5), 4.0), ONCE)
    estimates = values(cost)
    assert estimates["bits_per_second_entropy"] == 0
    assert estimates["used_codes_percent"] == 100 / 16
    assert estimates["perplexity"] == 1
    assert estimates["bits_per_second_log2_codes"] == 100
    assert estimates["runs_per_second"] == 0.25
    assert estimates["bits_per_second_runs"] == 0


def test_zerospeech_counts_all_codebooks_at_once():
    """Two codebooks that say the same: twice the entropy, once the symbol."""
    cost = BitRate(codebook_size=2)
    tokens = torch.tensor([[0, 0], [1, 1], [0, 0], [1, 1]])
    cost.update(utterance(tokens, 1.0), ONCE)
    estimates = values(cost)
    assert estimates["tokens_per_second"] == 8
    assert estimates["bits_per_second_entropy"] == pytest.approx(8)
    assert estimates["bits_per_second_zerospeech"] == pytest.approx(4)
    assert estimates["bits_per_second_log2_codes"] == pytest.approx(8)
    assert cost.tables()["code_counts"].tolist() == [[2, 2], [2, 2]]


def test_utterances_add_up_and_do_not_touch():
    cost = BitRate()
    cost.update(utterance(torch.tensor([[1], [1]]), 1.0), ONCE)
    cost.update(utterance(torch.tensor([[1], [0]]), 3.0), ONCE)
    estimates = values(cost)
    assert estimates["frames_per_second"] == 1
    # Runs: 1 | 1 0.
    assert estimates["runs_per_second"] == 0.75
    bits = entropy([2, 1], base=2)
    assert estimates["bits_per_second_runs"] == pytest.approx(0.75 * bits)
    # Of several codebooks, where one changes.
    cost = BitRate()
    tokens = torch.tensor([[1, 1], [1, 1], [1, 2], [1, 1]])
    cost.update(utterance(tokens), ONCE)
    assert values(cost)["runs_per_second"] == 3


def test_entropy_is_scipys_in_each_replicate():
    counts = torch.randint(0, 50, (20, 4))
    expected = [entropy(column, base=2) for column in counts.T.numpy()]
    assert _bits(counts).tolist() == pytest.approx(expected)


def test_too_many_symbols_are_not_counted(monkeypatch):
    monkeypatch.setattr("speechbrain_vq.evaluation.bitrate._MAX_SYMBOLS", 3)
    cost = BitRate()
    cost.update(utterance(torch.arange(5)[:, None].expand(-1, 2), 1.0), ONCE)
    estimates = values(cost)
    assert "bits_per_second_zerospeech" not in estimates
    assert "ZeroSpeech's bit rate" in str(cost.notes(estimates))
    bits = estimates["bits_per_second_entropy"]
    assert bits == pytest.approx(10 * math.log2(5))
