"""Training of codebooks within any loop, by the hooks of its optimizer."""

import functools
import logging
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from speechbrain_vq.nnet.quantizers import VectorQuantizer
from speechbrain_vq.nnet.utils import broadcast, is_first_rank
from speechbrain_vq.training.reinit import reinitialize
from speechbrain_vq.training.schedules import ReinitSchedule

logger = logging.getLogger(__name__)

# The schedule that holds where none is given.
DEFAULT_SCHEDULE = ReinitSchedule()

# A parameter group with this key is a codebook's; the value is the index of
# the group whose learning rate it follows. It is saved with the optimizer.
LEADER = "codebook_leader"

# Number of steps without gradient after which to warn.
_PATIENCE = 100


class CodebookTrainer:
    """Trains the codebooks of vector quantizers as arXiv 2005.08520 does, in
    whatever loop calls ``optimizer.step()``.

    Each trainable codebook gets a parameter group of its own in the optimizer
    that holds it, with the settings of its old group but no weight decay. Hooks
    of the optimizer set that group's learning rate before each step, whatever
    schedulers wrote there, and follow the schedule after each step: a warm-up
    without quantization, then re-initializations by k-means from the
    reservoirs. All but the first start from the present codebook, so that most
    codes keep their meaning.

    The codebook's gradient is not clipped with its old group; it is bounded
    by that of the quantizer's output, a unit vector's length for each latent.

    Create it after the optimizer and before learning rate schedulers.

    Arguments
    ---------
    modules : torch.nn.Module, or an iterable or dict of them
        The model, or its quantizers. Frozen ones are left alone.
    optimizers : torch.optim.Optimizer, or an iterable or dict of them
        The optimizers of the model.
    lr_multiplier : float
        Learning rate of a codebook over that of its group (the paper: 10).
    schedule : ReinitSchedule, optional
        When to re-initialize; None: never, without a warm-up. By default that
        of the preset ``robust``.
    max_lr : float, optional
        Largest learning rate of a codebook under Adam and its kin, unless
        that of its group is larger; None: any.
    steps_per_epoch : int, optional
        Optimizer steps of an epoch, for schedules in epochs.
    total_steps : int, optional
        Optimizer steps of the whole run, where known.

    Raises
    ------
    TypeError
        If the modules are none, or the schedule is none.
    ValueError
        If a trainable codebook is in none of the optimizers or in several, if
        a quantizer to re-initialize keeps no reservoir, if a scheduler was
        created before, or if a number is out of range.

    Example
    -------
    >>> encoder, quantizer = nn.Linear(8, 8), VectorQuantizer(8, 16)
    >>> model = nn.ModuleList([encoder, quantizer])
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
        lr_multiplier: float = 10.0,
        schedule: ReinitSchedule | None = DEFAULT_SCHEDULE,
        max_lr: float | None = 0.01,
        steps_per_epoch: int | None = None,
        total_steps: int | None = None,
    ):
        rates = {"lr_multiplier": lr_multiplier, "max_lr": max_lr}
        for name, value in rates.items():
            if value is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}.")
        if not isinstance(schedule, ReinitSchedule | None):
            raise TypeError(
                f"schedule must be a ReinitSchedule or None, got {schedule!r}."
            )
        self.lr_multiplier = lr_multiplier
        self.max_lr = max_lr
        self.steps_per_epoch = steps_per_epoch
        self.quantizers = find_quantizers(modules)
        if not self.quantizers:
            raise ValueError(
                "CodebookTrainer found no VectorQuantizer that is not frozen "
                "in the modules it was given."
            )
        self.optimizers = _unwrap(optimizers)
        if not self.optimizers:
            raise ValueError(
                "No torch optimizer was given whose steps train the quantizers "
                f"{', '.join(self.quantizers)}. Those of a Brain are found in "
                "optimizers_dict and in its attributes."
            )
        self.schedule = self._fit_schedule(schedule, total_steps)
        self._leading = {
            name: self._find_optimizer(name, quantizer, modules)
            for name, quantizer in self.quantizers.items()
        }
        self._steps = [0] * len(self.optimizers)
        self._reinits = dict.fromkeys(self.quantizers, 0)
        self._steps_without_gradient = dict.fromkeys(self.quantizers, 0)
        self._warned = set()
        self._handles = []
        for index, optimizer in enumerate(self.optimizers):
            after_step = functools.partial(self._after_step, index)
            self._handles += [
                optimizer.register_step_pre_hook(self._set_rates),
                optimizer.register_step_post_hook(after_step),
            ]
        for name, quantizer in self.quantizers.items():
            quantizer.batches_without_step = 0
            self._act(name, quantizer, 0)
            broadcast([quantizer.codebook.detach()])

    @property
    def steps(self) -> int:
        """Number of steps of the optimizer that leads the first quantizer."""
        return self._steps[next(iter(self._leading.values()))]

    @property
    def in_warmup(self) -> bool:
        """Whether some quantizer does not quantize yet."""
        return any(q.bypass for q in self.quantizers.values())

    def check_warmup_ended(self) -> None:
        """Warn where a run has ended within the warm-up of its schedule."""
        if self.in_warmup and self.schedule.ends:
            logger.warning(
                "The run ended within the warm-up of reinit_schedule, after %d "
                "steps: nothing is quantized yet. Train longer, or shorten its "
                "warmup.",
                self.steps,
            )

    def close(self) -> None:
        """Remove the hooks; codebooks keep their parameter groups."""
        for handle in self._handles:
            handle.remove()
        for quantizer in self.quantizers.values():
            quantizer.batches_without_step = None

    def state_dict(self) -> dict:
        """Return what an exact resume needs beside the states of model and
        optimizers: steps, warm-up, reservoirs and averages."""
        return {
            "version": 1,
            "steps": list(self._steps),
            "reinits": dict(self._reinits),
            "quantizers": {
                name: quantizer.training_state()
                for name, quantizer in self.quantizers.items()
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore what ``state_dict()`` returned, of the same quantizers and
        optimizers. On ranks other than the first the reservoirs start empty:
        their vectors would count once for each rank."""
        if set(state["quantizers"]) != set(self.quantizers) or len(
            state["steps"]
        ) != len(self._steps):
            raise ValueError(
                f"The saved state is of {len(state['steps'])} optimizers and "
                f"the quantizers {', '.join(state['quantizers'])}; here are "
                f"{len(self._steps)} and {', '.join(self.quantizers)}."
            )
        self._steps = list(state["steps"])
        self._reinits = dict(state["reinits"])
        for name, quantizer in self.quantizers.items():
            quantizer.load_training_state(state["quantizers"][name])
            if quantizer.reservoir is not None and not is_first_rank():
                quantizer.reservoir.reset()
            broadcast([quantizer.codebook.detach()])

    # Set-up ----------------------------------------------------------------

    def _fit_schedule(self, schedule, total_steps) -> ReinitSchedule | None:
        """The schedule, checked against quantizers and run."""
        without = [n for n, q in self.quantizers.items() if q.reservoir is None]
        if schedule is not None and schedule.reinitializes and without:
            if schedule is not DEFAULT_SCHEDULE:
                raise ValueError(
                    f"There is a schedule, but {', '.join(without)} keeps no "
                    "reservoir: set its reservoir_size above 0, or the "
                    "schedule to null (None)."
                )
            logger.warning(
                "%s keeps no reservoir, so no codebook is re-initialized: set "
                "reservoir_size above 0, or the schedule to null (None).",
                ", ".join(without),
            )
            return None
        if schedule is None:
            return None
        schedule = schedule.resolve(self.steps_per_epoch, total_steps)
        logger.info("Codebooks are re-initialized by %s.", schedule)
        if total_steps is None:
            return schedule
        for quantizer in self.quantizers.values():
            # Looked at here.
            quantizer.warns_of_warmup = False
        warmup = schedule.warmup.value
        if total_steps <= warmup < float("inf"):
            logger.warning(
                "The warm-up of the schedule takes %d of the run's %d "
                "optimizer steps: nothing will be quantized. Train longer, or "
                "shorten warmup of the ReinitSchedule.",
                warmup,
                total_steps,
            )
        return schedule

    def _find_optimizer(self, name, quantizer, modules) -> int:
        """Index of the optimizer whose steps count for a quantizer, in which
        a trainable codebook gets a group of its own."""
        codebook = quantizer.codebook
        if isinstance(codebook, nn.Parameter) and codebook.requires_grad:
            holders = [
                i
                for i, optimizer in enumerate(self.optimizers)
                if find_group(optimizer, codebook) is not None
            ]
            if len(holders) != 1:
                which = "several" if holders else "none"
                raise ValueError(
                    f"The codebook of {name} is in {which} of the optimizers: "
                    "give the quantizer's parameters to exactly one of them "
                    "(in a Brain: in init_optimizers())."
                )
            give_own_group(self.optimizers[holders[0]], codebook)
            return holders[0]
        # An EMA codebook is in none: the optimizer of what is around it.
        scopes = [quantizer]
        if isinstance(modules, nn.Module):
            path = name.split(".")
            scopes += [
                modules.get_submodule(".".join(path[:end]))
                for end in reversed(range(len(path)))
            ]
        for scope in scopes:
            for parameter in scope.parameters():
                for i, optimizer in enumerate(self.optimizers):
                    if find_group(optimizer, parameter) is not None:
                        return i
        return 0

    # Hooks -----------------------------------------------------------------

    def _set_rates(self, optimizer, args, kwargs) -> None:
        """Set the learning rates of codebooks, before a step."""
        for group in optimizer.param_groups:
            if LEADER in group:
                leader = optimizer.param_groups[group[LEADER]]
                lr = self.lr_multiplier * leader["lr"]
                # Only there is the rate the length of a step.
                is_adam = "betas" in optimizer.defaults
                if self.max_lr is not None and is_adam:
                    lr = max(min(lr, self.max_lr), leader["lr"])
                if isinstance(group["lr"], torch.Tensor):
                    group["lr"].fill_(lr)
                else:
                    group["lr"] = float(lr)

    def _after_step(self, index, optimizer, args, kwargs) -> None:
        """Count a step, and do what the schedule asks for."""
        # A fused optimizer under GradScaler skips the step by itself.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf > 0):
            return
        self._steps[index] += 1
        for name, quantizer in self.quantizers.items():
            if self._leading[name] == index:
                quantizer.batches_without_step = 0
                self._check_gradient(name, quantizer)
                self._act(name, quantizer, self._steps[index])

    def _act(self, name, quantizer, step) -> None:
        if self.schedule is None:
            return
        action = self.schedule(step)
        optimizer = self.optimizers[self._leading[name]]
        if action.reinitialize and self._check_frozen(name, quantizer):
            start = "codebook" if self._reinits[name] else "kmeans++"
            reinitialize(name, quantizer, optimizer, step, start)
            self._reinits[name] += 1
        elif action.reset and quantizer.reservoir is not None:
            quantizer.reservoir.reset()
        # A longer run that goes on from a shorter one stays past its warm-up.
        quantizer.bypass = action.bypass and not self._reinits[name]

    # Warnings --------------------------------------------------------------

    def _warn_once(self, key, message, *args) -> None:
        if key not in self._warned:
            self._warned.add(key)
            logger.warning(message, *args)

    def _check_frozen(self, name, quantizer) -> bool:
        if quantizer.is_codebook_frozen:
            self._warn_once(
                ("frozen", name),
                "The codebook of %s is frozen: it is not re-initialized. Set "
                "the schedule to null (None) where that is meant.",
                name,
            )
        return not quantizer.is_codebook_frozen

    def _check_gradient(self, name, quantizer) -> None:
        codebook = quantizer.codebook
        if not codebook.requires_grad or codebook.grad is not None:
            self._steps_without_gradient[name] = 0
            return
        self._steps_without_gradient[name] += 1
        if self._steps_without_gradient[name] == _PATIENCE:
            self._warn_once(
                ("gradient", name),
                "The codebook of %s got no gradient in %d optimizer steps, so "
                "it does not learn: use `output.quantized` of the quantizer, "
                "and add `output.loss` to the loss. A container such as "
                "SpeechBrain's Sequential keeps the first item of the output "
                "only: call the quantizer outside of it.",
                name,
                _PATIENCE,
            )


def find_quantizers(modules) -> dict[str, VectorQuantizer]:
    """Find the vector quantizers in modules by their dotted names, without
    those that are part of a frozen model such as a tokenizer, and without the
    names of wrappers such as DDP."""
    if not isinstance(modules, nn.Module):
        given = type(modules).__name__
        if isinstance(modules, Iterable) and not isinstance(modules, dict):
            modules = {str(i): m for i, m in enumerate(modules)}
        if not isinstance(modules, dict) or not all(
            isinstance(module, nn.Module) for module in modules.values()
        ):
            raise TypeError(
                "modules must be a torch.nn.Module, or an iterable or dict of "
                f"them, got {given}: give the model, not its parameters."
            )
        modules = nn.ModuleDict(modules)
    frozen = {
        part
        for module in modules.modules()
        if getattr(module, "frozen", False)
        for part in module.modules()
    }
    wrappers = ("module", "_orig_mod")
    return {
        ".".join(p for p in name.split(".") if p not in wrappers)
        or "quantizer": module
        for name, module in modules.named_modules()
        if isinstance(module, VectorQuantizer) and module not in frozen
    }


def _unwrap(optimizers) -> list[Optimizer]:
    """The optimizers among some objects, without the wrappers of Accelerate
    and Lightning, each once."""
    if isinstance(optimizers, dict):
        optimizers = optimizers.values()
    elif not isinstance(optimizers, Iterable):
        optimizers = [optimizers]
    unwrapped = {}
    for optimizer in optimizers:
        while isinstance(getattr(optimizer, "optimizer", None), Optimizer):
            optimizer = optimizer.optimizer
        if isinstance(optimizer, Optimizer):
            unwrapped[id(optimizer)] = optimizer
    return list(unwrapped.values())


def find_group(optimizer: Optimizer, parameter) -> int | None:
    """Index of the group that holds a parameter."""
    for index, group in enumerate(optimizer.param_groups):
        if any(p is parameter for p in group["params"]):
            return index
    return None


def give_own_group(optimizer: Optimizer, codebook: nn.Parameter) -> dict:
    """Move a codebook from its group to one of its own, and return that."""
    leader = find_group(optimizer, codebook)
    group = optimizer.param_groups[leader]
    if LEADER in group:
        return group
    if "initial_lr" in group:
        raise ValueError(
            "A learning rate scheduler was created before CodebookTrainer, "
            "and would not find the codebook's parameter group: create the "
            "scheduler after it (in a Brain: in on_fit_start(), after super)."
        )
    position = next(i for i, p in enumerate(group["params"]) if p is codebook)
    own = {k: v for k, v in group.items() if k not in ("params", "param_names")}
    own["params"] = [group["params"].pop(position)]
    if "param_names" in group:
        own["params"] = [(group["param_names"].pop(position), *own["params"])]
    if isinstance(own["lr"], torch.Tensor):
        own["lr"] = own["lr"].clone()
    if "weight_decay" in own:
        own["weight_decay"] = 0.0
    own[LEADER] = leader
    optimizer.add_param_group(own)
    return optimizer.param_groups[-1]
