"""Intervals within the range of the figure, against tables and formulas.

Authors
 * speechbrain_vq authors 2026
"""

import math

import pytest
import torch

from speechbrain_vq.evaluation.items import Item
from speechbrain_vq.evaluation.measures import Abx
from speechbrain_vq.evaluation.ranges import (
    figures_of,
    in_range,
    range_of,
    wilson,
)
from speechbrain_vq.evaluation.sampling import Figure, Ratios, Replicates
from speechbrain_vq.evaluation.sources import Utterance


@pytest.mark.parametrize(
    "of, number, low, high",
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_score_interval_is_that_of_the_tables(of, number, low, high):
    """Newcombe, Two-sided confidence intervals for the single proportion,
    1998, table I, method 3."""
    found = wilson(of / number, number)
    assert found == pytest.approx((low, high), abs=1e-4)
    mirrored = wilson(1 - of / number, number)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=1e-4)


def around(value, error):
    return Figure(value, value - 1.96 * error, value + 1.96 * error)


@pytest.mark.parametrize("value", [0.0, 0.004, 0.11, 0.5, 0.94, 1.0])
@pytest.mark.parametrize("error", [0.0, 1e-12, 0.01, 0.22, 0.5])
@pytest.mark.parametrize("bounds", [(0, 1), (-1, 1), (-1, math.inf), (0, 2)])
def test_an_interval_is_in_range_and_holds_the_value(value, error, bounds):
    found, low, high = in_range(around(value, error), bounds, cases=16)
    assert bounds[0] <= low <= found <= high <= bounds[1]
    assert found == value


def test_far_from_the_bounds_it_stays_what_it_was():
    for bounds in ((0, 1), (-1, 1), (0, math.inf), (-math.inf, math.inf)):
        found = in_range(around(0.4, 0.001), bounds, 9)
        assert found == pytest.approx(around(0.4, 0.001), abs=1e-5)


def test_the_cases_are_those_that_would_spread_as_much():
    """Of shares of independent cases it is the interval of those cases."""
    error = math.sqrt(0.9 * 0.1 / 50)
    found = in_range(around(0.9, error), (0, 1), cases=7)
    assert found[1:] == pytest.approx(wilson(0.9, 50))
    doubled = in_range(around(2 * 0.9 - 1, 2 * error), (-1, 1), cases=7)
    expected = [2 * end - 1 for end in wilson(0.9, 50)]
    assert doubled[1:] == pytest.approx(expected)


def test_that_all_were_right_is_not_taken_for_certain():
    ratios, draws = Ratios(), Replicates(50)
    for number in range(16):
        ratios.add("phone_from_units", 9, 9, draws.weights(f"utt-{number}"))
    figure = ratios.figure("phone_from_units")
    assert figure == (1.0, 1.0, 1.0)
    _, low, high = in_range(figure, (0, 1), cases=16)
    assert low == pytest.approx(16 / (16 + 1.96**2)) and high == 1
    _, low, high = in_range(Figure(0.0, 0.0, 0.0), (0, 1), cases=16)
    assert high == pytest.approx(1 - 16 / (16 + 1.96**2)) and low == 0


def test_where_replicates_agree_or_are_none():
    assert in_range(around(0.3, 0), (0, 1), 9) == (0.3, 0.3, 0.3)
    assert in_range(Figure(1.0), (0, 1), 9) == (1.0, None, None)


@pytest.mark.parametrize(
    "name, bounds",
    [
        ("abx_across_speaker_any_context_units", (0, 1)),
        ("pnmi_codebook_3", (0, 1)),
        ("speaker_from_latents", (0, 1)),
        ("a_judge:closer_to_target", (0, 1)),
        ("whisper:wer_output", (0, math.inf)),
        ("entropy_of_phone_given_unit_codebook_1", (0, math.inf)),
        ("bits_per_second_entropy", (0, math.inf)),
        ("r_value", (-math.inf, 1)),
        ("si_snr", (-math.inf, math.inf)),
        ("resemblyzer:to_target", (-math.inf, math.inf)),
    ],
)
def test_ranges_by_name(name, bounds):
    assert range_of(name) == bounds
    _, low, high = in_range(around(0.5, 100), bounds, 9)
    assert bounds[0] <= low < high <= bounds[1]


def test_the_cases_are_those_of_the_measure():
    class Measure:
        def figures(self):
            return {"pnmi": around(1, 0), "f1": around(1, 0)}

    measure = Measure()
    of = {"pnmi": 16, "f1": 16}
    for cases in ({}, {"done": 3}, {"done": 3, "cases": {"f1": 5}}):
        for name, value in cases.items():
            setattr(measure, name, value)
        of = dict.fromkeys(of, cases.get("done", 16)) | cases.get("cases", {})
        for name, figure in figures_of(measure, 16).items():
            assert figure.low == pytest.approx(of[name] / (of[name] + 1.96**2))


def test_abx_without_an_error_is_of_the_utterances_compared():
    """Of three of four utterances: no other says what the fourth says."""
    items = []
    for file in ("f1", "f2", "f3", "f4"):
        phones = ("c", "c") if file == "f4" else ("a", "b")
        who = "cy" if file == "f4" else "ann"
        for start, phone in enumerate(phones):
            items.append(Item(file, start, start + 1, phone, "x", "y", who))
    measure = Abx({"any": items})
    for file in ("f1", "f2", "f3", "f4"):
        tokens = torch.tensor([[0], [0], [1], [1]])
        one = Utterance(file, {}, tokens, 2.0, 2.0)
        measure.add(one, Replicates(20).weights(file))
    found = figures_of(measure, 4)["abx_within_speaker_any_context_units"]
    assert found.value == found.low == 0
    assert found.high == pytest.approx(1.96**2 / (3 + 1.96**2))
