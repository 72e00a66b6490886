"""Checkpoints that are whole or not there, and from which a run goes on with
the same bits.

Authors
 * speechbrain_vq authors 2026
"""

import functools
import os
import pathlib
import random
import shutil
from collections.abc import Callable

import numpy as np
import torch
from speechbrain.utils.checkpoints import (
    Checkpoint,
    Checkpointer,
    mark_as_loader,
    mark_as_saver,
    register_checkpoint_hooks,
)
from speechbrain.utils.distributed import ddp_barrier, if_main_process

PARTIAL = ".partial"
# In the meta: whether the model did not quantize yet.
WARMUP = "vq_warmup"


def save_whole(
    checkpointer: Checkpointer, extra_meta: Callable[[], dict[str, float]]
) -> None:
    """Makes a checkpointer write each checkpoint beside the others under a
    name that no reader looks at, and rename it when it is complete.

    As SpeechBrain leaves it, a run killed or a disk full while saving leaves a
    folder that counts as the newest checkpoint and cannot be loaded.

    Arguments
    ---------
    checkpointer : Checkpointer
        The checkpointer to change, in place.
    extra_meta : callable
        Gives numbers to add to every checkpoint's meta.
    """
    if hasattr(checkpointer.save_checkpoint, "__wrapped__"):
        return
    save = checkpointer.save_checkpoint

    @functools.wraps(save)
    def save_checkpoint(meta=None, **kwargs):
        final = pathlib.Path(checkpointer.checkpoints_dir)
        partial = final / PARTIAL
        meta = {**extra_meta(), **(meta or {})}
        checkpointer.checkpoints_dir = partial
        try:
            saved = save(meta=meta, **kwargs)
        except BaseException:
            if if_main_process():
                shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            checkpointer.checkpoints_dir = final
        if saved is not None:
            saved = _move(saved, final)
        # No rank may look for the checkpoint before it is in place.
        ddp_barrier()
        return saved

    checkpointer.save_checkpoint = save_checkpoint


def rank_warmup_last(checkpointer: Checkpointer) -> None:
    """Makes a checkpointer rank checkpoints of the warm-up behind all others
    where it is asked for the best: a model that does not quantize yet has the
    lower loss, and neither evaluation nor the choice of what to keep may fall
    for it. The most recent checkpoint is the most recent all the same.

    Arguments
    ---------
    checkpointer : Checkpointer
        The checkpointer to change, in place.
    """
    if hasattr(checkpointer.find_checkpoints, "__wrapped__"):
        return
    find = checkpointer.find_checkpoints

    @functools.wraps(find)
    def find_checkpoints(
        importance_key=None,
        max_key=None,
        min_key=None,
        ckpt_predicate=None,
        max_num_checkpoints=None,
    ):
        found = find(importance_key, max_key, min_key, ckpt_predicate)
        if max_key or min_key:
            found = sorted(found, key=lambda c: c.meta.get(WARMUP, False))
        return found[:max_num_checkpoints]

    checkpointer.find_checkpoints = find_checkpoints


def _move(saved: Checkpoint, folder: pathlib.Path) -> Checkpoint:
    # SpeechBrain numbers the checkpoints of one second by what is there,
    # and from the partial folder it sees none of them.
    base, number = saved.path.name.rsplit("+", 1)
    target = folder / saved.path.name
    while target.exists() and number.isdigit():
        number = f"{int(number) + 1:0{len(number)}d}"
        target = folder / f"{base}+{number}"
    shutil.rmtree(target, ignore_errors=True)
    os.replace(saved.path, target)
    shutil.rmtree(saved.path.parent, ignore_errors=True)
    files = {k: target / path.name for k, path in saved.paramfiles.items()}
    return Checkpoint(target, saved.meta, files)


@register_checkpoint_hooks
class RandomState:
    """The states of the random generators, as a recoverable."""

    @mark_as_saver
    def _save(self, path):
        state = {"torch": torch.get_rng_state()}
        if torch.cuda.is_available():
            state["cuda"] = torch.cuda.get_rng_state_all()
        version, words, gauss = random.getstate()
        kind, keys, position, has_gauss, cached = np.random.get_state()
        # Only what torch.load takes without unpickling code.
        state["python"] = [version, list(words), gauss]
        state["numpy"] = [kind, keys.tolist(), position, has_gauss, cached]
        torch.save(state, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        state = torch.load(path)
        torch.set_rng_state(state["torch"])
        if "cuda" in state and torch.cuda.is_available():
            torch.cuda.set_rng_state_all(state["cuda"])
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        np.random.set_state(tuple(state["numpy"]))


@register_checkpoint_hooks
class MonitorState:
    """The monitors' sums of the stage that runs, as a recoverable.

    Arguments
    ---------
    monitors : dict
        ``UsageMonitor`` by name.
    """

    def __init__(self, monitors: dict):
        self.monitors = monitors

    @mark_as_saver
    def _save(self, path):
        torch.save({k: m.state_dict() for k, m in self.monitors.items()}, path)

    @mark_as_loader
    def _load(self, path, end_of_epoch):
        if not end_of_epoch:
            state = torch.load(path)
            for name, monitor in self.monitors.items():
                monitor.load_state_dict(state[name])
