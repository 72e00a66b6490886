"""Resolve the settings of the codebooks that a ``CodebookTrainer`` trains."""

import logging
import math
from numbers import Real
from typing import Any, NamedTuple

from speechbrain_vq.nnet.quantizers import VectorQuantizer
from speechbrain_vq.training.schedules import ReinitPlan, ReinitSchedule

logger = logging.getLogger(__name__)

# Settings of quantizers not built from a preset: those of robust.
_DEFAULTS = {
    "lr_multiplier": 10.0,
    "schedule": ReinitSchedule(),
    "max_lr": 0.01,
}

# Maximum learning rate and multiplier (10 in the paper), to catch typos.
_MAX_RATE = 1000


class Settings(NamedTuple):
    """Schedule and learning rate of a codebook."""

    plan: ReinitPlan | None
    lr_multiplier: float
    max_lr: float | None


def resolve_settings(
    name: str,
    quantizer: VectorQuantizer,
    given: dict[str, Any],
    steps_per_epoch: int | None,
    total_steps: int | None,
) -> Settings:
    """Return the settings of a quantizer: those given, else its preset's."""
    values = {**_DEFAULTS, **quantizer.trainer_options, **given}
    schedule, max_lr = values["schedule"], values["max_lr"]
    multiplier = values["lr_multiplier"]
    check_numbers(_MAX_RATE, lr_multiplier=multiplier, max_lr=max_lr)
    if not isinstance(schedule, ReinitSchedule | None):
        raise TypeError(
            f"schedule must be a ReinitSchedule or None, got {schedule!r}."
        )
    plan = None
    if schedule is not None and quantizer.embedding.is_reinitialized:
        plan = schedule.resolve(steps_per_epoch, total_steps)
        if plan.reinitializes and not quantizer.reservoir.capacity:
            message = (
                f"{name} keeps no reservoir, so its codebook cannot be "
                "re-initialized: set reservoir_size above 0, or the "
                "schedule to null (None)."
            )
            if "schedule" in given:
                raise ValueError(message)
            logger.warning(message)
            plan = None
    return Settings(plan, multiplier or 1.0, max_lr)


def check_numbers(limit: float = math.inf, **values: Any) -> None:
    """Raise ValueError unless each value is None or in (0, limit]."""
    at_most = "" if limit == math.inf else f" and at most {limit}"
    for name, value in values.items():
        is_number = isinstance(value, Real) and 0 < value <= limit
        if value is not None and not is_number:
            raise ValueError(
                f"{name} must be a number above 0{at_most}, got {value!r}."
            )
