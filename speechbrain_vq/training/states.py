"""Recoverables for checkpoints: random state, and the states of a trainer."""

import functools
import random

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import if_main_process

from speechbrain_vq.nnet.utils import gather_objects, rank, world_size


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
        states = [state, *state.get("others", [])]
        if rank() >= len(states):
            torch.manual_seed((torch.initial_seed() + rank()) % 2**63)
            return
        state = states[rank()]
        torch.set_rng_state(state["torch"])
        # There may be fewer GPUs than when it was saved, or none.
        states = state.get("cuda", [])[: torch.cuda.device_count()]
        torch.cuda.set_rng_state_all(states)
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(tuple(state["numpy"]))


# On every rank, as what ranks have collected is gathered.
@functools.partial(register_checkpoint_hooks, save_on_main_only=False)
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
                evaluation = state.get("evaluation", {})
                brain.monitor.load_state_dict(evaluation, training=False)
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
