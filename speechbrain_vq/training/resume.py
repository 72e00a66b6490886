"""Exact resume for SpeechBrain, for any Brain: atomic checkpoints, random state,
loaders and signals."""

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

# In the meta of a checkpoint between an epoch's last step and its validation.
_TRAINED = "epoch_trained"


# On every rank, as each has its own.
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
class RandomState:
    """The states of the random generators of all ranks, as a recoverable. Ranks
    that were not there seed torch anew, or all would draw the same."""

    @mark_as_saver
    def _save(self, path):
        # Only what torch.load takes without unpickling code.
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
        # There may be fewer GPUs than when it was saved, or none.
        states = state["cuda"][: torch.cuda.device_count()]
        torch.cuda.set_rng_state_all(states)
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(tuple(state["numpy"]))


class AtomicCheckpointer(Checkpointer):
    """A Checkpointer for any Brain, named in yaml as
    ``!new:speechbrain_vq.training.resume.AtomicCheckpointer``.

    A checkpoint gets its name when it is complete: a run killed or a disk full
    while saving leaves the earlier ones as they were. By checksums in the meta,
    damaged ones are named at recovery and passed over. The random state is
    saved too, and in the meta what the ``checkpoint_meta()`` of a recoverable
    returns (a dict of numbers). A checkpoint between two optimizer steps, whose
    gradients would be lost, waits for the next. Arguments of class and methods
    are those of SpeechBrain's ``Checkpointer``.

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
        # What to do when the next checkpoint within an epoch is saved.
        self.stop = None
        # The Brain's ckpt_interval_steps, while a checkpoint waits.
        self._interval = None
        # By folder, what is wrong with a checkpoint; None: it is whole.
        self._faults = {}
        self.add_recoverable("random_state", RandomState(), optional_load=True)

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Save a checkpoint whole, or raise what a saver raised, an OSError
        where the disk is full, and leave nothing behind. ``meta`` wins over
        what recoverables add. Returns None on ranks other than 0, and where
        the checkpoint is put off."""
        # What is left of the gradients at an epoch's end, a Brain drops.
        if self._waits_for_step(end_of_epoch or _TRAINED in (meta or {})):
            return None
        last, now = self.find_checkpoint(), time.time()
        if last is not None:
            # SpeechBrain orders by it, and the clock may have been set back.
            now = max(now, math.nextafter(last.meta["unixtime"], math.inf))
        added = {"unixtime": now}
        for recoverable in self.recoverables.values():
            if hasattr(recoverable, "checkpoint_meta"):
                added.update(recoverable.checkpoint_meta())
        folder, path = self.checkpoints_dir, None
        partial = folder / ".partial"
        try:
            remove_on_main(partial)  # What a killed run left.
            self.checkpoints_dir = partial
            # Level 0 is not logged: it would name the partial folder.
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
        # No rank looks for it before it is in place, nor reads it anew.
        self._faults[ddp_broadcast(path)] = None
        if self.stop is not None and not end_of_epoch:
            self.stop()
        if end_of_epoch:
            # It would take the place of one of those to keep.
            super().delete_checkpoints(
                num_to_keep=0,
                ckpt_predicate=lambda c: _TRAINED in c.meta,
                verbosity=logging.DEBUG,
            )
        return saved

    def save_and_keep_only(self, *args, importance_keys=(), **options):
        """As SpeechBrain's, whose default list of keys has one more at each
        save, so that each takes longer than the one before."""
        keys = list(importance_keys)
        super().save_and_keep_only(*args, importance_keys=keys, **options)

    def list_checkpoints(self):
        """As SpeechBrain's, without those that are damaged, which a warning
        names. One of a format later than is read here raises ValueError."""
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
        """As SpeechBrain's, from a checkpoint that is whole; OSError where
        there are some, and all of them are damaged."""
        self._faults.clear()  # One that was whole may be damaged since.
        recovered = super().recover_if_possible(*args, **kwargs)
        if self._faults and None not in self._faults.values():
            raise OSError(
                f"No checkpoint in {self.checkpoints_dir} can be used. "
                + "; ".join(f"{k.name}: {v}" for k, v in self._faults.items())
                + ". Restore one of them, or remove them to start again."
            )
        return recovered

    def delete_checkpoints(self, **options):
        """As SpeechBrain's, and damaged ones where any may be deleted."""
        super().delete_checkpoints(**options)
        if options.get("ckpt_predicate") is None:
            for folder, fault in self._faults.items():
                if fault is not None:
                    remove_on_main(folder)

    def find_checkpoints(self, *, max_num_checkpoints=None, **options):
        """As SpeechBrain's, but by ``max_key`` or ``min_key`` those of the
        warm-up come last: without quantization the loss is lower."""
        checkpoints = super().find_checkpoints(**options)
        if options.get("max_key") or options.get("min_key"):
            checkpoints.sort(key=lambda c: bool(c.meta.get("vq_warmup")))
        return checkpoints[:max_num_checkpoints]

    def _waits_for_step(self, end_of_epoch):
        """Whether a checkpoint within the epoch has to wait for the next
        optimizer step: then SpeechBrain is to ask again after it."""
        brain = self.recoverables.get("brain")  # A Brain adds itself so.
        if not isinstance(brain, Brain):
            return False
        left = -brain.step % brain.grad_accumulation_factor
        left = 0 if end_of_epoch else left
        if self._interval is None:
            self._interval = brain.ckpt_interval_steps
        brain.ckpt_interval_steps = left or self._interval
        if not left:
            self._interval = None
        return left > 0


class GentleStop:
    """Has a SIGTERM or a Ctrl-C within a Brain's fit wait for the next optimizer
    step, after which a checkpoint is saved, or in a validation for the end of a
    batch: then the process exits with the code 143, or a KeyboardInterrupt is
    raised. A second Ctrl-C does not wait.
    It needs an ``AtomicCheckpointer`` and the main thread, and leaves handlers
    of others for these signals. Of several ranks one has to get it; in a
    validation it exits alone, and a launcher ends the others."""

    _USUAL = {
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGINT: signal.default_int_handler,
    }

    def __init__(self, brain: Brain, agrees: bool):
        self.brain, self.asked = brain, None
        self.saves = isinstance(brain.checkpointer, AtomicCheckpointer)
        # Whether ranks tell each other of a signal, and then call begin().
        self.agrees = agrees or world_size() == 1
        # Whether all that was trained is in a checkpoint.
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
        # Schedulers and torchrun may send a SIGTERM each.
        if number == signal.SIGINT:
            signal.signal(number, self._USUAL[number])
        if world_size() == 1:
            self.begin()

    def begin(self) -> None:
        """Ask for a checkpoint; on every rank, before the same step."""
        self.asked = self.asked or signal.SIGTERM
        self.brain.ckpt_interval_steps = 1  # SpeechBrain looks after a batch.
        self.brain.checkpointer.stop = self.end

    def end(self) -> None:
        """Exit, as asked to."""
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        logger.warning(
            "Stopped by SIGTERM; the same command goes on from here."
        )
        sys.exit(128 + self.asked)


class SavedEpoch(LoopedLoader):
    """The batches of a training epoch and a checkpoint after them, so that a
    signal does not wait for the end of the validation, which a resumed run
    makes anew. By its base a Brain takes it for a loader."""

    def __init__(self, loader, stop: GentleStop):
        self.loader, self.stop = loader, stop

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        stop, brain = self.stop, self.stop.brain
        stop.is_saved, first, batches = False, brain.step, iter(self.loader)
        # SpeechBrain would take a batch beyond the limit.
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
    """Return a generator for a DataLoader, seeded as torch. The global one gives
    a seed at each epoch's start but not in its middle, where a resumed run
    starts."""
    return torch.Generator().manual_seed(torch.initial_seed() % 2**63)


def outlive_signals(worker: int) -> None:
    """Leave the process group, which as a whole may get a SIGTERM or a Ctrl-C
    that the training waits with: a loader's ``worker_init_fn=``."""
    if hasattr(os, "setpgrp"):  # Not on Windows
        os.setpgrp()


class ResumeMixin:
    """Has a Brain with an ``AtomicCheckpointer`` follow a SIGTERM or a Ctrl-C by
    a checkpoint; see ``GentleStop``. Name it first among the bases; ``VQMixin``
    is one. With several ranks only a ``VQMixin`` does."""

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
        """Fit, as a Brain does."""
        options = train_loader_kwargs or {}, valid_loader_kwargs or {}
        with GentleStop(self, self._agrees) as self._stop:
            is_loader = isinstance(train_set, DataLoader | LoopedLoader)
            if not (is_loader or self.test_only):
                train_set = self.make_dataloader(
                    train_set, stage=Stage.TRAIN, **options[0]
                )
            self._loader = train_set
            if self._stop.saves and valid_set is not None:
                # One of another kind would be read again from its start.
                saved = self.checkpointer.recoverables.values()
                if any(loader is train_set for loader in saved):
                    train_set = SavedEpoch(train_set, self._stop)
            super().fit(
                epoch_counter, train_set, valid_set, progressbar, *options
            )

    def make_dataloader(self, dataset, stage, *args, **kwargs):
        """Make a loader, as a Brain does, with a generator of its own, from
        which a resumed run draws the same, and workers that outlive signals."""
        kwargs.setdefault("generator", loader_generator())
        kwargs.setdefault("worker_init_fn", outlive_signals)
        return super().make_dataloader(dataset, stage, *args, **kwargs)

    def update_average(self, loss, avg_loss):
        """Average losses, as a Brain does; in a validation, a signal is followed
        here."""
        stop = None if self.modules.training else self._stop
        if stop is not None and stop.asked is not None and stop.is_saved:
            stop.end()
        return super().update_average(loss, avg_loss)
