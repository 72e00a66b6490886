"""Schedules of codebook re-initialization, as pure functions of the step."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from speechbrain_vq.nnet.utils import check_sizes

Duration = int | str

# Values for an infinite duration.
_ENDLESS = {"warmup": "forever", "every": "never", "until": "forever"}

# Assumed number of steps in a run of unknown length, for a relative warm-up.
_UNKNOWN_RUN = 250


class ReinitAction(NamedTuple):
    """Action after a step: whether to bypass quantization in the next step,
    re-initialize the codebook, or just clear outdated latents from the
    reservoir."""

    bypass: bool = False
    reinitialize: bool = False
    reset: bool = False


class ReinitPlan(NamedTuple):
    """``ReinitSchedule`` with all durations in optimizer steps."""

    warmup: float
    every: float
    until: float
    growth: float

    @property
    def reinitializes(self) -> bool:
        """Whether the codebook is ever re-initialized."""
        return math.isfinite(self.warmup) and math.isfinite(self.every)

    def describe(self) -> str:
        """Describe the plan in words, for a log."""
        if not self.reinitializes:
            return f"no quantization for {self.warmup:g} steps"
        until = f"step {self.until}" if self.until < math.inf else "the end"
        return (
            f"no quantization for {self.warmup} steps, then re-initialization "
            f"by k-means until {until}"
        )

    def __call__(self, step: int) -> ReinitAction:
        """Return the action after a number of optimizer steps."""
        since_warmup = step - self.warmup
        if since_warmup < 0:
            reset = step > 0 and -since_warmup % self.every == 0
            return ReinitAction(bypass=True, reset=reset)
        if step == 0 or step > self.until or not self.reinitializes:
            return ReinitAction()
        event = 0
        if self.growth == 1:
            event = since_warmup // self.every * self.every
        while event < since_warmup:
            event = math.floor(self.growth * event + self.every)
        return ReinitAction(reinitialize=event == since_warmup)


@dataclass
class ReinitSchedule:
    """Schedule of a warm-up without quantization, and of re-initializations.

    Durations are in optimizer steps (``100``), in epochs (``"2 epochs"``, as in
    the paper), or relative to the run (``"40%"``; of 250 steps if the length of
    the run is unknown).

    The first re-initialization ends the warm-up, whose last ``every`` steps
    fill the reservoir. Counting from there, a re-initialization at step s is
    followed by one at ``floor(growth * s + every)``. With ``every=1`` and
    ``growth=1.5``, they are at 1, 2, 4, 7, 11, 17, 26, ..., as in the code of
    arXiv 2005.08520.

    Arguments
    ---------
    warmup : int or str
        Duration without quantization; ``"forever"`` for no bottleneck at all.
    every : int or str, optional
        Interval between the first two re-initializations; ``"never"`` for a
        warm-up only. By default, each re-initialization is at ``growth`` times
        the step of the previous one.
    until : int or str, optional
        Step of the last re-initialization, or ``"forever"``. Default: 80 % of a
        run of known length if ``every`` is not given, else ``"forever"``.
    growth : float, optional
        Factor by which the time since the warm-up grows between
        re-initializations; 1 by default, 1.5 without ``every``.
    max_warmup : int
        Maximum number of steps of a relative warm-up.

    Example
    -------
    >>> plan = ReinitSchedule(warmup=10, every=1, growth=1.5).resolve()
    >>> [step for step in range(60) if plan(step).reinitialize]
    [10, 11, 12, 14, 17, 21, 27, 36, 50]
    >>> plan = ReinitSchedule().resolve(total_steps=1000)
    >>> [step for step in range(1001) if plan(step).reinitialize]
    [400, 600]
    """

    warmup: Duration = "40%"
    every: Duration | None = None
    until: Duration | None = None
    growth: float | None = None
    max_warmup: int = 2000

    def __post_init__(self):
        is_every = self.every is not None
        if self.growth is None:
            self.growth = 1.0 if is_every else 1.5
        if self.until is None:
            self.until = "forever" if is_every else "80%"
        growth, until = self.growth, self.until
        if not (isinstance(growth, int | float) and growth >= 1):
            raise ValueError(f"growth must be a number >= 1, got {growth!r}.")
        if not is_every and growth == 1:
            raise ValueError(
                "growth=1 needs `every`, the interval between "
                "re-initializations."
            )
        check_sizes(max_warmup=self.max_warmup)
        self._warmup = _parse("warmup", self.warmup, least=0)
        self._every = _parse("every", self.every) if is_every else None
        self._until = _parse("until", until, least=0)
        (end, end_unit), (start, start_unit) = self._until, self._warmup
        if end_unit == start_unit and end < start:
            raise ValueError(
                f"until={until!r} comes before the end of warmup="
                f"{self.warmup!r}: the codebook would never be re-initialized."
            )

    def resolve(
        self, steps_per_epoch: int | None = None, total_steps: int | None = None
    ) -> ReinitPlan:
        """Convert durations to steps; epochs need ``steps_per_epoch``."""
        total = total_steps or _UNKNOWN_RUN
        warmup = _steps(*self._warmup, steps_per_epoch, total)
        if self._warmup[1] == "%":
            # At least one step, unless the run has only one.
            warmup = min(max(warmup, int(total > 1)), self.max_warmup)
        every = math.inf
        if self._every is not None:
            every = max(_steps(*self._every, steps_per_epoch, total), 1)
        elif warmup < math.inf:
            every = max(round((self.growth - 1) * warmup), 1)
        until = _steps(*self._until, steps_per_epoch, total_steps or math.inf)
        return ReinitPlan(warmup, every, max(until, warmup), self.growth)


def _parse(name: str, value: Duration, least: int = 1) -> tuple[float, str]:
    """Parse a duration into a number and its unit: "step", "epoch" or "%"."""
    if value == _ENDLESS[name]:
        return math.inf, "step"
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(epoch|%)s?", str(value))
    number, unit = (float(match[1]), match[2]) if match else (value, "step")
    whole = isinstance(value, int) and not isinstance(value, bool)
    too_much = unit == "%" and number > 100
    # A fraction of an epoch is at least one step.
    if not (match or whole) or too_much or math.ceil(number) < least:
        raise ValueError(
            f"{name} must be an integer number of steps or a string like '2 "
            f"epochs' or '25%', at least {least}; got {value!r}."
        )
    return number, unit


def _steps(number, unit, steps_per_epoch, total_steps) -> float:
    """Convert a duration to steps."""
    if unit == "epoch" and steps_per_epoch is None:
        raise ValueError(
            "A schedule in epochs requires the number of optimizer steps per "
            "epoch, which is unknown here: write it in steps, or pass "
            "steps_per_epoch to CodebookTrainer."
        )
    if unit == "epoch":
        return max(round(number * steps_per_epoch), int(number > 0))
    steps = number / 100 * total_steps if unit == "%" else number
    return steps if math.isinf(steps) else int(steps)
