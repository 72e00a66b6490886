"""Train vector quantizers in SpeechBrain Brains."""

import contextlib
import functools
import math
import re
from difflib import get_close_matches
from types import SimpleNamespace

import speechbrain as sb
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import get_logger

from speechbrain_vq.nnet.quantizers import VectorQuantizer
from speechbrain_vq.nnet.utils import world_size
from speechbrain_vq.presets import TRAINER_OPTIONS
from speechbrain_vq.training.attachment import find_quantizers
from speechbrain_vq.training.monitor import UsageMonitor
from speechbrain_vq.training.resume import AtomicCheckpointer, ResumeMixin
from speechbrain_vq.training.skipping import SkipMixin
from speechbrain_vq.training.trainer import CodebookTrainer
from speechbrain_vq.training.waiting import reported_waits

logger = get_logger(__name__)


class VQMixin(SkipMixin, ResumeMixin):
    """Mixin that attaches a ``CodebookTrainer`` to a Brain, and monitors
    codebook usage.

    It must be the first base class. The Brain may define its own ``fit_batch``
    and optimizers. Steps with a non-finite loss are skipped, see ``SkipMixin``;
    a quantizer's loss is NaN for a batch without valid frames. Exact resume
    requires a ``resume.AtomicCheckpointer``.

    Hparams, all optional; null turns a feature off: ``codebook_lr_multiplier``,
    ``codebook_max_lr`` and ``reinit_schedule``, see ``CodebookTrainer``
    (default: those of the quantizer's preset); and ``token_rate``, frames per
    second at the quantizer, for the bit rate.

    Attributes are ``quantizers`` by name, ``vq_stats`` of each stage, and, once
    ``fit`` has started, ``codebook_trainer`` and ``monitor``.

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
    _eval_stage, _attached, _epochs, _agrees = "valid", False, None, True

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if sb.Brain in order and order.index(VQMixin) > order.index(sb.Brain):
            raise TypeError(
                "VQMixin has no effect after the Brain: list it first among "
                f"the bases, `class {cls.__name__}(VQMixin, ...)`."
            )

    @property
    def quantizers(self) -> dict[str, torch.nn.Module]:
        """Quantizers in ``self.modules`` by name, except frozen ones."""
        return find_quantizers(self.modules)

    @property
    def vq_stats(self) -> dict[str, dict[str, float]]:
        """``UsageMonitor.stats`` of the latest ``"train"``, ``"valid"`` and
        ``"test"`` stage; empty before ``fit`` or ``evaluate``. All ranks must
        read it."""
        if self.monitor is None:
            return {}
        self._stats = {
            **self._stats,
            "train": self.monitor.stats(training=True, over_ranks=True),
            self._eval_stage: self.monitor.stats(False, over_ranks=True),
        }
        return self._stats

    def fit(self, epoch_counter, train_set, *args, **kwargs):
        """Fit as a Brain does."""
        if self._stop is not None:  # A fit within a fit trains other modules.
            return super().fit(epoch_counter, train_set, *args, **kwargs)
        self._start("valid")
        self._attached, self._epochs = False, _length(epoch_counter)
        waits = reported_waits(lambda: (self.step, self.optimizer_step))
        with waits, _named_sizes(self):
            super().fit(epoch_counter, train_set, *args, **kwargs)
        if self._attached:  # False with test_only
            self._stats = self.vq_stats  # Before evaluate() resets the counts

    def evaluate(self, *args, **kwargs):
        """Evaluate as a Brain does; warn if nothing is quantized."""
        self._start("test")
        self.monitor.start(training=False)
        with _named_sizes(self):
            loss = super().evaluate(*args, **kwargs)
        if any(quantizer.bypass for quantizer in self.quantizers.values()):
            logger.warning(
                "The evaluated model is from the warm-up: nothing is quantized. "
                "Unless that is intended, train longer, or select a later "
                "checkpoint; AtomicCheckpointer does so for min_key and max_key."
            )
        return loss

    def on_fit_start(self):
        """Attach the trainer once the optimizers have been created."""
        super().on_fit_start()
        _require_super(
            self, self._epochs is not None, "fit(epoch_counter, ...)"
        )
        self.attach_trainer()

    def has_no_frames(self):
        """Return whether the latest batch was all padding."""
        return self.monitor.is_empty()

    def attach_trainer(self):
        """Create the trainer, once per fit. Call it in ``init_optimizers()``
        before creating learning rate schedulers there."""
        if self._attached:
            return
        self._attached, previous = True, self.codebook_trainer
        if previous is not None:
            previous.close()
        if not self.quantizers:  # All are frozen.
            return
        options = _trainer_options(self)
        given = [self.optimizers_dict, *vars(self).values()]
        self.codebook_trainer = CodebookTrainer(self.modules, given, **options)
        prefers_later = isinstance(self.checkpointer, AtomicCheckpointer | None)
        if options["total_steps"] is not None and prefers_later:
            self.codebook_trainer.expect_warmup()
        if previous is not None:
            self.codebook_trainer.load_state_dict(previous.state_dict())

    def _start(self, eval_stage):
        self._eval_stage = eval_stage
        if self.monitor is not None:
            return
        _require_quantizer(self.modules)
        rate = getattr(getattr(self, "hparams", None), "token_rate", None)
        self.monitor, self._stats = UsageMonitor(self.quantizers, rate), {}
        if self.checkpointer is not None:
            TrainerState(self).join(self.checkpointer)

    def _epochs_left(self, epoch_counter):
        """Yield the epochs, and restart the usage counts for each."""
        for epoch in super()._epochs_left(epoch_counter):
            _require_super(self, self._attached, "on_fit_start()")
            self._eval_stage = "valid"  # evaluate() may have been called
            if self.step == 0:  # Unless the epoch was resumed
                self.monitor.start(training=True)
            self.monitor.start(training=False)
            self._nonfinite, before = False, self.optimizer_step
            yield epoch
            self.check_skipped(self.optimizer_step == before)


class VQBrain(VQMixin, sb.Brain):
    """SpeechBrain Brain that trains vector quantizers; see ``VQMixin``."""


def _require_quantizer(modules):
    """Raise ValueError unless the modules of a Brain contain a quantizer."""
    if not any(isinstance(m, VectorQuantizer) for m in modules.modules()):
        raise ValueError(
            f"The Brain's modules contain no quantizer ({', '.join(modules)}): "
            "add it to `modules`, not to the hparams alone."
        )


def _require_super(brain, was_called, method):
    """Raise RuntimeError unless a method of a subclass called VQMixin's."""
    if not was_called:
        name, called = type(brain).__name__, method.split("(")[0]
        raise RuntimeError(f"{name}.{called}() must call super().{method}.")


# Saved by all ranks, because statistics and latents are gathered from each.
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class TrainerState:
    """State of a VQ Brain's trainer and monitor, as a recoverable. It is added,
    and therefore loaded, before the optimizers."""

    def __init__(self, brain):
        self.brain = brain

    def join(self, checkpointer):
        """Add the state to a checkpointer, along with quantizers that its
        recoverables lack."""
        saved = checkpointer.recoverables.values()
        modules = [m for m in saved if isinstance(m, torch.nn.Module)]
        saved = set(torch.nn.ModuleList(modules).modules())
        add = checkpointer.add_recoverable
        for name, quantizer in self.brain.quantizers.items():
            if quantizer not in saved:
                add(f"vq.{name}", quantizer)
        add("codebook_trainer", self, optional_load=True)

    def checkpoint_meta(self) -> dict[str, float]:
        """Return warm-up and usage for the checkpoint metadata."""
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
            # As after a resume, rank 0 now holds the sample of all ranks, so
            # that resumed and uninterrupted runs are identical.
            trainer.load_state_dict(state["trainer"])

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        state, brain = torch.load(path, map_location="cpu"), self.brain
        if brain._eval_stage == "valid":  # In a fit
            brain.attach_trainer()
            if brain.codebook_trainer is not None and state["trainer"]:
                brain.codebook_trainer.load_state_dict(state["trainer"])
            elif state["trainer"]:
                raise ValueError(
                    "All quantizers were frozen after the checkpoint was saved, "
                    "so its optimizers do not fit. Start a new run from its "
                    "weights, or call quantizer.eval() in on_fit_batch_start() "
                    "instead."
                )
            # The sums are those of all ranks.
            sums = if_main_process()
            brain.monitor.load_state_dict(state["monitors"], True, sums)
            brain.monitor.load_state_dict(state["evaluation"], False, sums)
            return
        saved = state["trainer"].get("quantizers", {})
        for name, quantizer in brain.quantizers.items():
            if name in saved:  # It may have been frozen.
                quantizer.load_training_state(saved[name])


def _trainer_options(brain) -> dict:
    """Return the trainer options in a Brain's hparams, and the length of the
    run."""
    given = vars(getattr(brain, "hparams", None) or SimpleNamespace())
    for name in set(given) - set(TRAINER_OPTIONS):
        for option in get_close_matches(name, TRAINER_OPTIONS, 1, 0.9):
            logger.warning(f"{name} is not used. Did you mean {option}?")
    steps, total = run_length(brain)
    return {
        **{a: given[n] for n, a in TRAINER_OPTIONS.items() if n in given},
        "steps_per_epoch": steps,
        "total_steps": total or None,  # 0 in a run without epochs
    }


def run_length(brain) -> tuple[int | None, int | None]:
    """Return the number of optimizer steps per epoch and in the whole run, None
    if unknown."""
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
    """Return the length of a loader or epoch counter, infinity if unknown."""
    try:
        return getattr(sized, "limit", None) or len(sized)
    except TypeError:
        return math.inf


@contextlib.contextmanager
def _named_sizes(brain):
    """Turn out-of-memory errors into a MemoryError that states the sizes."""
    try:
        yield
    except RuntimeError as error:
        # Messages for CUDA, for the CPU, and for a worker killed by the system.
        words = r"out of memory|allocate memory|DataLoader worker \(pid"
        if not re.search(words, str(error)):
            raise
        hparams = getattr(brain, "hparams", None)
        sizes = [f"batch_size={getattr(hparams, 'batch_size', '?')}"]
        for name, quantizer in brain.quantizers.items():
            sizes.append(f"codebook_size of {name}={quantizer.codebook_size}")
        raise MemoryError(
            "Out of memory, or a worker was killed, in the step after "
            f"{brain.optimizer_step}. Use shorter items, or reduce "
            f"{', '.join(sizes)}. ({str(error).splitlines()[0]})"
        ) from error
