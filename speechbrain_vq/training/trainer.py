"""Training of codebooks within any loop, by the hooks of its optimizer."""

import logging
import math
import time
import weakref
from collections.abc import Iterator
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from speechbrain_vq.nnet.codebooks import EMACodebook
from speechbrain_vq.nnet.normalization import MaskedBatchNorm
from speechbrain_vq.nnet.quantizers import VectorQuantizer
from speechbrain_vq.nnet.utils import broadcast, rank
from speechbrain_vq.training.attachment import (
    LEADER,
    as_module,
    check_whole,
    find_optimizers,
    find_quantizers,
    give_own_group,
    without_wrappers,
)
from speechbrain_vq.training.schedules import ReinitPlan, ReinitSchedule
from speechbrain_vq.training.watch import Watch

logger = logging.getLogger(__name__)

# Arguments of a trainer for quantizers that no preset made: those of robust.
_DEFAULTS = {
    "lr_multiplier": 10.0,
    "schedule": ReinitSchedule(),
    "max_lr": 0.01,
}

# Of the rates: the paper multiplies by 10, and more than this is a slip.
_LARGEST_RATE = 1000

# By quantizer, a weak reference to the trainer that is attached to it.
_TRAINERS = weakref.WeakKeyDictionary()


class Settings(NamedTuple):
    """Schedule and learning rates of a codebook."""

    plan: ReinitPlan | None
    lr_multiplier: float
    max_lr: float | None


class CodebookTrainer:
    """Trains the codebooks of vector quantizers as arXiv 2005.08520 does, in
    whatever loop calls ``optimizer.step()``.

    Each trainable codebook gets a parameter group of its own in its optimizer,
    with the settings of its old group but no weight decay. Hooks set that
    group's learning rate before each step, whatever schedulers wrote there, and
    follow the schedule after it: a warm-up without quantization, then
    re-initializations by k-means from the reservoirs. All but the first start
    from the present codebook, so that most codes keep their meaning.

    The codebook's gradient is not clipped with its old group; it is bounded by
    that of the quantizer's output, a unit vector's length for each latent.

    Create it after the optimizer and before learning rate schedulers.

    Arguments
    ---------
    modules : torch.nn.Module, or an iterable or dict of them
        The model, or its quantizers. Frozen ones are left alone.
    optimizers : torch.optim.Optimizer, or an iterable or dict of them
        The optimizers of the model.
    lr_multiplier : float, optional
        Learning rate of a codebook over that of its group (the paper: 10);
        None: 1. By default, as the next two, for each quantizer that of the
        preset that it was built from, or of ``robust``.
    schedule : ReinitSchedule, optional
        When to re-initialize; None: never, without a warm-up. FSQ, LFQ and
        SimVQ do not follow it.
    max_lr : float, optional
        Largest learning rate of a codebook under Adam and its kin, unless
        that of its group is larger; None: any.
    steps_per_epoch : int, optional
        Optimizer steps of an epoch, for schedules in epochs.
    total_steps : int, optional
        Optimizer steps of the whole run, where known.

    Raises
    ------
    ValueError
        If a trainable codebook is in none of the optimizers or in several, a
        quantizer to re-initialize keeps no reservoir, or a scheduler was
        created before.

    Example
    -------
    >>> encoder, quantizer = torch.nn.Linear(8, 8), VectorQuantizer(8, 16)
    >>> model = torch.nn.ModuleList([encoder, quantizer])
    >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
    >>> trainer = CodebookTrainer(model, optimizer, schedule=None)
    >>> out = quantizer(encoder(torch.randn(50, 8)))
    >>> out.loss.backward()
    >>> optimizer.step()
    >>> [group["lr"] for group in optimizer.param_groups], trainer.steps
    ([0.001, 0.01], 1)
    """

    def __init__(
        self,
        modules,
        optimizers,
        lr_multiplier: float | str | None = "preset",
        schedule: ReinitSchedule | str | None = "preset",
        max_lr: float | str | None = "preset",
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
    ):
        self._modules = as_module(modules)
        self.quantizers = find_quantizers(self._modules)
        if not self.quantizers:
            raise ValueError(
                "CodebookTrainer found no VectorQuantizer that is not frozen "
                "in the modules it was given."
            )
        given = {
            name: value
            for name, value in (
                ("lr_multiplier", lr_multiplier),
                ("schedule", schedule),
                ("max_lr", max_lr),
            )
            if value != "preset"
        }
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        _check_numbers(steps_per_epoch=steps_per_epoch, total_steps=total_steps)
        follow = map(_follows, self.quantizers.values())
        if given.get("schedule") is not None and not any(follow):
            raise ValueError(
                f"The codebook of {', '.join(self.quantizers)} is never "
                "re-initialized: set the schedule to null (None)."
            )
        # Each once.
        self.optimizers = list(dict.fromkeys(find_optimizers(optimizers)))
        if not self.optimizers:
            raise ValueError(
                "No torch optimizer was given whose steps train the quantizers "
                f"{', '.join(self.quantizers)}. Those of a Brain are found in "
                "optimizers_dict and in its attributes."
            )
        self.settings = {
            name: self._resolve_settings(name, quantizer, given)
            for name, quantizer in self.quantizers.items()
        }
        plans = (settings.plan for settings in self.settings.values())
        for plan in filter(None, dict.fromkeys(plans)):
            self._log_plan(plan)
        self._leading = {
            name: self._find_optimizer(name, quantizer)
            for name, quantizer in self.quantizers.items()
        }
        self._steps = dict.fromkeys(self.optimizers, 0)
        self._reinits = dict.fromkeys(self.quantizers, 0)
        self._watches, self._handles = {}, []
        self._replace_others()
        for optimizer in self.optimizers:
            self._handles += [
                optimizer.register_step_pre_hook(self._set_rates),
                optimizer.register_step_post_hook(self._after_step),
            ]
        for name, quantizer in self.quantizers.items():
            watch = Watch(name)
            self._watches[name] = watch
            self._handles.append(quantizer.register_forward_hook(watch))
            self._act(name, quantizer, 0)
            broadcast([quantizer.codebook.detach()])

    @property
    def steps(self) -> int:
        """Number of steps of the optimizer that leads the first quantizer."""
        return self._steps[next(iter(self._leading.values()))]

    def close(self) -> None:
        """Remove the hooks; codebooks keep their parameter groups. A new
        trainer of the same quantizers does this to the one before."""
        for handle in self._handles:
            handle.remove()
        for quantizer in self.quantizers.values():
            if _attached(quantizer) is self:
                del _TRAINERS[quantizer]

    def expect_warmup(self) -> None:
        """Do not warn of an evaluation in the warm-up."""
        for watch in self._watches.values():
            watch.checks_warmup = False

    def state_dict(self, over_ranks: bool = False) -> dict:
        """Return what an exact resume needs beside the states of model and
        optimizers; with ``over_ranks``, which all ranks must ask, with the
        reservoirs of all of them."""
        return {
            "steps": list(self._steps.values()),
            "reinits": dict(self._reinits),
            "quantizers": {
                name: quantizer.training_state(over_ranks)
                for name, quantizer in self.quantizers.items()
            },
            "buffers": {n: b.clone() for n, b in self._training_buffers()},
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what ``state_dict()`` returned, of the same quantizers and
        optimizers. The reservoirs of all ranks go to the first one."""
        names, number = set(state["quantizers"]), len(state["steps"])
        if names != set(self.quantizers) or number != len(self._steps):
            raise ValueError(
                f"The saved state is of {number} optimizers and the quantizers "
                f"{', '.join(names)}; here are {len(self._steps)} and "
                f"{', '.join(self.quantizers)}."
            )
        self._steps = dict(zip(self.optimizers, state["steps"], strict=True))
        self._reinits = dict(state["reinits"])
        for name, quantizer in self.quantizers.items():
            quantizer.load_training_state(state["quantizers"][name])
            quantizer.bypass &= self.settings[name].plan is not None
            if rank() > 0:
                quantizer.reservoir.reset()
            broadcast([quantizer.codebook.detach()])
        for name, buffer in self._training_buffers():
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])

    # Set-up ----------------------------------------------------------------

    def _training_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """Buffers by name that training needs and that are in no state_dict."""
        for name, module in self._modules.named_modules():
            if isinstance(module, EMACodebook | MaskedBatchNorm):
                saved = module.state_dict()
                for key, buffer in module.named_buffers():
                    if key not in saved:
                        yield f"{without_wrappers(name)}.{key}", buffer

    def _replace_others(self) -> None:
        """Close the trainers that the quantizers had before."""
        own = set(self.quantizers.values())
        for name, quantizer in self.quantizers.items():
            other = _attached(quantizer)
            if other is None:
                continue
            if not own.issuperset(other.quantizers.values()):
                raise ValueError(
                    f"{name} has a CodebookTrainer that trains other "
                    "quantizers, too: close() it first."
                )
            other.close()
        _TRAINERS.update(dict.fromkeys(own, weakref.ref(self)))

    def _resolve_settings(self, name, quantizer, given) -> Settings:
        """Resolve the settings of a quantizer: the arguments given, or else its
        preset's."""
        values = {**_DEFAULTS, **quantizer.trainer_options, **given}
        schedule, multiplier = values["schedule"], values["lr_multiplier"]
        rates = {"lr_multiplier": multiplier, "max_lr": values["max_lr"]}
        _check_numbers(_LARGEST_RATE, **rates)
        if not isinstance(schedule, ReinitSchedule | None):
            raise TypeError(
                f"schedule must be a ReinitSchedule or None, got {schedule!r}."
            )
        plan = None
        if schedule is not None and _follows(quantizer):
            plan = schedule.resolve(self.steps_per_epoch, self.total_steps)
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
        multiplier = 1.0 if multiplier is None else multiplier
        return Settings(plan, multiplier, values["max_lr"])

    def _log_plan(self, plan) -> None:
        """Log a plan, and warn of a warm-up that is longer than the run."""
        logger.info(f"Codebook schedule: {plan}.")
        total = self.total_steps
        if total is not None and total <= plan.warmup < math.inf:
            logger.warning(
                f"The warm-up of the schedule takes {plan.warmup} of the run's "
                f"{total} optimizer steps: nothing will be quantized. Train "
                "longer, or shorten warmup of the ReinitSchedule."
            )

    def _find_optimizer(self, name, quantizer) -> Optimizer:
        """The optimizer whose steps count for a quantizer, in which a
        trainable codebook gets a group of its own."""
        codebook = quantizer.codebook
        if codebook.requires_grad:
            check_whole(name, codebook)
            holders = self._holders([codebook])
            if len(holders) != 1:
                which = "several" if holders else "none"
                raise ValueError(
                    f"The codebook of {name} is in {which} of the optimizers: "
                    "give the quantizer's parameters to exactly one of them "
                    "(in a Brain: in init_optimizers())."
                )
            give_own_group(holders[0], codebook)
            return holders[0]
        # An EMA codebook is in none: the optimizer of what is around it.
        parents = (
            m for m in self._modules.modules() if quantizer in m.modules()
        )
        found = [self._holders(parent.parameters()) for parent in parents]
        return next(filter(None, reversed(found)), self.optimizers)[0]

    def _holders(self, parameters) -> list[Optimizer]:
        """The optimizers that hold some of the parameters."""
        wanted = set(parameters)
        return [
            optimizer
            for optimizer in self.optimizers
            if any(wanted & set(g["params"]) for g in optimizer.param_groups)
        ]

    # Hooks -----------------------------------------------------------------

    def _set_rates(self, optimizer, args, kwargs) -> None:
        """Set the learning rates of codebooks, before a step."""
        # Other groups may be those of another trainer.
        own = {
            id(quantizer.codebook): self.settings[name]
            for name, quantizer in self.quantizers.items()
        }
        for group in optimizer.param_groups:
            if LEADER not in group or id(group["params"][0]) not in own:
                continue
            _, multiplier, most = own[id(group["params"][0])]
            leader = optimizer.param_groups[group[LEADER] :][:1]
            if not leader or LEADER in leader[0]:
                raise ValueError(
                    "The parameter group whose learning rate a codebook "
                    "follows is gone: make the optimizer anew, and then a "
                    "CodebookTrainer."
                )
            least = leader[0]["lr"]
            lr = multiplier * least
            # Only under Adam and its kin the rate is the length of a step.
            if most is not None and "betas" in optimizer.defaults:
                lr = max(min(lr, most), least)
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = float(lr)

    def _after_step(self, optimizer, args, kwargs) -> None:
        """Count a step, and do what the schedule asks for."""
        # A fused optimizer under GradScaler skips the step by itself.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf > 0):
            return
        self._steps[optimizer] += 1
        for name, quantizer in self.quantizers.items():
            if self._leading[name] is optimizer:
                self._watches[name].after_step(quantizer)
                if self._steps[optimizer] == 1 and quantizer.is_pretrained:
                    self._warn_of_restart(name, quantizer)
                self._act(name, quantizer, self._steps[optimizer])

    def _warn_of_restart(self, name, quantizer) -> None:
        """Warn where the schedule begins with codes that were loaded."""
        plan = self.settings[name].plan
        replaces = plan is not None and plan.reinitializes
        if replaces and not quantizer.is_codebook_frozen:
            logger.warning(
                f"{name} was loaded with codes, which the schedule will "
                "replace, as it begins anew: to go on with them, load the "
                "state_dict() of the CodebookTrainer, too, or set the schedule "
                "to null (None)."
            )

    def _act(self, name, quantizer, step) -> None:
        """Do what the schedule asks for after a step."""
        plan = self.settings[name].plan
        if plan is None:  # Nor a warm-up, of a state that was loaded.
            quantizer.bypass = False
            return
        action = plan(step)
        if action.reinitialize:
            self._reinitialize(name, quantizer, step)
        elif action.reset:
            quantizer.reservoir.reset()
        # A longer run that goes on from a shorter one stays past its warm-up.
        quantizer.bypass = action.bypass and not self._reinits[name]

    def _reinitialize(self, name, quantizer, step) -> None:
        """Re-initialize a codebook from the reservoirs of all ranks, and make
        its optimizer forget the old one."""
        begin, number = time.perf_counter(), self._reinits[name]
        self._reinits[name] += 1
        if quantizer.is_codebook_frozen:
            if number == 0:
                logger.warning(
                    f"The codebook of {name} is frozen: it is not "
                    "re-initialized. Set the schedule to null (None) where "
                    "that is meant."
                )
            return
        vectors = quantizer.reservoir.gather(seed=step)
        if len(vectors) == 0:
            logger.warning(
                f"Step {step}: the reservoir of {name} is empty, its codebook "
                "stays."
            )
            return
        generator = torch.Generator(vectors.device).manual_seed(step)
        start = "codebook" if number else "kmeans++"
        result = quantizer.reinitialize(vectors, start, generator)
        optimizer = self._leading[name]
        optimizer.state.pop(quantizer.codebook, None)
        if isinstance(optimizer, torch.optim.Adagrad):
            # In torch 2.8 it makes its state with itself, or never.
            new = torch.optim.Adagrad(
                [quantizer.codebook], **optimizer.defaults
            )
            optimizer.state.update(new.state)
        if result is not None:
            logger.info(
                f"Step {step}: re-initialized {name} from {len(vectors)} "
                "vectors, mean squared distance "
                f"{result.previous_inertia:.4g} -> {result.inertia:.4g}, "
                f"{1000 * (time.perf_counter() - begin):.0f} ms."
            )


def _check_numbers(most=math.inf, **values) -> None:
    """Raise ValueError unless each is None or a number above 0."""
    limit = "" if most == math.inf else f" and at most {most}"
    for name, value in values.items():
        is_number = isinstance(value, Real) and 0 < value <= most
        if value is not None and not is_number:
            raise ValueError(
                f"{name} must be a number above 0{limit}, got {value!r}."
            )


def _follows(quantizer: VectorQuantizer) -> bool:
    """Return whether a quantizer follows a schedule."""
    return quantizer.embedding.is_reinitialized


def _attached(quantizer: VectorQuantizer) -> CodebookTrainer | None:
    """Return the trainer that is attached to a quantizer."""
    reference = _TRAINERS.get(quantizer)
    return reference and reference()
