"""Schedules of re-initialization: pure functions of the step."""

import math
import re
from dataclasses import dataclass
from typing import NamedTuple

from speechbrain_vq.nnet.utils import check_sizes

Duration = int | str

# How a duration without an end is written.
_ENDLESS = {"warmup": "forever", "every": "never", "until": "forever"}

# Steps of a run of unknown length, for the warm-up's share of it.
_UNKNOWN_RUN = 250


class ReinitAction(NamedTuple):
    """Action due after a step: whether the next one runs without quantization,
    to re-initialize the codebook, or only to empty the reservoir of latents
    that are out of date."""

    bypass: bool = False
    reinitialize: bool = False
    reset: bool = False


class ReinitPlan(NamedTuple):
    """A ``ReinitSchedule`` with its durations in steps."""

    warmup: float
    every: float
    until: float
    growth: float

    @property
    def reinitializes(self) -> bool:
        """Whether the codebook is re-initialized after any step."""
        return math.isfinite(self.warmup) and math.isfinite(self.every)

    def __call__(self, step: int) -> ReinitAction:
        """Return the action due after a number of optimizer steps."""
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
    """A warm-up without quantization, then re-initializations that may grow
    rarer. Durations are optimizer steps, epochs (``"2 epochs"``, as in the
    paper), or a share of the run (``"40%"``; of a run of unknown length, of 250
    steps).

    The first re-initialization ends the warm-up, whose last ``every`` steps
    fill the reservoir. Counted from there, the one after step s comes at step
    ``floor(growth * s + every)``: for ``every=1, growth=1.5`` 1, 2, 4, 7, 11,
    17, 26, ..., as in the code of arXiv 2005.08520.

    Arguments
    ---------
    warmup : int or str
        Duration without quantization; ``"forever"``: no bottleneck at all.
    every : int or str, optional
        Time between the first two re-initializations; ``"never"``: only the
        warm-up. By default each comes ``growth`` times as late in the run as
        the one before it.
    until : int or str, optional
        Last step of re-initialization, or ``"forever"``; by default 80 % of
        the run where its length is known and ``every`` is not given.
    growth : float, optional
        Factor by which the time from the end of the warm-up grows from one
        re-initialization to the next; 1 by default, 1.5 without ``every``.
    max_warmup : int
        Most steps of a warm-up that is a share of the run.

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
                "growth=1 needs `every`: without either there is no time "
                "between re-initializations."
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
        """Write all durations in steps, for a run of known length; those in
        epochs need ``steps_per_epoch``."""
        total = total_steps or _UNKNOWN_RUN
        warmup = _steps(*self._warmup, steps_per_epoch, total)
        if self._warmup[1] == "%":
            # Of two steps the first can be spared.
            warmup = min(max(warmup, int(total > 1)), self.max_warmup)
        every = math.inf
        if self._every is not None:
            every = _steps(*self._every, steps_per_epoch, total)
        elif warmup < math.inf:
            every = max(round((self.growth - 1) * warmup), 1)
        until = _steps(*self._until, steps_per_epoch, total_steps or math.inf)
        return ReinitPlan(warmup, every, max(until, warmup), self.growth)


def _parse(name: str, value: Duration, least: int = 1) -> tuple[float, str]:
    """Number and unit of a duration: ``"step"``, ``"epoch"`` or ``"%"``."""
    if value == _ENDLESS[name]:
        return math.inf, "step"
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(epoch|%)s?", str(value))
    number, unit = (float(match[1]), match[2]) if match else (value, "step")
    whole = isinstance(value, int) and not isinstance(value, bool)
    too_much = unit == "%" and number > 100
    # Half an epoch is still some steps.
    if not (match or whole) or too_much or math.ceil(number) < least:
        raise ValueError(
            f"{name} must be a whole number of steps or a text like '2 "
            f"epochs' or '25%', at least {least}; got {value!r}."
        )
    return number, unit


def _steps(number, unit, steps_per_epoch, total_steps) -> float:
    """A duration in steps, infinite where there is no end."""
    if unit == "epoch" and steps_per_epoch is None:
        raise ValueError(
            "A schedule in epochs needs to know the length of an epoch, and "
            "this data set has none: write it in steps."
        )
    if unit == "epoch":
        return max(round(number * steps_per_epoch), int(number > 0))
    steps = number / 100 * total_steps if unit == "%" else number
    return steps if math.isinf(steps) else int(steps)
