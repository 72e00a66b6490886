"""Exact resume of any Brain: checkpoints, random state, loaders and signals."""

import functools
import logging
import math
import os
import random
import signal
import sys
import threading
import time

import numpy as np
import torch
from speechbrain import Stage
from speechbrain.core import INTRA_EPOCH_CKPT_FLAG, Brain
from speechbrain.dataio.dataloader import LoopedLoader
from speechbrain.utils.checkpoints import (
    CKPT_PREFIX,
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import (
    ddp_barrier,
    ddp_broadcast,
    if_main_process,
)
from speechbrain.utils.logger import get_logger
from torch.utils.data import DataLoader

from speechbrain_vq.nnet.utils import gather_objects, rank, world_size
from speechbrain_vq.training.checkpoints import (
    DamagedError,
    move,
    probe,
    read,
    remove_on_main,
    seal,
)

logger = get_logger(__name__)

# Metadata key of checkpoints between the last step and validation of an epoch.
_TRAINED = "epoch_trained"


# Saved by all ranks, because each has its own state.
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class RandomState:
    """State of all ranks' random generators, as a recoverable. Ranks without a
    saved state seed torch by rank."""

    @mark_as_saver
    def _save(self, path):
        # In types that torch.load(weights_only=True) accepts.
        kind, keys, *rest = np.random.get_state()
        state = {
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state_all(),
            "python": random.getstate(),
            "numpy": (kind, keys.tolist(), *rest),
        }
        first, *others = gather_objects(state)
        if if_main_process():
            torch.save({**first, "others": others}, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        state = torch.load(path)
        states = [state, *state["others"]]
        if rank() >= len(states):
            torch.manual_seed((torch.initial_seed() + rank()) % 2**63)
            return
        state = states[rank()]
        torch.set_rng_state(state["torch"])
        # There may be fewer GPUs than when the state was saved.
        states = state["cuda"][: torch.cuda.device_count()]
        torch.cuda.set_rng_state_all(states)
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(tuple(state["numpy"]))


class AtomicCheckpointer(Checkpointer):
    """Checkpointer for any Brain that saves atomically and verifies checksums.
    In yaml: ``!new:speechbrain_vq.training.resume.AtomicCheckpointer``.

    A checkpoint gets its name once it is complete, so earlier ones survive a
    kill while saving, or a full disk. Damaged checkpoints are detected by
    checksums and skipped with a warning. Random states are saved, too, and the
    metadata includes the dict of numbers that a recoverable's
    ``checkpoint_meta()`` returns. A checkpoint during gradient accumulation is
    delayed until the next step, or gradients would be lost. The class and its
    methods take the arguments of SpeechBrain's ``Checkpointer``.

    Example
    -------
    >>> import torch
    >>> checkpointer = AtomicCheckpointer(getfixture("tmp_path"))
    >>> _ = checkpointer.save_checkpoint(name="best")
    >>> drawn = torch.rand(3)
    >>> _ = checkpointer.recover_if_possible()
    >>> torch.equal(torch.rand(3), drawn)
    True
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        # Function to call after the next checkpoint within an epoch.
        self.stop = None
        # The Brain's ckpt_interval_steps while a checkpoint is delayed.
        self._interval = None
        # Description of the damage by folder; None if intact.
        self._faults = {}
        self.add_recoverable("random_state", RandomState(), optional_load=True)

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Save a complete checkpoint, or nothing. Raises OSError if it cannot
        be written, or the error of a saver. ``meta`` overrides the metadata of
        recoverables. Returns None if the checkpoint is delayed, and on ranks
        other than 0."""
        # At the end of an epoch, a Brain drops accumulated gradients.
        if self._waits_for_step(end_of_epoch or _TRAINED in (meta or {})):
            return None
        last, now = self.find_checkpoint(), time.time()
        if last is not None:
            # Checkpoints are ordered by time, and the clock may be set back.
            now = max(now, math.nextafter(last.meta["unixtime"], math.inf))
        added = {"unixtime": now}
        for recoverable in self.recoverables.values():
            if hasattr(recoverable, "checkpoint_meta"):
                added.update(recoverable.checkpoint_meta())
        folder, path = self.checkpoints_dir, None
        partial = folder / ".partial"
        try:
            remove_on_main(partial)  # A killed run may have left it.
            self.checkpoints_dir = partial
            # Not logged, because the message would show the partial folder.
            saved = super().save_checkpoint(
                {**added, **(meta or {})}, end_of_epoch, name, logging.NOTSET
            )
            ddp_barrier()  # Some savers write on every rank.
            if saved is not None:
                saved = move(seal(saved), folder, numbered=name is None)
                path = saved.path
                logger.log(verbosity, f"Saved a checkpoint in {path}")
        except (OSError, RuntimeError) as error:
            fault = error if isinstance(error, OSError) else probe(partial)
            if fault is None:
                raise
            raise OSError(
                f"No checkpoint could be saved in {folder}: {fault}. "
                + (f"The last one is {last.path.name}." if last else "")
            ) from error
        finally:
            self.checkpoints_dir = folder
            remove_on_main(partial)
        # Wait on all ranks until it is in place; it needs no verification.
        self._faults[ddp_broadcast(path)] = None
        if self.stop is not None and not end_of_epoch:
            self.stop()
        if end_of_epoch:
            # Pre-validation checkpoints would count as checkpoints to keep.
            super().delete_checkpoints(
                num_to_keep=0,
                ckpt_predicate=lambda c: _TRAINED in c.meta,
                verbosity=logging.DEBUG,
            )
        return saved

    def save_and_keep_only(
        self,
        meta=None,
        end_of_epoch=True,
        name=None,
        num_to_keep=1,
        keep_recent=True,
        importance_keys=(),
        *args,
        **options,
    ):
        """Save as SpeechBrain does, but with a new list of keys per call:
        SpeechBrain appends to its default list, so calls get ever slower."""
        given = meta or {}, end_of_epoch, name, num_to_keep, keep_recent
        super().save_and_keep_only(
            *given, list(importance_keys), *args, **options
        )

    def list_checkpoints(self):
        """Return all intact checkpoints; warn about damaged ones. Raises
        ValueError for a checkpoint in a later format."""
        checkpoints = []
        for folder in sorted(self.checkpoints_dir.glob(f"{CKPT_PREFIX}*/")):
            if self._faults.get(folder) is not None:
                continue
            try:
                checkpoints.append(read(folder, folder not in self._faults))
                self._faults[folder] = None
            except DamagedError as damage:
                logger.warning(f"{folder} is not used: {damage}.")
                self._faults[folder] = str(damage)
        return checkpoints

    def recover_if_possible(self, *args, **kwargs):
        """Recover as SpeechBrain does, but only from an intact checkpoint.
        Raises OSError if all checkpoints are damaged."""
        self._faults.clear()  # So that all are verified again.
        recovered = super().recover_if_possible(*args, **kwargs)
        if self._faults and None not in self._faults.values():
            raise OSError(
                f"No checkpoint in {self.checkpoints_dir} can be used. "
                + "; ".join(f"{k.name}: {v}" for k, v in self._faults.items())
                + ". Restore one of them, or remove them to start over."
            )
        return recovered

    def delete_checkpoints(self, **options):
        """Delete as SpeechBrain does; without a predicate, delete damaged
        checkpoints, too."""
        super().delete_checkpoints(**options)
        if options.get("ckpt_predicate") is None:
            for folder, fault in self._faults.items():
                if fault is not None:
                    remove_on_main(folder)

    def find_checkpoints(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
        max_num_checkpoints=None,
    ):
        """Find as SpeechBrain does, but with ``max_key`` or ``min_key``, leave
        out warm-up checkpoints if there are later ones: losses are lower
        without quantization, and averages would mix in random codewords."""
        options = importance_key, max_key, min_key, ckpt_predicate
        checkpoints = super().find_checkpoints(*options)
        if max_key or min_key:
            later = [c for c in checkpoints if not c.meta.get("vq_warmup")]
            checkpoints = later or checkpoints
        return checkpoints[:max_num_checkpoints]

    def _waits_for_step(self, end_of_epoch):
        """Return whether a checkpoint within an epoch must wait for the next
        optimizer step. If so, make SpeechBrain save again at that step."""
        brain = self.recoverables.get("brain")  # A Brain adds itself.
        if not isinstance(brain, Brain):
            return False
        batches = -brain.step % brain.grad_accumulation_factor
        batches = 0 if end_of_epoch else batches
        if self._interval is None:
            self._interval = brain.ckpt_interval_steps
        brain.ckpt_interval_steps = batches or self._interval
        if not batches:
            self._interval = None
        return batches > 0


class GentleStop:
    """Context manager for a Brain's fit that defers SIGTERM and Ctrl-C until a
    checkpoint has been saved after the next optimizer step, or, in validation,
    until the end of a batch. Then SIGTERM exits with code 143, and Ctrl-C
    raises KeyboardInterrupt. A second Ctrl-C is not deferred.

    Requires an ``AtomicCheckpointer`` and the main thread; custom handlers are
    not replaced. With several ranks, it is enough that one gets the signal. In
    validation, that rank exits alone and the launcher stops the others."""

    _USUAL = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }

    def __init__(self, brain: Brain, agrees: bool):
        self.brain, self.asked = brain, None
        self.saves = isinstance(brain.checkpointer, AtomicCheckpointer)
        # Whether ranks exchange signals and then call begin().
        self.agrees = agrees or world_size() == 1
        # Whether a checkpoint has been saved after the last step.
        self.is_saved = False
        self._interval = brain.ckpt_interval_steps

    def __enter__(self):
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and self.saves and self.agrees:
            for number, usual in self._USUAL.items():
                if signal.getsignal(number) is usual:
                    signal.signal(number, self._ask)
        return self

    def __exit__(self, kind, error, traceback):
        for number, usual in self._USUAL.items():
            if signal.getsignal(number) == self._ask:
                signal.signal(number, usual)
        if self.asked is not None:
            self.brain.ckpt_interval_steps = self._interval
            self.brain.checkpointer.stop = None
            if error is None:
                self.end()

    def _ask(self, number, frame):
        self.asked = number
        # A second SIGTERM stays deferred: scheduler and torchrun may send one
        # each.
        if number == signal.SIGINT:
            signal.signal(number, self._USUAL[number])
        if world_size() == 1:
            self.begin()

    def begin(self) -> None:
        """Request a checkpoint; called by all ranks before the same step."""
        self.asked = self.asked or signal.SIGTERM
        self.brain.ckpt_interval_steps = 1  # Checked after each batch
        self.brain.checkpointer.stop = self.end

    def end(self) -> None:
        """Exit as the received signal requires."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        logger.warning(
            "Stopped by SIGTERM; run the same command again to resume."
        )
        sys.exit(128 + self.asked)


class SavedEpoch(LoopedLoader):
    """Loader that saves a checkpoint after the last batch of a training epoch,
    so that a signal need not wait for the end of validation; a resumed run
    repeats the validation. A Brain accepts subclasses of ``LoopedLoader``."""

    def __init__(self, loader, stop: GentleStop):
        self.loader, self.stop = loader, stop

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        stop, brain = self.stop, self.stop.brain
        stop.is_saved, first, batches = False, brain.step, iter(self.loader)
        # SpeechBrain would fetch one more batch than the limit.
        limit = brain.optimizer_step_limit or math.inf
        while brain.optimizer_step < limit:
            try:
                yield next(batches)
            except StopIteration:
                break
        if brain.step > first:
            brain.checkpointer.save_and_keep_only(
                meta={INTRA_EPOCH_CKPT_FLAG: True, _TRAINED: True},
                end_of_epoch=False,
                ckpt_predicate=lambda c: INTRA_EPOCH_CKPT_FLAG in c.meta,
                verbosity=logging.DEBUG,
            )
        stop.is_saved = True


def loader_generator() -> torch.Generator:
    """Return a generator for a DataLoader, seeded like torch. With the global
    generator, a run resumed within an epoch would draw one more seed."""
    return torch.Generator().manual_seed(torch.initial_seed() % 2**63)


def outlive_signals(worker: int) -> None:
    """Leave the process group, as the ``worker_init_fn`` of a loader: a signal
    to the group, which training defers, must not kill the workers."""
    if hasattr(os, "setpgrp"):  # Not on Windows
        os.setpgrp()


class ResumeMixin:
    """Mixin that saves a checkpoint on SIGTERM or Ctrl-C, see ``GentleStop``,
    for a Brain with an ``AtomicCheckpointer``. It must be the first base class.
    Only its subclass ``VQMixin`` works with several ranks."""

    # The handler of signals during a fit.
    _agrees, _stop = False, None

    def fit(
        self,
        epoch_counter,
        train_set,
        valid_set=None,
        progressbar=None,
        train_loader_kwargs=None,
        valid_loader_kwargs=None,
    ):
        """Fit as a Brain does."""
        options = train_loader_kwargs or {}, valid_loader_kwargs or {}
        if self._stop is not None:  # Within a fit, as in MetricGAN's recipe
            return super().fit(
                epoch_counter, train_set, valid_set, progressbar, *options
            )
        try:
            with GentleStop(self, self._agrees) as self._stop:
                is_loader = isinstance(train_set, DataLoader | LoopedLoader)
                if not (is_loader or self.test_only):
                    train_set = self.make_dataloader(
                        train_set, stage=Stage.TRAIN, **options[0]
                    )
                self._loader = train_set
                if self._stop.saves and valid_set is not None:
                    # A loader that is not saved would start over on a resume.
                    saved = self.checkpointer.recoverables.values()
                    if any(loader is train_set for loader in saved):
                        train_set = SavedEpoch(train_set, self._stop)
                epochs = self._epochs_left(epoch_counter)
                super().fit(epochs, train_set, valid_set, progressbar, *options)
        finally:
            self._stop = None

    def _epochs_left(self, epoch_counter):
        """Yield epochs until the optimizer step limit. SpeechBrain would start
        another one, without a step, when a finished run is run again."""
        for epoch in epoch_counter:
            finished = self.optimizer_step >= (
                self.optimizer_step_limit or math.inf
            )
            if finished and self.step == 0:  # No validation is pending.
                return
            yield epoch

    def make_dataloader(self, dataset, stage, *args, **kwargs):
        """Make a loader as a Brain does, but with its own generator, for exact
        resume, and workers that ignore signals to the process group."""
        kwargs.setdefault("generator", loader_generator())
        kwargs.setdefault("worker_init_fn", outlive_signals)
        return super().make_dataloader(dataset, stage, *args, **kwargs)

    def update_average(self, loss, avg_loss):
        """Average losses as a Brain does; in validation, exit on a signal."""
        stop = None if self.modules.training else self._stop
        if stop is not None and stop.asked is not None and stop.is_saved:
            stop.end()
        return super().update_average(loss, avg_loss)
