"""SpeechBrain Brains that train vector quantizers."""

import math

import speechbrain as sb
import torch
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils.logger import get_logger

from speechbrain_vq.nnet.utils import sum_over_ranks
from speechbrain_vq.training.monitor import StageMonitors
from speechbrain_vq.training.resume import ResumableMixin, TrainerState
from speechbrain_vq.training.trainer import (
    DEFAULT_SCHEDULE,
    CodebookTrainer,
    find_quantizers,
)

logger = get_logger(__name__)


class SkipNonfiniteMixin:
    """Skips the steps of a Brain whose loss is not finite on some rank."""

    _nonfinite = False

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


def _check_bases(cls) -> None:
    """Refuse a Brain that names VQMixin where it would do nothing."""
    order = cls.__mro__
    if sb.Brain in order and order.index(VQMixin) > order.index(sb.Brain):
        raise TypeError(
            f"{cls.__name__} must name VQMixin before the Brain among its "
            f"bases, `class {cls.__name__}(VQMixin, ...)`: behind it, it does "
            "nothing."
        )


class VQMixin(SkipNonfiniteMixin, ResumableMixin):
    """Attach a ``CodebookTrainer`` to a Brain and monitor its quantizers.

    Name it first among the bases. It works by hooks of the optimizers, so a
    Brain may have its own ``fit_batch``, ``init_optimizers`` and
    ``freeze_optimizers``. Exact resumes need ``resume.AtomicCheckpointer``.

    Reads from ``hparams``, all optional, null turns off:
    ``codebook_lr_multiplier`` (10), ``codebook_max_lr`` (0.01),
    ``reinit_schedule`` (that of the preset ``robust``), ``token_rate`` (frames
    a second at the quantizer).

    Example
    -------
    >>> from speechbrain_vq import VectorQuantizer
    >>> class AutoEncoder(VQBrain):
    ...     def compute_forward(self, batch, stage):
    ...         return self.modules.quantizer(self.modules.encoder(batch[0]))
    ...
    ...     def compute_objectives(self, output, batch, stage):
    ...         return (output[0] - batch[0]).square().mean() + output.loss
    >>> encoder, quantizer = torch.nn.Linear(8, 8), VectorQuantizer(8, 16)
    >>> modules = {"encoder": encoder, "quantizer": quantizer}
    >>> brain = AutoEncoder(modules, lambda p: torch.optim.Adam(p, lr=0.001))
    >>> data = [(torch.randn(4, 10, 8),) for _ in range(6)]
    >>> brain.fit(range(2), data, progressbar=False)
    >>> brain.vq_stats["train"]["used_codes_percent"] > 90
    True
    """

    codebook_trainer = monitors = None
    _eval_stage, _attached, _fit_called = "valid", False, False

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        _check_bases(cls)

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
        """``UsageMonitor.stats`` of the latest stages ``"train"``,
        ``"valid"`` and ``"test"``; all ranks must ask."""
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
        self._num_epochs = _num_epochs(self, epoch_counter)
        self._num_batches = _num_batches_given(self, train_set)
        epochs = self._epochs_from(epoch_counter)
        super().fit(epochs, train_set, *args, **kwargs)
        if self._attached:  # Not a run with test_only
            self._stats = self.vq_stats  # Before evaluate() counts anew
            self.codebook_trainer.check_warmup_ended()

    def evaluate(self, *args, **kwargs):
        """Evaluate, as a Brain does, and warn if it does not quantize."""
        self._start("test")
        self.monitors.start(training=False)
        loss = super().evaluate(*args, **kwargs)
        _check_quantizes(self.quantizers)
        return loss

    def on_fit_start(self):
        """Attach the trainer after the optimizers were made."""
        super().on_fit_start()
        if not self._fit_called:
            name = type(self).__name__
            raise RuntimeError(
                f"{name}.fit() must call super().fit(epoch_counter, ...)."
            )
        self.attach_trainer()

    def make_dataloader(self, dataset, stage, *args, **kwargs):
        """Make a loader, as a Brain does, and count its batches."""
        loader = super().make_dataloader(dataset, stage, *args, **kwargs)
        if stage == sb.Stage.TRAIN:
            self._num_batches = _num_batches(self, loader)
        return loader

    def attach_trainer(self):
        """Make the trainer, once a fit, before the optimizers are loaded."""
        if self._attached:
            return
        self._attached = True
        steps_per_epoch, total_steps = run_length(self)
        multiplier = self._hparam("codebook_lr_multiplier", 10.0)
        previous = self.codebook_trainer
        if previous is not None:
            previous.close()
        self.codebook_trainer = CodebookTrainer(
            self.modules,
            _flatten([self.optimizers_dict, *vars(self).values()]),
            1.0 if multiplier is None else multiplier,
            self._hparam("reinit_schedule", DEFAULT_SCHEDULE),
            self._hparam("codebook_max_lr", 0.01),
            steps_per_epoch=steps_per_epoch,
            total_steps=total_steps,
        )
        if previous is not None:
            self.codebook_trainer.load_state_dict(previous.state_dict())

    def _start(self, eval_stage):
        self._eval_stage = eval_stage
        if self.monitors is not None:
            return
        if not self.quantizers:
            raise ValueError(
                "There is no quantizer among the Brain's modules "
                f"({', '.join(self.modules)}): name one in `modules`, not in "
                "the hparams alone."
            )
        rate = self._hparam("token_rate", None)
        self.monitors, self._stats = StageMonitors(self.quantizers, rate), {}
        if self.checkpointer is not None:
            self.checkpointer.add_recoverable(
                "codebook_trainer", TrainerState(self), optional_load=True
            )

    def _hparam(self, name, default):
        return getattr(getattr(self, "hparams", None), name, default)

    def _epochs_from(self, epoch_counter):
        """Yield the epochs; usage is counted from the start of each."""
        for epoch in epoch_counter:
            if not self._attached:
                name = type(self).__name__
                raise RuntimeError(
                    f"{name}.on_fit_start() must call super().on_fit_start()."
                )
            self._eval_stage = "valid"  # Were evaluate() called in between
            if self.step == 0:  # Not one resumed in its middle
                self.monitors.start(training=True)
            self.monitors.start(training=False)
            self._nonfinite = False
            yield epoch


class VQBrain(VQMixin, sb.Brain):
    """A SpeechBrain Brain that trains vector quantizers; see ``VQMixin``."""


def _check_quantizes(quantizers) -> None:
    """Warn where a model evaluated is in its warm-up."""
    if any(quantizer.bypass for quantizer in quantizers.values()):
        logger.warning(
            "There is no checkpoint past the warm-up: the model evaluated "
            "does not quantize."
        )


def _num_epochs(brain, epoch_counter) -> float:
    """Number of epochs of a run, infinite where it is unknown."""
    number = getattr(epoch_counter, "limit", None)
    if not number:
        sized = hasattr(epoch_counter, "__len__")
        number = len(epoch_counter) if sized else math.inf
    return min(number, brain.debug_epochs) if brain.debug else number


def _num_batches(brain, loader) -> int | None:
    """Number of batches of an epoch, where known."""
    try:
        number = len(loader)
    except TypeError:  # Of an iterable data set
        return None
    return min(number, brain.debug_batches) if brain.debug else number


def _num_batches_given(brain, train_set) -> int | None:
    """Number of batches where a loader is given in place of a data set."""
    # As SpeechBrain's fit() tells them apart.
    loaders = (torch.utils.data.DataLoader, LoopedLoader)
    given = isinstance(train_set, loaders)
    return _num_batches(brain, train_set) if given else None


def run_length(brain) -> tuple[int | None, int | None]:
    """Number of optimizer steps of an epoch and of the run, where known."""
    steps, total = None, brain.optimizer_step_limit or math.inf
    if brain._num_batches:
        steps = max(brain._num_batches // brain.grad_accumulation_factor, 1)
        total = min(total, steps * brain._num_epochs)
    return steps, total if total < math.inf else None


def _flatten(values):
    """Yield values, and in place of lists and dicts the items of these."""
    for value in values:
        if isinstance(value, dict):
            yield from value.values()
        elif isinstance(value, list | tuple):
            yield from value
        else:
            yield value
