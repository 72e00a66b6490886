"""SpeechBrain Brains that train vector quantizers."""

import contextlib
import logging

import speechbrain as sb
import torch
from torch.optim import Optimizer

from speechbrain_vq.nnet.utils import is_first_rank, sum_over_ranks
from speechbrain_vq.training.monitor import UsageMonitor
from speechbrain_vq.training.resume import loader_generator
from speechbrain_vq.training.trainer import (
    DEFAULT_SCHEDULE,
    CodebookTrainer,
    find_quantizers,
)

logger = logging.getLogger(__name__)


class VQMixin:
    """Hangs a ``CodebookTrainer`` on the optimizers of a Brain and monitors the
    quantizers in ``self.modules``.

    Name it first among the bases: ``class MyBrain(VQMixin, ASR)``. It works by
    hooks of the optimizers, so a Brain may have ``fit_batch``,
    ``init_optimizers`` and ``freeze_optimizers`` of its own. A batch whose
    loss is not finite makes no step. For exact resumes take
    ``speechbrain_vq.training.resume.AtomicCheckpointer`` as checkpointer.

    Reads from ``hparams``, all optional; null turns off:

    codebook_lr_multiplier : float
        Learning rate of the codebook over the model's (10; null: 1).
    reinit_schedule : ReinitSchedule
        When to re-initialize (as the preset ``robust``; null: never).
    token_rate : float
        Frames a second at the quantizer, for the bit rate.

    Example
    -------
    >>> from speechbrain_vq import VectorQuantizer
    >>> class AutoEncoder(VQBrain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.quantizer(self.modules.encoder(batch[0]))
    ...
    ...     def compute_objectives(self, output, batch, stage):
    ...         error = torch.nn.functional.mse_loss(output[0], batch[0])
    ...         return error + output.loss
    >>> brain = AutoEncoder(
    ...     {
    ...         "encoder": torch.nn.Linear(8, 8),
    ...         "quantizer": VectorQuantizer(8, 16),
    ...     },
    ...     lambda parameters: torch.optim.Adam(parameters, lr=0.001),
    ... )
    >>> data = [(torch.randn(4, 10, 8),) for _ in range(6)]
    >>> brain.fit(range(2), data, progressbar=False)
    >>> brain.codebook_trainer.steps
    12
    >>> brain.vq_stats["train"]["used_codes_percent"] > 90
    True
    """

    codebook_trainer = None
    _monitors = None
    _fitting = False
    _nonfinite = False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if sb.Brain in order and order.index(VQMixin) > order.index(sb.Brain):
            raise TypeError(
                f"{cls.__name__}: name VQMixin before the Brain among the "
                f"bases, `class {cls.__name__}(VQMixin, ...)`, or it does "
                "nothing."
            )

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """Fit, as a Brain does."""
        self._set_up("valid")
        self._epochs = getattr(epoch_counter, "limit", None)
        with contextlib.suppress(TypeError):
            self._epochs = self._epochs or len(epoch_counter)
        self._num_batches = None
        if isinstance(train_set, torch.utils.data.DataLoader):
            self._count_batches(train_set)
        self._fitting = True
        self._attached = False
        super().fit(self._each(epoch_counter), train_set, *args, **kwargs)
        self._fitting = False
        if self._attached and self.codebook_trainer.in_warmup:
            logger.warning(
                "The run ended within the warm-up, after %d optimizer steps: "
                "nothing is quantized yet. Train longer, or shorten warmup of "
                "reinit_schedule.",
                self.codebook_trainer.steps,
            )

    def evaluate(self, *args, **kwargs):
        """Evaluate, as a Brain does; ``vq_stats["test"]`` is the usage."""
        self._set_up("test")
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable(
                "codebook_trainer", _State(self), optional_load=True
            )
        return super().evaluate(*args, **kwargs)

    def on_evaluate_start(self, max_key=None, min_key=None):
        """Recover the best checkpoint, and warn if it does not quantize."""
        super().on_evaluate_start(max_key=max_key, min_key=min_key)
        self._monitors["eval"] = self._new_monitors(training=False)
        if any(quantizer.bypass for quantizer in self.quantizers.values()):
            logger.warning(
                "There is no checkpoint past the warm-up: the model evaluated "
                "does not quantize."
            )

    def on_fit_start(self):
        """Attach the trainer between optimizers and recovery."""
        if self.checkpointer is not None:
            # Loaded before the optimizers, which are added below.
            self.checkpointer.add_recoverable(
                "codebook_trainer", _State(self), optional_load=True
            )
        super().on_fit_start()
        self._attach()

    def make_dataloader(self, dataset, stage, *args, **loader_kwargs):
        """Make a loader, as a Brain does, that a resumed run repeats."""
        loader_kwargs.setdefault("generator", loader_generator())
        loader = super().make_dataloader(
            dataset, stage, *args, **loader_kwargs
        )
        if stage == sb.Stage.TRAIN:
            self._count_batches(loader)
        return loader

    def check_loss_isfinite(self, loss):
        """Note a loss that is not finite, on any rank, so that patience ends
        on all at once."""
        bad = (~torch.isfinite(loss.detach())).float()
        if bool(sum_over_ranks(bad)):
            self._nonfinite = True
            loss = torch.full_like(loss.detach(), torch.nan)
        super().check_loss_isfinite(loss)

    def optimizers_step(self):
        """Step, unless the loss was not finite."""
        if self._nonfinite and not self.scaler.is_enabled():
            self.modules.zero_grad(set_to_none=True)
            logger.warning(
                "The loss after step %d is not finite: the step is skipped.",
                self.optimizer_step,
            )
        else:
            super().optimizers_step()
        self._nonfinite = False

    @property
    def quantizers(self) -> dict[str, torch.nn.Module]:
        """The quantizers in ``self.modules`` by name, but for frozen ones."""
        return find_quantizers(self.modules)

    @property
    def vq_stats(self) -> dict[str, dict[str, float]]:
        """Usage of the codebooks in each stage: the numbers of
        ``UsageMonitor.stats`` under ``"train"``, ``"valid"`` and ``"test"``.
        In a distributed run it sums over ranks, so every rank must ask."""
        for kind, stage in (("train", "train"), ("eval", self._eval_stage)):
            monitors = self._monitors[kind]
            self._stats[stage] = {
                key if len(monitors) == 1 else f"{name}.{key}": value
                for name, monitor in monitors.items()
                for key, value in monitor.stats(over_ranks=True).items()
            }
        return self._stats

    # ---------------------------------------------------------------------

    def _set_up(self, eval_stage: str) -> None:
        self._eval_stage = eval_stage
        if self._monitors is None:
            if not self.quantizers:
                raise ValueError(
                    "There is no quantizer among the Brain's modules "
                    f"({', '.join(self.modules)}): name one in `modules`, not "
                    "in the hparams alone."
                )
            self._stats, self._monitors = {}, {}
            self._monitors["train"] = self._new_monitors(training=True)
            self._monitors["eval"] = self._new_monitors(training=False)

    def _new_monitors(self, training: bool) -> dict[str, UsageMonitor]:
        for old in self._monitors.get("train" if training else "eval", {}):
            self._monitors["train" if training else "eval"][old].close()
        rate = self._hparam("token_rate")
        return {
            name: UsageMonitor(quantizer, rate, training)
            for name, quantizer in self.quantizers.items()
        }

    def _hparam(self, name, default=None):
        return getattr(getattr(self, "hparams", None), name, default)

    def _count_batches(self, loader) -> None:
        with contextlib.suppress(TypeError):
            self._num_batches = len(loader)
            if self.debug:
                self._num_batches = min(self._num_batches, self.debug_batches)

    def _attach(self) -> None:
        """Hang a trainer on the optimizers, once a fit."""
        if self._attached:
            return
        self._attached = True
        steps = total = self.optimizer_step_limit
        if self._num_batches:
            steps = max(self._num_batches // self.grad_accumulation_factor, 1)
            if self._epochs:
                total = min(total or steps * self._epochs, steps * self._epochs)
        multiplier = self._hparam("codebook_lr_multiplier", 10.0)
        previous = self.codebook_trainer
        self.codebook_trainer = CodebookTrainer(
            self.modules,
            self._find_optimizers(),
            1.0 if multiplier is None else multiplier,
            self._hparam("reinit_schedule", DEFAULT_SCHEDULE),
            steps_per_epoch=steps if self._num_batches else None,
            total_steps=total,
        )
        if previous is not None:
            self.codebook_trainer.load_state_dict(previous.state_dict())
            previous.close()

    def _find_optimizers(self) -> list[Optimizer]:
        """Those in optimizers_dict, or in any attribute."""
        found = (self.optimizers_dict or {}).values()
        attributes = vars(self).values()
        return [o for o in (*found, *attributes) if isinstance(o, Optimizer)]

    def _each(self, epoch_counter):
        """The epochs, each with monitors that start anew."""
        for epoch in epoch_counter:
            if not self._attached:
                raise RuntimeError(
                    f"{type(self).__name__}.on_fit_start() does not call "
                    "super().on_fit_start(): add that line."
                )
            # An epoch resumed in its middle goes on with the sums recovered.
            for kind in ("train", "eval") if self.step == 0 else ("eval",):
                for monitor in self._monitors[kind].values():
                    monitor.start()
            yield epoch


@sb.utils.checkpoints.register_checkpoint_hooks
class _State:
    """The state of trainer and monitors, as a recoverable."""

    def __init__(self, brain):
        self.brain = brain

    def checkpoint_meta(self) -> dict:
        """Warm-up and usage, for the meta of ``AtomicCheckpointer``."""
        quantizers = self.brain.quantizers.values()
        stats = {
            f"{stage}_{key}": value
            for stage, numbers in self.brain.vq_stats.items()
            for key, value in numbers.items()
        }
        return {"vq_warmup": any(q.bypass for q in quantizers), **stats}

    @sb.utils.checkpoints.mark_as_saver
    def _save(self, path):
        monitors = self.brain._monitors["train"]
        state = {
            "trainer": self.brain.codebook_trainer.state_dict(),
            "monitors": {n: m.state_dict() for n, m in monitors.items()},
        }
        torch.save(state, path)

    @sb.utils.checkpoints.mark_as_loader
    def _load(self, path, end_of_epoch):
        state = torch.load(path)
        if not self.brain._fitting:
            for name, quantizer in self.brain.quantizers.items():
                quantizer.load_training_state(
                    state["trainer"]["quantizers"][name]
                )
            return
        self.brain._attach()
        self.brain.codebook_trainer.load_state_dict(state["trainer"])
        if not end_of_epoch and is_first_rank():
            for name, monitor in self.brain._monitors["train"].items():
                monitor.load_state_dict(state["monitors"][name])


class VQBrain(VQMixin, sb.Brain):
    """A SpeechBrain Brain that trains vector quantizers; see ``VQMixin``."""
