"""Exact resume for SpeechBrain: atomic checkpoints, random state, trainer."""

import logging
import os
import random
import shutil

import numpy as np
import torch
from speechbrain.core import Brain
from speechbrain.utils.checkpoints import (
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process
from speechbrain.utils.logger import get_logger

logger = get_logger(__name__)


class AtomicCheckpointer(Checkpointer):
    """A Checkpointer for any Brain, named in yaml as
    ``!new:speechbrain_vq.training.resume.AtomicCheckpointer``.

    It writes each checkpoint under a name that no reader looks at and renames
    it when it is complete: a run killed or a disk full while saving leaves the
    earlier ones as they were. It saves the random state too, adds to the meta
    what the ``checkpoint_meta()`` of a recoverable returns (a dict of numbers),
    and puts off a checkpoint between two optimizer steps, whose gradients would
    be lost, to the next. The arguments are those of SpeechBrain's ``Checkpointer``.

    Example
    -------
    >>> checkpointer = AtomicCheckpointer(getfixture("tmp_path"))
    >>> _ = checkpointer.save_checkpoint(name="best")
    >>> drawn = torch.rand(3)
    >>> _ = checkpointer.recover_if_possible()
    >>> torch.equal(torch.rand(3), drawn)
    True
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._interval = None
        if "random_state" not in self.recoverables:
            self.add_recoverable(
                "random_state", RandomState(), optional_load=True
            )

    def save_checkpoint(
        self, meta=None, end_of_epoch=True, name=None, verbosity=logging.INFO
    ):
        """Saves a checkpoint whole, or raises what a saver raised and leaves
        nothing behind. The arguments are SpeechBrain's; ``meta`` wins over
        what the recoverables add.

        Returns
        -------
        Checkpoint
            None on ranks other than 0, and where the checkpoint was put off.
        """
        if self._waits_for_step(end_of_epoch):
            return None
        added = {}
        for recoverable in self.recoverables.values():
            if hasattr(recoverable, "checkpoint_meta"):
                added.update(recoverable.checkpoint_meta())
        folder = self.checkpoints_dir
        partial = folder / ".partial"
        try:
            _remove_on_main(partial)  # What a killed run left.
            self.checkpoints_dir = partial
            # Level 0 is not logged: it would name the partial folder.
            saved = super().save_checkpoint(
                {**added, **(meta or {})}, end_of_epoch, name, logging.NOTSET
            )
            ddp_barrier()  # Some savers write on every rank.
            if saved is not None:
                saved = _move(saved, folder, numbered=name is None)
                logger.log(verbosity, f"Saved a checkpoint in {saved.path}")
        finally:
            self.checkpoints_dir = folder
            _remove_on_main(partial)
        ddp_barrier()  # No rank looks for it before it is in place.
        return saved

    def find_checkpoints(
        self,
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
        max_num_checkpoints=None,
    ):
        """As SpeechBrain's, but by ``max_key`` or ``min_key`` those of the
        warm-up come last: without quantization the loss is lower."""
        checkpoints = super().find_checkpoints(
            importance_key, max_key, min_key, ckpt_predicate
        )
        if max_key or min_key:
            checkpoints.sort(key=lambda c: bool(c.meta.get("vq_warmup")))
        return checkpoints[:max_num_checkpoints]

    def _waits_for_step(self, end_of_epoch):
        """Whether a checkpoint within the epoch has to wait for the next
        optimizer step: then SpeechBrain is to ask again after it."""
        brain = self.recoverables.get("brain")  # A Brain adds itself so.
        if not isinstance(brain, Brain):
            return False
        left = (
            0 if end_of_epoch else -brain.step % brain.grad_accumulation_factor
        )
        if self._interval is None:
            self._interval = brain.ckpt_interval_steps
        brain.ckpt_interval_steps = left or self._interval
        if not left:
            self._interval = None
        return left > 0


def _remove_on_main(folder):
    if if_main_process():
        shutil.rmtree(folder, ignore_errors=True)


def _move(saved, folder, numbered):
    target = folder / saved.path.name
    # From the partial folder, SpeechBrain sees no others of this second.
    base, number = saved.path.name.rsplit("+", 1)
    while numbered and target.exists():
        number = f"{int(number) + 1:0{len(number)}d}"
        target = folder / f"{base}+{number}"
    if target.exists():
        # Deleted from elsewhere, so that half of it is never found.
        os.replace(target, saved.path.parent / "replaced")
    os.replace(saved.path, target)
    files = {k: target / path.name for k, path in saved.paramfiles.items()}
    return saved._replace(path=target, paramfiles=files)


@register_checkpoint_hooks
class RandomState:
    """The states of the random generators, as a recoverable. They are those of
    rank 0; other ranks seed torch anew, or all would draw the same."""

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
        torch.save(state, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        if not if_main_process():
            seed = torch.initial_seed() + torch.distributed.get_rank()
            torch.manual_seed(seed % 2**63)
            return
        state = torch.load(path)
        torch.set_rng_state(state["torch"])
        # There may be fewer GPUs than when it was saved, or none.
        states = state.get("cuda", [])[: torch.cuda.device_count()]
        torch.cuda.set_rng_state_all(states)
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(tuple(state["numpy"]))


@register_checkpoint_hooks
class TrainerState:
    """The states of a VQ Brain's trainer and monitor, as a recoverable. It
    attaches the trainer before the optimizers, recoverables added later, are
    loaded."""

    def __init__(self, brain):
        self.brain = brain

    def join(self, checkpointer):
        """Have a checkpointer save the states, and quantizers that are in none
        of its recoverables."""
        saved = {
            part
            for module in checkpointer.recoverables.values()
            if isinstance(module, torch.nn.Module)
            for part in module.modules()
        }
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
            "trainer": trainer.state_dict() if trainer is not None else {},
            "monitors": monitor.state_dict(),
        }
        torch.save(state, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        state, brain = torch.load(path, map_location="cpu"), self.brain
        if brain._eval_stage == "valid":  # In a fit
            brain.attach_trainer()
            brain.codebook_trainer.load_state_dict(state["trainer"])
            if not end_of_epoch and if_main_process():
                brain.monitor.load_state_dict(state["monitors"])
            return
        quantizers = brain.quantizers
        for name, saved in state["trainer"].get("quantizers", {}).items():
            quantizers[name].load_training_state(saved)


def loader_generator() -> torch.Generator:
    """Return a generator for a DataLoader's ``generator=``, seeded as torch.

    Without one, a loader draws a base seed from the global generator at each
    epoch's start but not in its middle, where a resumed run starts.
    """
    return torch.Generator().manual_seed(torch.initial_seed() % 2**63)
