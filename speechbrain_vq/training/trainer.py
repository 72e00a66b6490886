"""Train codebooks in any loop, through optimizer hooks."""

import logging
import math
import time
import weakref

import torch
from torch import Tensor
from torch.compiler import disable
from torch.optim import Optimizer

from speechbrain_vq.nnet.codebooks import EMACodebook
from speechbrain_vq.nnet.normalization import MaskedBatchNorm
from speechbrain_vq.nnet.quantizers import VectorQuantizer
from speechbrain_vq.nnet.utils import average_gradients, broadcast, rank
from speechbrain_vq.training.attachment import (
    LEADER,
    as_module,
    check_whole,
    find_optimizers,
    find_quantizers,
    give_own_group,
    is_sharded,
    saved_names,
    short_names,
)
from speechbrain_vq.training.schedules import ReinitSchedule
from speechbrain_vq.training.settings import check_numbers, resolve_settings
from speechbrain_vq.training.watch import Watch

logger = logging.getLogger(__name__)

# Optimizers without "betas" whose learning rate sets the step size, as in Adam.
_NORMALIZED = ("Adafactor", "RMSprop")

# Weak references to the attached trainers, by quantizer.
_TRAINERS = weakref.WeakKeyDictionary()


class CodebookTrainer:
    """Trains the codebooks of vector quantizers as in arXiv 2005.08520, in any
    loop that calls ``optimizer.step()``.

    Each trainable codebook moves to its own parameter group, which has the
    options of the old group but no weight decay. Before each step, a hook sets
    the learning rate of that group, overriding any scheduler. After it, another
    follows the re-initialization schedule: a warm-up without quantization, then
    k-means on the latents in the reservoir. All but the first k-means start
    from the current codewords, so most codes keep their meaning.

    SpeechBrain clips only the gradients of the first parameter group. With
    Adam, the codebook needs no clipping: steps do not grow with the gradient.

    Create the trainer after the optimizer and before learning rate schedulers.

    Arguments
    ---------
    modules : torch.nn.Module, or an iterable or dict of them
        Model, or its quantizers. Frozen quantizers are ignored.
    optimizers : torch.optim.Optimizer, or a list or dict of them
        Optimizers of the model.
    lr_multiplier : float, optional
        Learning rate of a codebook relative to that of its old group (10 in the
        paper); None for 1. This and the next two default to the values of the
        preset that a quantizer was built from, or else of ``robust``.
    schedule : ReinitSchedule, optional
        Schedule of the warm-up and re-initializations; None for neither. FSQ,
        LFQ and SimVQ ignore it.
    max_lr : float, optional
        Maximum learning rate of a codebook with Adam and its variants, RMSprop
        and Adafactor, unless the old group's is higher; None for no maximum.
    steps_per_epoch : int, optional
        Optimizer steps per epoch, for schedules in epochs.
    total_steps : int, optional
        Optimizer steps of the whole run, if known.

    Raises
    ------
    ValueError
        If a trainable codebook is in none or in several of the optimizers, if a
        quantizer to re-initialize has no reservoir, or if a learning rate
        scheduler was created before.

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
                "in the given modules."
            )
        rates = {"lr_multiplier": lr_multiplier, "max_lr": max_lr}
        given = {"schedule": schedule, **rates}
        given = {k: v for k, v in given.items() if v != "preset"}
        self.steps_per_epoch, self.total_steps = steps_per_epoch, total_steps
        check_numbers(steps_per_epoch=steps_per_epoch, total_steps=total_steps)
        codebooks = [q.embedding for q in self.quantizers.values()]
        follows = any(codebook.is_reinitialized for codebook in codebooks)
        if given.get("schedule") is not None and not follows:
            raise ValueError(
                f"The codebook of {', '.join(self.quantizers)} is never "
                "re-initialized: set the schedule to null (None)."
            )
        if isinstance(optimizers, set):
            raise TypeError(
                "Pass the optimizers as a list: the order of a set differs "
                "between runs and ranks."
            )
        self.optimizers = list(dict.fromkeys(find_optimizers(optimizers)))
        if not self.optimizers:
            raise ValueError(
                "No torch optimizer was given to train the quantizers "
                f"{', '.join(self.quantizers)}. In a Brain, optimizers are "
                "taken from optimizers_dict and the attributes."
            )
        self.settings = {
            name: resolve_settings(
                name, quantizer, given, steps_per_epoch, total_steps
            )
            for name, quantizer in self.quantizers.items()
        }
        plans = (settings.plan for settings in self.settings.values())
        for plan in filter(None, dict.fromkeys(plans)):
            self._log_plan(plan)
        self._leading = {
            name: self._find_optimizer(name, quantizer)
            for name, quantizer in self.quantizers.items()
        }
        # FSDP does not reduce the gradients of ignored modules.
        self._reduces = is_sharded(self._modules)
        self._steps = dict.fromkeys(self.optimizers, 0)
        self._reinits = dict.fromkeys(self.quantizers, 0)
        self._watches, self._handles = {}, []
        self._warned = set()
        self._replace_others()
        for optimizer in self.optimizers:
            self._handles += [
                # Keep the hooks out of a compiled step.
                optimizer.register_step_pre_hook(disable(self._set_rates)),
                optimizer.register_step_post_hook(disable(self._after_step)),
            ]
        for name, quantizer in self.quantizers.items():
            quantizer.is_attended = True
            self._watches[name] = watch = Watch(name)
            self._handles.append(quantizer.register_forward_hook(watch))
            self._act(name, quantizer, 0)
            state = [*quantizer.parameters(), *quantizer.buffers()]
            broadcast(state if self._reduces else [quantizer.codebook])

    @property
    def steps(self) -> int:
        """Number of steps of the optimizer that trains the first quantizer."""
        return self._steps[next(iter(self._leading.values()))]

    def close(self) -> None:
        """Remove the hooks; codebooks keep their parameter groups. A new
        trainer for the same quantizers calls this."""
        for handle in self._handles:
            handle.remove()
        for quantizer in self.quantizers.values():
            if _attached(quantizer) is self:
                del _TRAINERS[quantizer]

    def expect_warmup(self) -> None:
        """Turn off the warning about evaluation during the warm-up."""
        for watch in self._watches.values():
            watch.checks_warmup = False

    def state_dict(self, over_ranks: bool = False) -> dict:
        """Return the state that exact resume requires besides those of model
        and optimizers. With ``over_ranks``, all ranks must call it, and the
        reservoirs of all ranks are included."""
        return {
            "steps": list(self._steps.values()),
            "reinits": dict(self._reinits),
            "quantizers": {
                name: quantizer.training_state(over_ranks)
                for name, quantizer in self.quantizers.items()
            },
            "buffers": {
                name: buffer.clone()
                for name, buffer in self._training_buffers().items()
            },
        }

    def load_state_dict(self, state: dict) -> None:
        """Restore a state returned by ``state_dict()`` for the same quantizers
        and optimizers; load that of the model first. Saved reservoirs are
        loaded only on rank 0."""
        saved = saved_names(state["quantizers"], self.quantizers)
        number = len(state["steps"])
        if set(saved) != set(self.quantizers) or number != len(self._steps):
            raise ValueError(
                f"The state was saved for the quantizers {', '.join(saved)}, "
                f"with {number} optimizer(s). This trainer is for "
                f"{', '.join(self.quantizers)}, with {len(self._steps)}."
            )
        self._steps = dict(zip(self.optimizers, state["steps"], strict=True))
        self._reinits = saved_names(state["reinits"], self.quantizers)
        for name, quantizer in self.quantizers.items():
            quantizer.load_training_state(saved[name])
            quantizer.bypass &= self.settings[name].plan is not None
            if rank() > 0:
                quantizer.reservoir.reset()
            broadcast([quantizer.codebook])
        buffers = self._training_buffers()
        for name, value in saved_names(state["buffers"], buffers).items():
            if name in buffers:
                buffers[name].copy_(value)

    # Set-up ----------------------------------------------------------------

    def _training_buffers(self) -> dict[str, Tensor]:
        """Return buffers that training needs but no state_dict includes."""
        buffers = {
            f"{name}.{key}": buffer
            for name, module in self._modules.named_modules()
            if isinstance(module, EMACodebook | MaskedBatchNorm)
            for key, buffer in module.named_buffers()
            if key not in module.state_dict()
        }
        short = short_names(buffers)
        return {short[name]: buffer for name, buffer in buffers.items()}

    def _replace_others(self) -> None:
        """Close earlier trainers of the same quantizers."""
        own = set(self.quantizers.values())
        others = {}
        for name, quantizer in self.quantizers.items():
            other = _attached(quantizer)
            if other and not own.issuperset(other.quantizers.values()):
                raise ValueError(
                    f"{name} has a CodebookTrainer that also trains other "
                    "quantizers: close() it first."
                )
            others[other] = None
        for other in filter(None, others):
            other.close()
        _TRAINERS.update(dict.fromkeys(own, weakref.ref(self)))

    def _log_plan(self, plan) -> None:
        """Log a plan, and warn if its warm-up is longer than the run."""
        logger.info(f"Codebook schedule: {plan.describe()}.")
        total = self.total_steps
        if total is not None and total <= plan.warmup < math.inf:
            logger.warning(
                f"The warm-up of the schedule takes {plan.warmup} of the run's "
                f"{total} optimizer steps: nothing will be quantized. Train "
                "longer, or shorten warmup of the ReinitSchedule."
            )

    def _find_optimizer(self, name, quantizer) -> Optimizer:
        """Return the optimizer whose steps count for a quantizer. Move a
        trainable codebook to its own parameter group."""
        codebook = quantizer.codebook
        holders = self._holders([codebook])
        if codebook.requires_grad:
            check_whole(name, codebook)
            if len(holders) != 1:
                which = "several" if holders else "none"
                raise ValueError(
                    f"The codebook of {name} is in {which} of the optimizers: "
                    "pass the quantizer's parameters to exactly one of them "
                    "(in a Brain: in init_optimizers())."
                )
            give_own_group(holders[0], codebook)
        if holders:
            return holders[0]
        # An EMA codebook is in no optimizer: use that of the innermost module
        # that contains it.
        parents = (
            m for m in self._modules.modules() if quantizer in m.modules()
        )
        holders = [self._holders(parent.parameters()) for parent in parents]
        return next(filter(None, reversed(holders)), self.optimizers)[0]

    def _holders(self, parameters) -> list[Optimizer]:
        """Return the optimizers that hold any of the parameters."""
        wanted = set(parameters)
        return [
            optimizer
            for optimizer in self.optimizers
            if any(wanted & set(g["params"]) for g in optimizer.param_groups)
        ]

    # Hooks -----------------------------------------------------------------

    def _set_rates(self, optimizer, args, kwargs) -> None:
        """Set the learning rates of codebooks before a step."""
        groups = optimizer.param_groups
        own = {id(g["params"][0]) for g in groups if LEADER in g}
        settings = {}
        for name, quantizer in self.quantizers.items():
            codebook = quantizer.codebook
            settings[id(codebook)] = self.settings[name]
            if not quantizer.training or quantizer.is_codebook_frozen:
                codebook.grad = None  # With zeros, momentum would move it
            if self._reduces:
                parameters = quantizer.parameters()
                average_gradients(
                    p for p in parameters if optimizer in self._holders([p])
                )
            if (
                self._leading[name] is optimizer
                and codebook.requires_grad
                and id(codebook) not in own
            ):
                self._warn_once(
                    f"The codebook of {name} was unfrozen, or its optimizer "
                    "changed, after CodebookTrainer was created, so it "
                    "keeps the learning rate of its group. Create a new "
                    "CodebookTrainer, and then new learning rate schedulers."
                    if self._holders([codebook])
                    else f"The codebook of {name} is in no optimizer, so it is "
                    "not trained. Add it to one, and then create a new "
                    "CodebookTrainer."
                )
        is_normalized = type(optimizer).__name__ in _NORMALIZED
        is_normalized |= "betas" in optimizer.defaults
        for group in groups:
            # Codebooks of other trainers are skipped.
            if LEADER not in group or id(group["params"][0]) not in settings:
                continue
            _, multiplier, max_lr = settings[id(group["params"][0])]
            leader = groups[group[LEADER] :][:1]
            if not leader or LEADER in leader[0]:
                raise ValueError(
                    "The parameter group whose learning rate a codebook "
                    "follows is gone: create a new optimizer, and then a new "
                    "CodebookTrainer."
                )
            leader_lr = leader[0]["lr"]
            lr = multiplier * leader_lr
            if max_lr is not None and is_normalized:
                lr = min(lr, max(max_lr, leader_lr))
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(torch.as_tensor(lr))
            else:
                group["lr"] = float(lr)

    def _after_step(self, optimizer, args, kwargs) -> None:
        """Count a step, and apply the schedule."""
        # With GradScaler, a fused optimizer skips steps itself.
        found_inf = getattr(optimizer, "found_inf", None)
        if found_inf is not None and bool(found_inf > 0):
            return
        self._steps[optimizer] += 1
        for name, quantizer in self.quantizers.items():
            if self._leading[name] is optimizer:
                self._watches[name].after_step(quantizer)
                if self._steps[optimizer] == 1 and quantizer.is_pretrained:
                    self._warn_of_restart(name, quantizer)
                if not (quantizer.training or quantizer.frozen):
                    self._warn_once(
                        f"{name} is in evaluation mode, so its codebook is not "
                        "trained. Unless that is intended, call train() before "
                        "each training batch."
                    )
                self._act(name, quantizer, self._steps[optimizer])
                is_trained = quantizer.training and not quantizer.bypass
                is_trained &= not quantizer.is_codebook_frozen
                quantizer.is_pretrained |= is_trained

    def _warn_of_restart(self, name, quantizer) -> None:
        """Warn if the schedule would replace a trained codebook."""
        plan = self.settings[name].plan
        replaces = plan is not None and plan.reinitializes
        is_kept = self._reinits[name] or quantizer.is_codebook_frozen
        if replaces and not is_kept:
            logger.warning(
                f"{name} has a trained codebook, which the schedule will "
                "replace because it starts over: to keep it, also load the "
                "state_dict() of the CodebookTrainer, or set the schedule to "
                "null (None)."
            )

    def _act(self, name, quantizer, step) -> None:
        """Apply the schedule after a step."""
        plan = self.settings[name].plan
        if plan is None:  # The loaded state may be from a warm-up
            quantizer.bypass = False
            return
        action = plan(step)
        # A run resumed with fewer steps may already be past its warm-up.
        ends = quantizer.bypass and not action.bypass and plan.reinitializes
        if action.reinitialize or (step and ends and not self._reinits[name]):
            self._reinitialize(name, quantizer, step)
        elif action.reset:
            quantizer.reservoir.reset()
        if quantizer.is_codebook_frozen and quantizer.is_pretrained:
            # It needs no warm-up, and keeps its codes if unfrozen.
            self._reinits[name] = max(self._reinits[name], 1)
        # The warm-up does not restart if a run is resumed with more steps.
        quantizer.bypass = action.bypass and not self._reinits[name]

    def _warn_once(self, message) -> None:
        """Log a warning once per trainer."""
        if message not in self._warned:
            self._warned.add(message)
            logger.warning(message)

    def _reinitialize(self, name, quantizer, step) -> None:
        """Re-initialize a codebook, and reset its optimizer state."""
        start_time, number = time.perf_counter(), self._reinits[name]
        self._reinits[name] += 1
        if quantizer.is_codebook_frozen:
            self._warn_once(
                f"The codebook of {name} is frozen: it is not re-initialized. "
                "Set the schedule to null (None) if that is intended."
            )
            return
        # Quantizers that share a codebook re-initialize it together.
        codebook = quantizer.codebook
        sharing = [
            other
            for other in self.quantizers.values()
            if other.codebook is codebook
        ]
        if not quantizer.training or quantizer is not sharing[0]:
            return
        vectors = torch.cat(
            [other.reservoir.gather(seed=step) for other in sharing]
        )
        if len(vectors) == 0:
            logger.warning(
                f"Step {step}: the reservoir of {name} is empty, so its "
                "codebook is unchanged."
            )
            return
        generator = torch.Generator(vectors.device).manual_seed(step)
        is_finite = bool(codebook.isfinite().all())
        start = "codebook" if number and is_finite else "kmeans++"
        result = quantizer.reinitialize(vectors, start, generator)
        for other in sharing[1:]:
            other.reservoir.reset()
        optimizer = self._leading[name]
        optimizer.state.pop(codebook, None)
        if isinstance(optimizer, torch.optim.Adagrad):
            # In torch 2.8, only the constructor creates the state.
            new = torch.optim.Adagrad([codebook], **optimizer.defaults)
            optimizer.state.update(new.state)
        if result is not None:
            logger.info(
                f"Step {step}: re-initialized {name} from {len(vectors)} "
                "vectors, mean squared distance "
                f"{result.previous_inertia:.4g} -> {result.inertia:.4g}, "
                f"{1000 * (time.perf_counter() - start_time):.0f} ms."
            )


def _attached(quantizer: VectorQuantizer) -> CodebookTrainer | None:
    """Return the trainer attached to a quantizer, if any."""
    reference = _TRAINERS.get(quantizer)
    return reference and reference()
