"""Schedules of re-initialization: pure functions of the step."""

import math
import re
from typing import NamedTuple

Duration = int | str


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

    The first comes at the end of the warm-up. Counted from there, the one
    after step s comes at step ``floor(growth * s + every)``: for ``every=1,
    growth=1.5`` 1, 2, 4, 7, 11, 17, 26, ..., as in the code of arXiv
    2005.08520. During the warm-up the reservoir is emptied every ``every``
    steps, so that what is clustered at its end is recent.

    Durations are optimizer steps, or epochs if written as such: the schedule
    of the paper's recipes is ``ReinitSchedule("2 epochs", "1 epoch", "100
    epochs")``.

    Arguments
    ---------
    warmup : int or str
        Duration without quantization; ``"forever"``: no bottleneck at all.
    every : int or str
        Time between re-initializations; ``"never"``: only the warm-up.
    until : int or str, optional
        Last step of re-initialization; None: no end.
    growth : float
        Factor by which the time from the end of the warm-up grows from one
        re-initialization to the next.
    scope : str
        ``"all"`` for every codeword (the paper), ``"dead"`` for
        only those that are the nearest of nothing in the reservoir.

    Example
    -------
    >>> schedule = ReinitSchedule(warmup=10, every=1, growth=1.5)
    >>> [step for step in range(60) if schedule(step).reinitialize]
    [10, 11, 12, 14, 17, 21, 27, 36, 50]
    >>> schedule(9).bypass, schedule(10).bypass
    (True, False)
    >>> paper = ReinitSchedule("2 epochs", "1 epoch", "5 epochs")
    >>> [e for e in range(9) if paper(e * 30, steps_per_epoch=30).reinitialize]
    [2, 3, 4, 5]
    """

    def __init__(
        self,
        warmup: Duration = 100,
        every: Duration = 100,
        until: Duration | None = None,
        growth: float = 1.0,
        scope: str = "all",
    ):
        self.warmup = _Duration("warmup", warmup, at_least=0)
        self.every = _Duration("every", every, at_least=1)
        self.until = None
        if until is not None:
            self.until = _Duration("until", until, at_least=0)
        if not (isinstance(growth, int | float) and growth >= 1):
            raise ValueError(f"growth must be a number >= 1, got {growth!r}.")
        if (
            self.until is not None
            and self.until.in_epochs == self.warmup.in_epochs
            and self.until.value < self.warmup.value
        ):
            raise ValueError(
                f"until={until!r} comes before the end of warmup={warmup!r}: "
                "the codebook would never be re-initialized."
            )
        if scope not in ("all", "dead"):
            raise ValueError(f"scope must be 'all' or 'dead', got {scope!r}.")
        self.growth = growth
        self.scope = scope

    @property
    def reinitializes(self) -> bool:
        """Whether there is ever a re-initialization."""
        return math.isfinite(self.warmup.value + self.every.value)

    @property
    def ends(self) -> bool:
        """Whether the warm-up ends."""
        return math.isfinite(self.warmup.value)

    def __call__(
        self, step: int, steps_per_epoch: int | None = None
    ) -> ReinitAction:
        """Return the action due after a number of optimizer steps; durations
        in epochs need ``steps_per_epoch``."""
        warmup = self.warmup.steps(steps_per_epoch)
        every = self.every.steps(steps_per_epoch)
        if step < warmup:
            reset = step > 0 and step % every == 0
            return ReinitAction(bypass=True, reset=reset)
        until = self.until and self.until.steps(steps_per_epoch)
        late = until is not None and step > until
        if step == 0 or late or not self.reinitializes:
            return ReinitAction()
        return ReinitAction(reinitialize=self._is_due(step - warmup, every))

    def warmup_steps(self, steps_per_epoch: int | None = None) -> float:
        """Return the optimizer steps of the warm-up; may be infinite."""
        return self.warmup.steps(steps_per_epoch)

    def shortened(self, total_steps: int) -> "ReinitSchedule":
        """Shorten a schedule in steps so that its warm-up takes at most a
        quarter of a run, and as many steps lie between re-initializations.

        >>> ReinitSchedule(100, 100).shortened(40)
        ReinitSchedule(warmup=10, every=10, until=None, growth=1.0, scope='all')
        """
        quarter = max(total_steps // 4, 1)
        if self.warmup.value <= quarter:
            return self
        every = min(self.every.value, quarter)
        return ReinitSchedule(quarter, every, None, self.growth, self.scope)

    def _is_due(self, since_warmup: int, every: int) -> bool:
        if self.growth == 1:
            return since_warmup % every == 0
        event = 0
        while event < since_warmup:
            event = math.floor(self.growth * event + every)
        return event == since_warmup

    def __repr__(self) -> str:
        return (
            f"ReinitSchedule(warmup={self.warmup}, every={self.every}, "
            f"until={self.until}, growth={self.growth}, scope={self.scope!r})"
        )


class _Duration:
    """A number of steps, or of epochs, or no end."""

    ENDLESS = {"warmup": "forever", "every": "never"}

    def __init__(self, name: str, value: Duration, at_least: int):
        self.text = repr(value)
        match = re.fullmatch(r"(\d+(?:\.\d+)?) epochs?", str(value))
        self.value = float(match.group(1)) if match else value
        self.in_epochs = match is not None
        whole = isinstance(value, int) and not isinstance(value, bool)
        if value == self.ENDLESS.get(name, self):
            self.value = math.inf
            return
        # Half an epoch is still some steps.
        if not (self.in_epochs or whole) or math.ceil(self.value) < at_least:
            raise ValueError(
                f"{name} must be a whole number of steps or a text like '2 "
                f"epochs', at least {at_least}; got {value!r}."
            )

    def steps(self, steps_per_epoch: int | None) -> int:
        if not self.in_epochs:
            return self.value
        if steps_per_epoch is None:
            raise ValueError(
                "A schedule in epochs needs to know the length of an epoch, "
                "and this data set has none: write it in steps."
            )
        return max(round(self.value * steps_per_epoch), self.value > 0)

    def __str__(self) -> str:
        return self.text
