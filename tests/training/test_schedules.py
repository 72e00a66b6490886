"""Schedules are pure functions of the step, and the paper's come out."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from speechbrain_vq import ReinitSchedule
from speechbrain_vq.training.schedules import ReinitAction


@given(
    warmup=st.integers(0, 30),
    every=st.integers(1, 9),
    until=st.integers(0, 300),
    growth=st.sampled_from([1, 1.0, 1.2, 1.5, 3]),
)
def test_actions_are_those_of_the_recurrence(warmup, every, until, growth):
    plan = ReinitSchedule(warmup, every, warmup + until, growth).resolve()
    events, event = set(), 0
    while event <= until:
        events.add(warmup + event)
        event = math.floor(growth * event + every)
    events.discard(0)  # There is nothing before the first step.
    steps = list(range(400))
    random.Random(0).shuffle(steps)  # The order of asking does not matter.
    for step in steps:
        resets = 0 < step < warmup and (warmup - step) % every == 0
        assert plan(step) == ReinitAction(step < warmup, step in events, resets)


PAPERS_SERIES = [1, 2, 4, 7, 11, 17, 26, 40, 61, 92, 139]


@pytest.mark.parametrize(
    "schedule, steps_per_epoch, wanted",
    [
        (ReinitSchedule(0, 1, growth=1.5), None, PAPERS_SERIES),
        (
            ReinitSchedule("2 epochs", "1 epoch", "100 epochs"),
            391,
            [391 * epoch for epoch in range(2, 101)],
        ),
        (ReinitSchedule("1 epoch", "1 epoch", 12), 4, [4, 8, 12]),
        (ReinitSchedule("1 epoch", "1 epoch", 12), 6, [6, 12]),
        (ReinitSchedule("0.5 epochs", "0.5 epochs", 20), 10, [5, 10, 15, 20]),
        # A warm-up of less than half a step still is a step.
        (ReinitSchedule("0.1 epochs", 2, 5), 2, [1, 3, 5]),
        (ReinitSchedule("0 epochs", 2, 5), 9, [2, 4]),
        # By default each comes half as late again.
        (
            ReinitSchedule(64, until="forever"),
            None,
            [64, 96, 144, 216, 324, 486, 729],
        ),
    ],
)
def test_steps_of_reinitializations(schedule, steps_per_epoch, wanted):
    plan = schedule.resolve(steps_per_epoch)
    last = wanted[-1] + wanted[-1] // 3
    assert [s for s in range(last + 1) if plan(s).reinitialize] == wanted


BAD = {
    "warmup": [(-1, 1), (1.5, 1), (True, 1), ("3 steps", 1), ("101%", 1)],
    "every": [(0, 0), (0, "0 epochs"), (1, "forever")],
    "until": [(0, 1, -1)],
    "growth": [(0, 1, None, 0.9), (0, 1, None, "fast")],
    "max_warmup": [(0, 1, None, 1, 0)],
    "growth=1 needs `every`": [("40%", None, None, 1)],
    "until=4 comes before .* warmup=5": [(5, 3, 4)],
    "never be re-initialized": [("2 epochs", "1 epoch", "1 epoch")],
    "write it in steps": [("1 epoch", 1), (0, "1 epoch")],
}


@pytest.mark.parametrize("message", BAD)
def test_bad_values_are_named(message):
    for arguments in BAD[message]:
        with pytest.raises(ValueError, match=message):
            ReinitSchedule(*arguments).resolve()


@pytest.mark.parametrize("warmup, bypassed", [(5, 5), ("forever", 200)])
def test_without_reinitialization_there_is_a_warmup_alone(warmup, bypassed):
    plan = ReinitSchedule(warmup, "never").resolve()
    assert not plan.reinitializes
    wanted = [ReinitAction(bypass=step < bypassed) for step in range(200)]
    assert [plan(step) for step in range(200)] == wanted


@pytest.mark.parametrize(
    "steps, first, last",
    [
        (1, 0, 0),
        (2, 1, 1),
        (3, 1, 2),
        (10, 4, 8),
        (80, 32, 64),
        (10**6, 2000, 8 * 10**5),
        (None, 100, math.inf),  # Of a run of unknown length
    ],
)
def test_shares_are_of_the_run(steps, first, last):
    plan = ReinitSchedule().resolve(total_steps=steps)
    assert (plan.warmup, plan.until) == (first, last)
    assert plan(first).reinitialize == (first > 0)
    often = ReinitSchedule(0, every="1%").resolve(total_steps=steps)
    assert often(often.every).reinitialize


def test_repr_is_how_to_write_it():
    schedule = ReinitSchedule("2 epochs", 5, growth=1.5)
    assert eval(repr(schedule)) == schedule
