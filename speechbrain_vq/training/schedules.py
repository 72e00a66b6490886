"""Schedules of re-initialization: pure functions of the step."""

import math
import re
from typing import NamedTuple

from speechbrain_vq.nnet.utils import check_sizes

Duration = int | str

# Steps of a run of unknown length, for the warm-up's share of it.
_UNKNOWN_RUN = 250


class ReinitAction(NamedTuple):
    """Action due after a step: whether the next one runs without quantization,
    to re-initialize the codebook, or only to empty the reservoir, whose latents
    of the warm-up are out of date."""

    bypass: bool = False
    reinitialize: bool = False
    reset: bool = False


class ReinitSchedule:
    """A warm-up without quantization, then re-initializations that may grow
    rarer.

    The first re-initialization ends the warm-up. Counted from there, the one
    after step s comes at step ``floor(growth * s + every)``: for ``every=1,
    growth=1.5`` 1, 2, 4, 7, 11, 17, 26, ..., as in the code of arXiv
    2005.08520. The warm-up's last ``every`` steps fill the reservoir that is
    clustered at its end.

    Durations are optimizer steps, epochs (``"2 epochs"``, as in the paper), or
    a share of the run (``"40%"``). Where the length of the run is not known,
    the warm-up takes its share of 250 steps, and ``until`` has no end.

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
        the run, but forever where ``every`` is given.
    growth : float, optional
        Factor by which the time from the end of the warm-up grows from one
        re-initialization to the next; 1 by default, 1.5 without ``every``.
    max_warmup : int
        Most steps of a warm-up that is a share of the run.

    Example
    -------
    >>> schedule = ReinitSchedule(warmup=10, every=1, growth=1.5)
    >>> [step for step in range(60) if schedule(step).reinitialize]
    [10, 11, 12, 14, 17, 21, 27, 36, 50]
    >>> schedule(9).bypass, schedule(10).bypass
    (True, False)
    >>> default = ReinitSchedule().resolve(total_steps=1000)
    >>> [step for step in range(1001) if default(step).reinitialize]
    [400, 600]
    """

    def __init__(
        self,
        warmup: Duration = "40%",
        every: Duration | None = None,
        until: Duration | None = None,
        growth: float | None = None,
        max_warmup: int = 2000,
    ):
        if growth is None:
            growth = 1.5 if every is None else 1.0
        if until is None:
            until = "80%" if every is None else "forever"
        if not (isinstance(growth, int | float) and growth >= 1):
            raise ValueError(f"growth must be a number >= 1, got {growth!r}.")
        if every is None and growth == 1:
            raise ValueError(
                "growth=1 needs `every`: without either there is no time "
                "between re-initializations."
            )
        self.warmup = _Duration("warmup", warmup, least=0)
        self.every = None if every is None else _Duration("every", every)
        self.until = _Duration("until", until, least=0)
        self.growth = growth
        self.max_warmup = max_warmup
        check_sizes(max_warmup=max_warmup)
        end, start = self.until, self.warmup
        if end.unit == start.unit and end.value < start.value:
            raise ValueError(
                f"until={until!r} comes before the end of warmup={warmup!r}: "
                "the codebook would never be re-initialized."
            )

    @property
    def reinitializes(self) -> bool:
        """Whether there is ever a re-initialization."""
        never = self.every is not None and math.isinf(self.every.value)
        return self.ends and not never

    @property
    def ends(self) -> bool:
        """Whether the warm-up ends."""
        return math.isfinite(self.warmup.value)

    def resolve(
        self, steps_per_epoch: int | None = None, total_steps: int | None = None
    ) -> "ReinitSchedule":
        """Write all durations in steps, for a run of known length."""
        durations = self.warmup, self.every, self.until
        if all(d is not None and d.unit == "step" for d in durations):
            return self
        total = total_steps or _UNKNOWN_RUN
        warmup = self.warmup.steps(steps_per_epoch, total)
        if self.warmup.unit == "%":
            # Of two steps the first can be spared.
            warmup = min(max(warmup, int(total > 1)), self.max_warmup)
        if self.every is not None:
            every = self.every.steps(steps_per_epoch, total)
        elif self.ends:
            every = max(round((self.growth - 1) * warmup), 1)
        until = self.until.steps(steps_per_epoch, total_steps or math.inf)
        return ReinitSchedule(
            warmup if self.ends else "forever",
            every if self.reinitializes else "never",
            "forever" if math.isinf(until) else max(until, warmup),
            self.growth,
            self.max_warmup,
        )

    def __call__(
        self,
        step: int,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
    ) -> ReinitAction:
        """Return the action due after a number of optimizer steps; durations
        in epochs need ``steps_per_epoch``."""
        plan = self.resolve(steps_per_epoch, total_steps)
        warmup, every = plan.warmup.value, plan.every.value
        if step < warmup:
            reset = step > 0 and (warmup - step) % every == 0
            return ReinitAction(bypass=True, reset=reset)
        if step == 0 or step > plan.until.value:
            return ReinitAction()
        due = self.reinitializes and self._is_due(step - warmup, every)
        return ReinitAction(reinitialize=due)

    def _is_due(self, since_warmup: int, every: int) -> bool:
        if self.growth == 1:
            return since_warmup % every == 0
        event = 0
        while event < since_warmup:
            event = math.floor(self.growth * event + every)
        return event == since_warmup

    def __repr__(self) -> str:
        names = ("warmup", "every", "until", "growth")
        values = ", ".join(f"{name}={getattr(self, name)}" for name in names)
        return f"ReinitSchedule({values}, max_warmup={self.max_warmup})"


class _Duration:
    """A number of steps, of epochs, a percentage of the run, or no end."""

    ENDLESS = {"warmup": "forever", "every": "never", "until": "forever"}

    def __init__(self, name: str, value: Duration, least: int = 1):
        self.text = repr(value)
        pattern = r"(\d+(?:\.\d+)?) ?(epochs?|%)"
        match = re.fullmatch(pattern, str(value))
        self.unit = match.group(2).rstrip("s") if match else "step"
        self.value = float(match.group(1)) if match else value
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value == self.ENDLESS.get(name, self):
            self.value = math.inf
            return
        too_much = self.unit == "%" and self.value > 100
        # Half an epoch is still some steps.
        if not (match or whole) or too_much or math.ceil(self.value) < least:
            raise ValueError(
                f"{name} must be a whole number of steps or a text like '2 "
                f"epochs' or '25%', at least {least}; got {value!r}."
            )

    def steps(self, steps_per_epoch, total_steps) -> int | float:
        """Number of steps, infinite where there is no end."""
        if self.unit == "step":
            return self.value
        if self.unit == "%":
            share = self.value / 100 * total_steps
            return share if math.isinf(share) else int(share)
        if steps_per_epoch is None:
            raise ValueError(
                "A schedule in epochs needs to know the length of an epoch, "
                "and this data set has none: write it in steps."
            )
        return max(round(self.value * steps_per_epoch), int(self.value > 0))

    def __str__(self) -> str:
        return self.text
