"""SpeechBrain Brains that train vector quantizers."""

import contextlib
import math

import speechbrain as sb
import torch
from speechbrain.utils.logger import get_logger

from speechbrain_vq.nnet.utils import sum_over_ranks
from speechbrain_vq.training.monitor import StageMonitors
from speechbrain_vq.training.resume import TrainerState, loader_generator
from speechbrain_vq.training.trainer import (
    DEFAULT_SCHEDULE,
    CodebookTrainer,
    find_quantizers,
)

logger = get_logger(__name__)


class VQMixin:
    """Hangs a ``CodebookTrainer`` on the optimizers of a Brain and monitors the
    quantizers in ``self.modules``.

    Name it first among the bases: ``class MyBrain(VQMixin, ASR)``. It works by
    hooks of the optimizers, so a Brain may have its own ``fit_batch``,
    ``init_optimizers`` and ``freeze_optimizers``. For exact resumes take
    ``speechbrain_vq.training.resume.AtomicCheckpointer``.

    Reads from ``hparams``, all optional; null turns off:
    ``codebook_lr_multiplier`` (10), ``reinit_schedule`` (that of the preset
    ``robust``), ``token_rate`` (frames a second at the quantizer).

    Example
    -------
    >>> from speechbrain_vq import VectorQuantizer
    >>> class AutoEncoder(VQBrain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.quantizer(self.modules.encoder(batch[0]))
    ...
    ...     def compute_objectives(self, output, batch, stage):
    ...         return (output[0] - batch[0]).square().mean() + output.loss
    >>> parts = {
    ...     "encoder": torch.nn.Linear(8, 8),
    ...     "quantizer": VectorQuantizer(8, 16),
    ... }
    >>> brain = AutoEncoder(parts, lambda p: torch.optim.Adam(p, lr=0.001))
    >>> data = [(torch.randn(4, 10, 8),) for _ in range(6)]
    >>> brain.fit(range(2), data, progressbar=False)
    >>> brain.codebook_trainer.steps
    12
    >>> brain.vq_stats["train"]["used_codes_percent"] > 90
    True
    """

    codebook_trainer = monitors = None
    _eval_stage, _attached, _nonfinite = "valid", False, False
    _fit_called = False
    _epochs, _num_batches = math.inf, None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if sb.Brain in order and order.index(VQMixin) > order.index(sb.Brain):
            raise TypeError(
                f"{cls.__name__} must name VQMixin before the Brain among its "
                f"bases, `class {cls.__name__}(VQMixin, ...)`: behind it, it "
                "does nothing."
            )

    @property
    def quantizers(self) -> dict[str, torch.nn.Module]:
        """The quantizers in ``self.modules`` by name, but for frozen ones."""
        return find_quantizers(self.modules)

    @property
    def is_fitting(self) -> bool:
        """Whether ``fit()`` was called last, not ``evaluate()``."""
        return self._eval_stage == "valid"

    @property
    def vq_stats(self) -> dict[str, dict[str, float]]:
        """The numbers of ``UsageMonitor.stats`` for the latest stages
        ``"train"``, ``"valid"`` and ``"test"``; all ranks must ask."""
        self._stats = {
            **self._stats,
            "train": self.monitors.stats(training=True),
            self._eval_stage: self.monitors.stats(training=False),
        }
        return self._stats

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """Fit, as a Brain does."""
        self._start("valid")
        self._attached, self._fit_called = False, True
        self._epochs, self._num_batches = math.inf, None
        with contextlib.suppress(AttributeError, TypeError):
            limit = getattr(epoch_counter, "limit", None)
            self._epochs = limit or len(epoch_counter)
        if self.debug:
            self._epochs = min(self._epochs, self.debug_epochs)
        if isinstance(train_set, torch.utils.data.DataLoader):
            self._count_batches(train_set)
        super().fit(
            self._epochs_from(epoch_counter), train_set, *args, **kwargs
        )
        if not self._attached:  # A run with test_only
            return
        self._stats = self.vq_stats  # Before evaluate() counts anew
        schedule = self.codebook_trainer.schedule
        if self.codebook_trainer.in_warmup and schedule.ends:
            logger.warning(
                "The run ended within the warm-up of reinit_schedule, after "
                f"{self.codebook_trainer.steps} steps: nothing is quantized "
                "yet. Train longer, or shorten its warmup."
            )

    def evaluate(self, *args, **kwargs):
        """Evaluate, as a Brain does, and warn if it does not quantize."""
        self._start("test")
        self.monitors.start(training=False)
        loss = super().evaluate(*args, **kwargs)
        if any(quantizer.bypass for quantizer in self.quantizers.values()):
            logger.warning(
                "There is no checkpoint past the warm-up: the model evaluated "
                "does not quantize."
            )
        return loss

    def on_fit_start(self):
        """Attach the trainer after the optimizers were made."""
        super().on_fit_start()
        if not self._fit_called:
            raise RuntimeError(
                f"{type(self).__name__}.fit() must call "
                "super().fit(epoch_counter, train_set, ...)."
            )
        self.attach_trainer()

    def make_dataloader(self, dataset, stage, *args, **kwargs):
        """Make a loader, as a Brain does, that resumed runs repeat."""
        kwargs.setdefault("generator", loader_generator())
        loader = super().make_dataloader(dataset, stage, *args, **kwargs)
        if stage == sb.Stage.TRAIN:
            self._count_batches(loader)
        return loader

    def check_loss_isfinite(self, loss):
        """Note a loss that is not finite, on any rank."""
        if sum_over_ranks((~torch.isfinite(loss.detach())).float()):
            self._nonfinite = True
            loss = torch.full_like(loss.detach(), torch.nan)
        super().check_loss_isfinite(loss)

    def optimizers_step(self):
        """Step, unless the loss was not finite."""
        if self._nonfinite and not self.scaler.is_enabled():
            self.modules.zero_grad(set_to_none=True)
            logger.warning(
                f"The loss after step {self.optimizer_step} is not finite: the "
                "step is skipped."
            )
        else:
            super().optimizers_step()
        self._nonfinite = False

    def attach_trainer(self):
        """Make the trainer, once a fit; a checkpoint to recover needs it before
        the optimizers are loaded."""
        if self._attached:
            return
        self._attached = True
        steps, total = None, self.optimizer_step_limit or math.inf
        if self._num_batches:
            steps = max(self._num_batches // self.grad_accumulation_factor, 1)
            total = min(total, steps * self._epochs)
        multiplier = self._hparam("codebook_lr_multiplier", 10.0)
        previous = self.codebook_trainer
        if previous is not None:
            previous.close()
        self.codebook_trainer = CodebookTrainer(
            self.modules,
            self._optimizer_candidates(),
            1.0 if multiplier is None else multiplier,
            self._hparam("reinit_schedule", DEFAULT_SCHEDULE),
            steps_per_epoch=steps,
            total_steps=total if total < math.inf else None,
        )
        if previous is not None:
            self.codebook_trainer.load_state_dict(previous.state_dict())

    def _optimizer_candidates(self):
        """Yield attributes and the items of lists and dicts among them."""
        for value in [self.optimizers_dict, *vars(self).values()]:
            if isinstance(value, dict):
                yield from value.values()
            elif isinstance(value, list | tuple):
                yield from value
            else:
                yield value

    def _start(self, eval_stage):
        self._eval_stage = eval_stage
        if self.monitors is None:
            if not self.quantizers:
                raise ValueError(
                    "There is no quantizer among the Brain's modules "
                    f"({', '.join(self.modules)}): name one in `modules`, not "
                    "in the hparams alone."
                )
            rate = self._hparam("token_rate", None)
            self.monitors = StageMonitors(self.quantizers, rate)
            self._stats = {}
            if self.checkpointer is not None:
                self.checkpointer.add_recoverable(
                    "codebook_trainer", TrainerState(self), optional_load=True
                )

    def _hparam(self, name, default):
        return getattr(getattr(self, "hparams", None), name, default)

    def _count_batches(self, loader):
        with contextlib.suppress(TypeError):
            self._num_batches = len(loader)
            if self.debug:
                self._num_batches = min(self._num_batches, self.debug_batches)

    def _epochs_from(self, epoch_counter):
        """Yield the epochs; usage is counted from the start of each."""
        for epoch in epoch_counter:
            if not self._attached:
                raise RuntimeError(
                    f"{type(self).__name__}.on_fit_start() must call "
                    "super().on_fit_start()."
                )
            self._eval_stage = "valid"  # Were evaluate() called in between
            if self.step == 0:  # Not one resumed in its middle
                self.monitors.start(training=True)
            self.monitors.start(training=False)
            self._nonfinite = False
            yield epoch


class VQBrain(VQMixin, sb.Brain):
    """A SpeechBrain Brain that trains vector quantizers; see ``VQMixin``."""
