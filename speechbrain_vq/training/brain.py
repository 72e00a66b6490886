"""SpeechBrain Brains that train vector quantizers."""

import contextlib
import functools
import math
import re
from difflib import get_close_matches

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_vq.nnet.utils import sum_over_ranks, world_size
from speechbrain_vq.presets import TRAINER_OPTIONS
from speechbrain_vq.training.attachment import find_quantizers
from speechbrain_vq.training.monitor import UsageMonitor
from speechbrain_vq.training.resume import AtomicCheckpointer, ResumeMixin
from speechbrain_vq.training.trainer import CodebookTrainer
from speechbrain_vq.training.waiting import reported_waits

logger = get_logger(__name__)

# Steps skipped in a row, after which a run is given up.
_MOST_SKIPPED = 200


class VQMixin(ResumeMixin):
    """Attach a ``CodebookTrainer`` to a Brain and monitor its quantizers.

    Name it first among the bases; the Brain may have its own ``fit_batch`` and
    optimizers. Exact resumes need ``resume.AtomicCheckpointer``. A step whose
    loss is not finite on some rank is skipped, as that of a quantizer is where
    a batch has no valid frame. Reads from ``hparams``, null turns off, and
    absent are those of the quantizers' preset: ``codebook_lr_multiplier``,
    ``codebook_max_lr`` and ``reinit_schedule``, see ``CodebookTrainer``; and
    ``token_rate`` (frames a second at the quantizer).

    Gives ``quantizers`` by name, ``vq_stats`` of each stage, and once ``fit``
    has begun ``codebook_trainer`` and ``monitor``.

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

    codebook_trainer = monitor = None
    _eval_stage, _attached, _epochs = "valid", False, None
    _nonfinite, _skipped, _agrees = False, 0, True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if sb.Brain in order and order.index(VQMixin) > order.index(sb.Brain):
            raise TypeError(
                "VQMixin does nothing behind the Brain: name it first among the "
                f"bases, `class {cls.__name__}(VQMixin, ...)`."
            )

    @property
    def quantizers(self) -> dict[str, torch.nn.Module]:
        """The quantizers in ``self.modules`` by name, but for frozen ones."""
        return find_quantizers(self.modules)

    @property
    def vq_stats(self) -> dict[str, dict[str, float]]:
        """``UsageMonitor.stats`` of the latest stages ``"train"``,
        ``"valid"`` and ``"test"``; all ranks must ask. Empty before a fit or
        an evaluation."""
        if self.monitor is None:
            return {}
        self._stats = {
            **self._stats,
            "train": self.monitor.stats(training=True, over_ranks=True),
            self._eval_stage: self.monitor.stats(False, over_ranks=True),
        }
        return self._stats

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """Fit, as a Brain does."""
        self._start("valid")
        self._attached, self._epochs = False, _length(epoch_counter)
        waits = reported_waits(lambda: (self.step, self.optimizer_step))
        with waits, _named_sizes(self):
            epochs = self._epochs_from(epoch_counter)
            super().fit(epochs, train_set, *args, **kwargs)
        if self._attached:  # Not a run with test_only
            self._stats = self.vq_stats  # Before evaluate() counts anew

    def evaluate(self, *args, **kwargs):
        """Evaluate, as a Brain does, and warn if it does not quantize."""
        self._start("test")
        self.monitor.start(training=False)
        with _named_sizes(self):
            loss = super().evaluate(*args, **kwargs)
        if any(quantizer.bypass for quantizer in self.quantizers.values()):
            logger.warning("No checkpoint past the warm-up: no quantization.")
        return loss

    def on_fit_start(self):
        """Attach the trainer after the optimizers were made."""
        super().on_fit_start()
        self._require_super(self._epochs is not None, "fit(epoch_counter, ...)")
        self.attach_trainer()

    def check_loss_isfinite(self, loss):
        """Note a loss that is not finite, a batch of padding, and a signal, on
        any rank."""
        nonfinite = (~torch.isfinite(loss.detach())).float()
        asked = self._stop is not None and self._stop.asked is not None
        empty = self.monitor.is_empty().to(nonfinite)
        nonfinite, asked, empty = sum_over_ranks(
            torch.stack([nonfinite, torch.full_like(nonfinite, asked), empty])
        ).tolist()
        if asked:
            self._stop.begin()
        if empty and not nonfinite:
            logger.warning(
                f"After step {self.optimizer_step}, {empty:.0f} of "
                f"{world_size()} ranks had a batch of padding, which does not "
                "count."
            )
        if nonfinite:
            self._nonfinite = True
            loss = torch.full_like(loss.detach(), torch.nan)
        super().check_loss_isfinite(loss)

    def optimizers_step(self):
        """Step, unless the loss was not finite."""
        if self._nonfinite and not self.scaler.is_enabled():
            self.modules.zero_grad(set_to_none=True)
            self._skipped += 1
            logger.warning(
                f"The loss after step {self.optimizer_step} is not finite: the "
                f"step is skipped, {self._skipped} in a row. That of a batch "
                "of padding is not."
            )
            self._give_up(self._skipped >= _MOST_SKIPPED)
        else:
            super().optimizers_step()
            self._skipped = 0
        self._nonfinite = False

    def update_average(self, loss, avg_loss):
        """Average finite losses, as a Brain does."""
        if not (self.modules.training or torch.isfinite(loss)):
            logger.warning(
                "A batch of the evaluation does not count: its loss is not "
                "finite, as that of a batch of padding never is."
            )
        return super().update_average(loss, avg_loss)

    def _give_up(self, learns_nothing):
        if learns_nothing:
            raise ValueError(
                f"The last {self._skipped} steps were skipped, as no loss was "
                "finite or no batch had a valid frame: nothing is learned. "
                "Look for NaN in recordings and feature statistics, and for "
                "batches of padding, or lower the learning rate."
            )

    def attach_trainer(self):
        """Make the trainer, once a fit, before the optimizers are loaded."""
        if self._attached:
            return
        self._attached = True
        hparams = getattr(self, "hparams", None)
        options = TRAINER_OPTIONS
        given = {n: a for n, a in options.items() if hasattr(hparams, n)}
        for name in set(vars(hparams) if hparams else ()) - set(options):
            for option in get_close_matches(name, options, 1, 0.9):
                logger.warning(f"Nothing reads {name}: is it {option}?")
        previous, (steps, total) = self.codebook_trainer, run_length(self)
        if previous is not None:
            previous.close()
        self.codebook_trainer = CodebookTrainer(
            self.modules,
            [self.optimizers_dict, *vars(self).values()],
            **{a: getattr(hparams, name) for name, a in given.items()},
            steps_per_epoch=steps,
            total_steps=total or None,  # A run of no epochs has 0.
        )
        prefers_later = isinstance(self.checkpointer, AtomicCheckpointer | None)
        if total is not None and prefers_later:
            self.codebook_trainer.expect_warmup()
        if previous is not None:
            self.codebook_trainer.load_state_dict(previous.state_dict())

    def _start(self, eval_stage):
        self._eval_stage = eval_stage
        if self.monitor is not None:
            return
        if not self.quantizers:
            raise ValueError(
                "There is no quantizer among the Brain's modules "
                f"({', '.join(self.modules)}): name one in `modules`, not in "
                "the hparams alone."
            )
        rate = getattr(getattr(self, "hparams", None), "token_rate", None)
        self.monitor, self._stats = UsageMonitor(self.quantizers, rate), {}
        if self.checkpointer is not None:
            TrainerState(self).join(self.checkpointer)

    def _require_super(self, was_called, method):
        if not was_called:
            name, called = type(self).__name__, method.split("(")[0]
            raise RuntimeError(f"{name}.{called}() must call super().{method}.")

    def _epochs_from(self, epoch_counter):
        """Yield the epochs; usage is counted from the start of each."""
        for epoch in epoch_counter:
            self._require_super(self._attached, "on_fit_start()")
            self._eval_stage = "valid"  # Were evaluate() called in between
            if self.step == 0:  # Not one resumed in its middle
                self.monitor.start(training=True)
            self.monitor.start(training=False)
            self._nonfinite, before = False, self.optimizer_step
            yield epoch
            self._give_up(self._skipped and self.optimizer_step == before)


class VQBrain(VQMixin, sb.Brain):
    """A SpeechBrain Brain that trains vector quantizers; see ``VQMixin``."""


# On every rank, as what ranks have collected is gathered.
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class TrainerState:
    """The states of a VQ Brain's trainer and monitor, as a recoverable. It is
    loaded before the optimizers, recoverables added later."""

    def __init__(self, brain):
        self.brain = brain

    def join(self, checkpointer):
        """Have a checkpointer save the states, and quantizers that are in none
        of its recoverables."""
        saved = checkpointer.recoverables.values()
        modules = [m for m in saved if isinstance(m, torch.nn.Module)]
        saved = set(torch.nn.ModuleList(modules).modules())
        for name, quantizer in self.brain.quantizers.items():
            if quantizer not in saved:
                checkpointer.add_recoverable(f"vq.{name}", quantizer)
        checkpointer.add_recoverable(
            "codebook_trainer", self, optional_load=True
        )

    def checkpoint_meta(self) -> dict[str, float]:
        """Return warm-up and usage, for the meta of checkpoints."""
        quantizers = self.brain.quantizers.values()
        meta = {"vq_warmup": any(q.bypass for q in quantizers)}
        for stage, numbers in self.brain.vq_stats.items():
            meta.update({f"{stage}_{k}": v for k, v in numbers.items()})
        return meta

    @mark_as_saver
    def _save(self, path):
        trainer, monitor = self.brain.codebook_trainer, self.brain.monitor
        state = {
            "trainer": trainer.state_dict(True) if trainer is not None else {},
            "monitors": monitor.state_dict(True, over_ranks=True),
            "evaluation": monitor.state_dict(False, over_ranks=True),
        }
        if if_main_process():
            torch.save(state, path)
        if trainer is not None and world_size() > 1:
            # As after a resume, the first rank has the sample of all, so that
            # a run that goes on has the bits of one that is resumed.
            trainer.load_state_dict(state["trainer"])

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        state, brain = torch.load(path, map_location="cpu"), self.brain
        if brain._eval_stage == "valid":  # In a fit
            brain.attach_trainer()
            brain.codebook_trainer.load_state_dict(state["trainer"])
            if if_main_process():
                brain.monitor.load_state_dict(state["monitors"])
                brain.monitor.load_state_dict(state["evaluation"], False)
            return
        quantizers = brain.quantizers
        for name, saved in state["trainer"].get("quantizers", {}).items():
            quantizers[name].load_training_state(saved)


def run_length(brain) -> tuple[int | None, int | None]:
    """Number of optimizer steps of an epoch and of the run, where known."""
    batches, epochs = _length(brain._loader), brain._epochs
    if brain.debug:
        batches = min(batches, brain.debug_batches)
        epochs = min(epochs, brain.debug_epochs)
    steps, total = None, brain.optimizer_step_limit or math.inf
    if batches < math.inf:
        steps = max(batches // brain.grad_accumulation_factor, 1)
        total = min(total, steps * epochs)
    return steps, total if total < math.inf else None


def _length(sized) -> float:
    """The length of a loader or of epochs, infinite where it is unknown."""
    try:
        return getattr(sized, "limit", None) or len(sized)
    except TypeError:
        return math.inf


@contextlib.contextmanager
def _named_sizes(brain):
    """Name what takes the memory where it runs out, in a MemoryError."""
    try:
        yield
    except RuntimeError as error:
        # CUDA's, a CPU's, and of a worker, which the system kills.
        words = r"out of memory|allocate memory|DataLoader worker \(pid"
        if not re.search(words, str(error)):
            raise
        hparams = getattr(brain, "hparams", None)
        sizes = [f"batch_size={getattr(hparams, 'batch_size', '?')}"]
        for name, quantizer in brain.quantizers.items():
            sizes.append(f"codebook_size of {name}={quantizer.codebook_size}")
        raise MemoryError(
            "Out of memory, or a worker was killed, in the step after "
            f"{brain.optimizer_step}. What takes memory, beside the length of "
            f"the items: {', '.join(sizes)}. ({str(error).splitlines()[0]})"
        ) from error
