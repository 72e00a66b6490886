"""Checkpoints of any Brain are whole or not there, and a run goes on from them
as if it had never stopped."""

import contextlib
import errno
import inspect
import os
import random
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from speechbrain import Brain
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_vq.training import resume
from speechbrain_vq.training.resume import AtomicCheckpointer, loader_generator
from tests.training.processes import run, run_ranks
from tests.training.toy import Recoverable, batches, digest, make


def make_model(value=0.0):
    """A model of which one number is all that matters."""
    model = torch.nn.Linear(1, 1)
    torch.nn.init.constant_(model.weight, value)
    return model


def disk_full(path):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(path):
    raise KeyboardInterrupt


# Whole or not there --------------------------------------------------------


@pytest.mark.parametrize("name", [None, "best", "epoch+3"])
@pytest.mark.parametrize(
    "then, error", [(disk_full, OSError), (interrupt, KeyboardInterrupt)]
)
def test_failed_saving_raises_and_leaves_nothing(tmp_path, then, error, name):
    last, model = Recoverable(), make_model()
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model, "last": last})
    earlier = checkpointer.save_checkpoint({"loss": 1.0}, name=name)
    last.then = then
    for _ in range(2):
        with pytest.raises(error) as told:
            checkpointer.save_checkpoint({"loss": 0.5}, name=name)
        assert error is not OSError or earlier.path.name in str(told.value)
        assert checkpointer.find_checkpoints() == [earlier]
        assert list(tmp_path.iterdir()) == [earlier.path]
    last.then = None
    newest = checkpointer.save_checkpoint({"loss": 0.2}, name=name)
    if name is None:
        assert checkpointer.find_checkpoints() == [newest, earlier]
    else:
        assert checkpointer.find_checkpoints() == [newest]
        assert newest.path == tmp_path / f"CKPT+{name}"


def save_and_die(folder, name):
    """Saves a model of 1, then dies when it saves one of 2."""
    model, last = make_model(1.0), Recoverable()
    checkpointer = AtomicCheckpointer(folder, {"model": model, "last": last})
    checkpointer.save_checkpoint(name=name)
    torch.nn.init.constant_(model.weight, 2.0)
    last.then = lambda path: os.kill(os.getpid(), signal.SIGKILL)
    checkpointer.save_checkpoint(name=name)


@pytest.mark.parametrize("name", [None, "best"])
def test_kill_leaves_the_earlier_checkpoint(tmp_path, name):
    assert run(save_and_die, tmp_path, name) == -signal.SIGKILL
    for cls in (AtomicCheckpointer, Checkpointer):
        model = make_model()
        checkpointer = cls(tmp_path, {"model": model, "last": Recoverable()})
        assert len(checkpointer.list_checkpoints()) == 1
        checkpointer.recover_if_possible()
        assert model.weight.item() == 1.0
    # What the killed run left does not get into what the next one saves.
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    saved = checkpointer.save_checkpoint(name=name)
    files = {path.name for path in saved.path.iterdir()}
    assert files == {"CKPT.yaml", "model.ckpt", "random_state.ckpt"}
    assert all(path.name.startswith("CKPT+") for path in tmp_path.iterdir())


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="Linux only")
def test_a_checkpoint_is_on_the_disk_before_older_ones_are_deleted(
    tmp_path, monkeypatch
):
    """A loss of power, which no process can cause, leaves one of them."""
    events = []

    def note(module, name):
        real = getattr(module, name)

        def call(path, *args, **kwargs):
            is_open = isinstance(path, int)
            link = f"/proc/self/fd/{path}"
            events.append((name, str(os.readlink(link) if is_open else path)))
            return real(path, *args, **kwargs)

        monkeypatch.setattr(module, name, call)

    note(os, "fsync"), note(os, "replace"), note(shutil, "rmtree")
    checkpointer = AtomicCheckpointer(tmp_path, {"model": make_model()})
    first = checkpointer.save_checkpoint(name="a")
    events.clear()
    checkpointer.save_and_keep_only(name="b", num_to_keep=1)
    partial = str(tmp_path / ".partial" / "CKPT+b")
    moved = events.index(("replace", partial))
    deleted = events.index(("rmtree", str(first.path)))
    for name in os.listdir(tmp_path / "CKPT+b"):
        assert ("fsync", f"{partial}/{name}") in events[:moved]
    assert ("fsync", partial) in events[:moved]
    assert ("fsync", str(tmp_path)) in events[moved:deleted]


@pytest.mark.parametrize(
    "hours", [[0] * 12, [0, -2, -1], [0, 9e5, 0], [0, 0, -1e5, 3]]
)
def test_the_newest_is_the_last_saved_whatever_the_clock_did(
    tmp_path, monkeypatch, hours
):
    now, model = time.time(), make_model()
    for number, off in enumerate(hours):
        monkeypatch.setattr("time.time", lambda t=now + 3600 * off: t)
        torch.nn.init.constant_(model.weight, number)
        # A new process each time.
        checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
        checkpointer.save_checkpoint({"number": number})
        found = checkpointer.find_checkpoints()
        assert [c.meta["number"] for c in found] == [*range(number, -1, -1)]
        for checkpoint in found:
            checkpointer.load_checkpoint(checkpoint)
            assert model.weight.item() == checkpoint.meta["number"]
    checkpointer.delete_checkpoints(num_to_keep=2)
    assert checkpointer.find_checkpoints() == found[:2]


def test_the_thousandth_save_looks_no_more_than_the_first(tmp_path):
    looks = []

    class Counting(AtomicCheckpointer):
        def list_checkpoints(self):
            looks[-1] += 1
            return super().list_checkpoints()

    checkpointer = Counting(tmp_path)
    for _ in range(5):
        looks.append(0)
        checkpointer.save_and_keep_only()
    assert len(set(looks)) == 1
    # Nor is what is recent kept where that is not asked for.
    checkpointer.save_and_keep_only({"loss": 1.0}, min_keys=["loss"])
    options = {"min_keys": ["loss"], "keep_recent": False}
    checkpointer.save_and_keep_only({"loss": 2.0}, **options)
    assert [c.meta.get("loss") for c in checkpointer.list_checkpoints()] == [1]


def test_arguments_are_those_of_speechbrain():
    for name, ours in vars(AtomicCheckpointer).items():
        theirs = getattr(Checkpointer, name, None)
        if name.startswith("_") or not callable(theirs):
            continue
        ours, theirs = (inspect.signature(f).parameters for f in (ours, theirs))
        for one, other in zip(ours.values(), theirs.values(), strict=False):
            variadic = (one.VAR_POSITIONAL, one.VAR_KEYWORD)
            assert one.kind in variadic or one.name == other.name, name


def test_loads_what_a_plain_checkpointer_saved(tmp_path):
    Checkpointer(tmp_path, {"model": make_model(3.0)}).save_checkpoint()
    model = make_model()
    checkpointer = AtomicCheckpointer(tmp_path, {"model": model})
    before = torch.get_rng_state()
    with pytest.warns(UserWarning, match="random_state"):
        checkpointer.recover_if_possible()
    assert model.weight.item() == 3.0
    assert torch.equal(torch.get_rng_state(), before)


# The meta ------------------------------------------------------------------


def test_recoverables_add_to_the_meta(tmp_path):
    steps = Recoverable(steps=1, loss=9.0)
    recoverables = {"steps": steps, "codebook": Recoverable(vq_warmup=True)}
    checkpointer = AtomicCheckpointer(tmp_path, recoverables)
    first = checkpointer.save_checkpoint({"loss": 1.0}).meta
    steps.meta["steps"] = 2
    newest = checkpointer.save_checkpoint().meta
    assert (first["steps"], first["loss"], first["vq_warmup"]) == (1, 1.0, True)
    assert (newest["steps"], newest["loss"]) == (2, 9.0)


def test_warmup_is_not_ranked_if_there_is_more(tmp_path):
    checkpointer = AtomicCheckpointer(tmp_path, {"model": make_model()})

    def values(**which):
        return [c.meta["value"] for c in checkpointer.find_checkpoints(**which)]

    for warmup, value in [(True, 3), (True, 5), (False, 4), (None, 2)]:
        meta = {} if warmup is None else {"vq_warmup": warmup}
        checkpointer.save_checkpoint({"value": value, **meta})
        if value == 5:
            assert values(max_key="value") == [5, 3]
    checkpointer.save_checkpoint({"value": 1, "vq_warmup": True})
    assert values(max_key="value") == [4, 2]
    assert values(min_key="value") == [2, 4]
    assert values(min_key="value", max_num_checkpoints=1) == [2]
    assert values() == [1, 2, 4, 5, 3]
    assert values(max_num_checkpoints=2) == [1, 2]
    found = values(importance_key=lambda c: c.meta["value"])
    assert found == [5, 4, 3, 2, 1]
    keys = {"min_keys": ["value"], "max_keys": ["value"]}
    checkpointer.delete_checkpoints(num_to_keep=1, **keys)
    assert values() == [1, 2, 4]


# Random numbers ------------------------------------------------------------


def draws():
    """Numbers of each generator; two of numpy's and Python's normal, which
    remember the second of each pair."""
    devices = ["cpu", "cuda"][: 1 + torch.cuda.is_available()]
    torchs = [torch.randn(3, device=device).tolist() for device in devices]
    numpys = [np.random.rand(), np.random.randn()]
    return torchs, numpys, random.random(), random.gauss(0, 1)


def test_draws_after_loading_are_those_after_saving(tmp_path):
    checkpointer = AtomicCheckpointer(tmp_path, {"model": make_model()})
    draws()  # A number of each pair is left.
    checkpointer.save_checkpoint()
    wanted = [draws() for _ in range(3)]
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    checkpointer = AtomicCheckpointer(tmp_path, {"model": make_model()})
    checkpointer.recover_if_possible()
    assert [draws() for _ in range(3)] == wanted


def test_loader_draws_nothing_from_the_global_generator():
    def loader(**options):
        return torch.utils.data.DataLoader(range(4), **options)

    before = torch.get_rng_state()
    list(loader(generator=loader_generator(), shuffle=True))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(7)
    first = loader_generator()
    torch.rand(3)  # The seed counts, not what was drawn since.
    assert torch.equal(first.get_state(), loader_generator().get_state())


# Runs of a Brain -----------------------------------------------------------


class Stopped(Brain):
    """Draws random numbers, and stops before a batch."""

    stop = None

    def compute_forward(self, batch, stage):
        if self.step == self.stop:
            raise KeyboardInterrupt
        return self.modules.model(batch[0])

    def compute_objectives(self, predictions, batch, stage):
        return predictions.square().mean()


def fit(folder, factor, stop=None, **interval):
    """A Brain trained on 15 batches."""
    torch.manual_seed(5)
    run = {"grad_accumulation_factor": factor, **interval}
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Dropout(0.5))
    brain = make(Stopped, {"model": model}, folder=folder, run=run)
    brain.stop = stop
    loader = {"generator": loader_generator(), "shuffle": True}
    options = {"progressbar": False, "train_loader_kwargs": loader}
    with contextlib.suppress(KeyboardInterrupt):
        brain.fit([1], batches(15), **options)
    return brain


@pytest.mark.parametrize("factor", [1, 2, 3])
@pytest.mark.parametrize(
    "steps, interval",
    [(3, {"ckpt_interval_steps": 3}), (1, {"ckpt_interval_minutes": 1e-9})],
)
def test_a_stopped_run_has_the_same_bits(tmp_path, factor, steps, interval):
    whole = fit(tmp_path / "whole", factor, **interval)
    # What is due within an accumulation waits for the step.
    period = -(-steps // factor) * factor
    for stop in (5, 8, 13):
        stopped = fit(tmp_path / "parts", factor, stop, **interval)
        stopped.checkpointer.recover_if_possible()
        assert stopped.step == (stop - 1) // period * period
    parts = fit(tmp_path / "parts", factor, **interval)
    assert parts.optimizer_step == whole.optimizer_step == 15 // factor
    bits = (digest(brain.modules.state_dict()) for brain in (parts, whole))
    assert len(set(bits)) == 1


def test_a_checkpoint_at_the_end_of_an_epoch_waits_for_no_step(tmp_path):
    """SpeechBrain drops what was accumulated there."""
    brain = fit(tmp_path, factor=2, ckpt_interval_steps=3)
    brain.step = 3
    assert brain.checkpointer.save_checkpoint(end_of_epoch=False) is None
    assert brain.checkpointer.save_checkpoint() is not None
    assert brain.ckpt_interval_steps == 3


# Several ranks -------------------------------------------------------------


def save_on_rank(rank, folder):
    """Saves where rank 0 is slow, and looks for the checkpoint at once."""
    torch.manual_seed(rank)
    slow = Recoverable(lambda path: time.sleep(0.5))
    recoverables = {"slow": slow, "model": make_model()}
    checkpointer = AtomicCheckpointer(folder, recoverables)
    for number in (1, 2):
        saved = checkpointer.save_checkpoint({"number": number})
        assert (saved is None) == (rank != 0)
        found = checkpointer.find_checkpoints()
        assert [c.meta["number"] for c in found] == [2, 1][-number:]
    drawn = torch.rand(2)
    checkpointer.recover_if_possible()
    again = torch.rand(2)
    assert torch.equal(drawn, again)
    ranks = [torch.empty(2) for _ in range(2)]
    torch.distributed.all_gather(ranks, again)
    assert not torch.equal(*ranks)
    # Of a run with one rank, the second does not draw what the first does.
    state = torch.load(found[0].paramfiles["random_state"])
    state["others"] = []
    torch.save(state, folder / f"random{rank}")
    torch.manual_seed(0)
    resume.RandomState()._load(folder / f"random{rank}", end_of_epoch=False)
    again = torch.rand(2)
    assert torch.equal(drawn, again) == (rank == 0)
    torch.distributed.all_gather(ranks, again)
    assert not torch.equal(*ranks)


def test_every_rank_waits_and_draws_its_own(tmp_path):
    assert run_ranks(2, save_on_rank, tmp_path) == [0, 0]
