"""Schedules are pure functions of the step, and the paper's come out."""

import inspect
import random

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_vq import CodebookTrainer, ReinitSchedule, preset_path
from speechbrain_vq.training import brain
from speechbrain_vq.training.schedules import ReinitAction


def events(schedule, last, steps_per_epoch=None):
    """The steps at which a codebook is re-initialized."""
    plan = schedule.resolve(steps_per_epoch)
    return [step for step in range(last + 1) if plan(step).reinitialize]


def test_growing_series_is_the_papers():
    found = events(ReinitSchedule(0, 1, growth=1.5), 140)
    assert found == [1, 2, 4, 7, 11, 17, 26, 40, 61, 92, 139]


def test_series_counts_from_the_end_of_the_warmup():
    found = events(ReinitSchedule(50, 1, growth=1.5), 80)
    assert found == [50, 51, 52, 54, 57, 61, 67, 76]


@pytest.mark.parametrize("growth, every", [(1, 3), (1.0, 1), (1.2, 5), (3, 2)])
def test_gaps_follow_the_recurrence(growth, every):
    found = [0, *events(ReinitSchedule(0, every, growth=growth), 500)]
    for now, after in zip(found[:-1], found[1:], strict=True):
        assert after == int(growth * now + every)


def test_papers_epochs_give_99_reinitializations():
    paper = ReinitSchedule("2 epochs", "1 epoch", "100 epochs")
    found = events(paper, 391 * 110, 391)
    assert found == [391 * epoch for epoch in range(2, 101)]
    assert len(found) == 99 and found[0] == 782


def test_until_is_the_last_step_that_counts():
    assert events(ReinitSchedule(2, 3, until=8), 100) == [2, 5, 8]
    assert events(ReinitSchedule(2, 3, until=7), 100) == [2, 5]
    assert events(ReinitSchedule(5, 3, until=5), 100) == [5]


def test_a_schedule_that_would_never_reinitialize_is_refused():
    with pytest.raises(ValueError, match="until=4 comes before .* warmup=5"):
        ReinitSchedule(5, 3, until=4)
    with pytest.raises(ValueError, match="never be re-initialized"):
        ReinitSchedule("2 epochs", "1 epoch", "1 epoch")


def test_warmup_bypasses_and_resets_but_never_reinitializes():
    schedule = ReinitSchedule(10, 4).resolve()
    for step in range(10):
        assert schedule(step) == ReinitAction(bypass=True, reset=step in (2, 6))
    assert schedule(10) == ReinitAction(reinitialize=True)


def test_nothing_is_due_before_the_first_step():
    assert ReinitSchedule(0, 1).resolve()(0) == ReinitAction()
    assert ReinitSchedule("1 epoch", 1).resolve(5)(0) == ReinitAction(
        bypass=True
    )


def test_warmup_shorter_than_half_a_step_still_is_a_step():
    assert ReinitSchedule("0.1 epochs", 1).resolve(2)(0).bypass


def test_no_epochs_of_warmup_are_no_step():
    assert not ReinitSchedule("0 epochs", 1).resolve(9)(0).bypass


def test_order_of_asking_does_not_matter():
    schedule = ReinitSchedule(7, 2, until=300, growth=1.3).resolve()
    in_order = [schedule(step) for step in range(400)]
    steps = list(range(400)) * 2
    random.Random(0).shuffle(steps)
    for step in steps:
        assert schedule(step) == in_order[step]


def test_epoch_length_may_change_between_calls():
    schedule = ReinitSchedule("1 epoch", "1 epoch")
    assert events(schedule, 12, 4) == [4, 8, 12]
    assert events(schedule, 12, 6) == [6, 12]


def test_fractions_of_an_epoch_are_rounded_to_steps():
    assert events(ReinitSchedule("0.5 epochs", "0.5 epochs"), 20, 10) == [
        5,
        10,
        15,
        20,
    ]


@pytest.mark.parametrize(
    "arguments, word",
    [
        ((-1, 1), "warmup"),
        ((0, 0), "every"),
        ((0, 1, -1), "until"),
        ((1.5, 1), "warmup"),
        (("two epochs", 1), "warmup"),
        (("3 steps", 1), "warmup"),
        ((0, "0 epochs"), "every"),
        ((True, 1), "warmup"),
        ((None, 1), "warmup"),
        ((0, 1, None, 0.9), "growth"),
        ((0, 1, None, float("nan")), "growth"),
        ((0, 1, None, "fast"), "growth"),
        (("101%", 1), "warmup"),
        ((0, 1, None, 1, 0), "max_warmup"),
    ],
)
def test_bad_values_are_named(arguments, word):
    with pytest.raises(ValueError, match=word):
        ReinitSchedule(*arguments)


@pytest.mark.parametrize("arguments", [("1 epoch", 1), (0, "1 epoch")])
def test_epochs_without_a_length_are_told(arguments):
    with pytest.raises(ValueError, match="write it in steps"):
        ReinitSchedule(*arguments).resolve()


def test_a_warmup_without_reinitialization():
    schedule = ReinitSchedule(5, "never").resolve()
    assert not schedule.reinitializes
    assert [schedule(step).bypass for step in (0, 4, 5, 500)] == [
        True,
        True,
        False,
        False,
    ]
    assert not any(any(schedule(step)[1:]) for step in range(200))


def test_no_bottleneck_at_all():
    schedule = ReinitSchedule("forever", "never").resolve()
    assert all(schedule(step) == ReinitAction(True) for step in range(200))


@pytest.mark.parametrize("arguments", [("never", 1), (1, "forever")])
def test_each_end_has_its_word(arguments):
    with pytest.raises(ValueError, match="warmup|every"):
        ReinitSchedule(*arguments)


def test_defaults_are_those_of_the_preset_robust():
    with open(preset_path("robust"), encoding="utf-8") as file:
        preset = load_hyperpyyaml(file)
    assert repr(ReinitSchedule()) == repr(preset["reinit_schedule"])
    of_trainer = inspect.signature(CodebookTrainer).parameters
    for key, name in brain.OPTIONS.items():
        default = of_trainer[name].default
        assert repr(default) == repr(preset[key]), key


@pytest.mark.parametrize(
    "steps, first, last",
    [(2, 1, 1), (10, 4, 8), (80, 32, 64), (10**6, 2000, 8 * 10**5)],
)
def test_shares_are_of_the_run(steps, first, last):
    plan = ReinitSchedule().resolve(total_steps=steps)
    bypassed = [s for s in range(first + 1) if plan(s).bypass]
    assert bypassed == list(range(first))
    assert plan(first).reinitialize
    changes = [
        s for s in range(last, min(2 * last, steps) + 40) if any(plan(s))
    ]
    assert not [s for s in changes if s > last]


def test_by_default_each_reinitialization_comes_half_as_late_again():
    found = events(ReinitSchedule(64, until="forever"), 1000)
    assert found == [64, 96, 144, 216, 324, 486, 729]


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_the_shortest_run_ends_with_codes(steps):
    assert not ReinitSchedule().resolve(total_steps=steps)(steps).bypass


def test_a_run_of_unknown_length_has_a_warmup_and_no_end():
    schedule = ReinitSchedule()
    plan = schedule.resolve()
    assert plan(99).bypass and plan(100).reinitialize
    assert len(events(schedule, 10**5)) > 15


@pytest.mark.parametrize(
    "schedule",
    [
        ReinitSchedule("2 epochs", 5, growth=1.5),
        ReinitSchedule("forever", "never"),
        ReinitSchedule(),
    ],
)
def test_repr_is_how_to_write_it(schedule):
    assert repr(eval(repr(schedule))) == repr(schedule)


def test_no_time_between_reinitializations_is_refused():
    with pytest.raises(ValueError, match="growth=1 needs `every`"):
        ReinitSchedule(growth=1)
