"""A run killed anywhere, and resumed, ends with the bits of one never stopped;
checkpoints are whole or not there.
"""

import ast
import multiprocessing
import pathlib
import random
import signal
import time

import pytest
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_vq import ReinitSchedule
from tests.training import toy
from tests.training.toy import batches, bits, make, modules

pytestmark = pytest.mark.slow

TIME_LIMIT = 300  # Of what never ends.


@pytest.fixture(scope="module")
def processes():
    """Real processes, from a server that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.toy"])
    return context


def run(processes, target, *args, **kwargs):
    """Runs a function in a process of its own; its exit code."""
    process = processes.Process(target=target, args=args, kwargs=kwargs)
    process.start()
    process.join(TIME_LIMIT)
    assert process.exitcode is not None, "The process hangs."
    return process.exitcode


def result(folder):
    """What a run wrote at its end."""
    return ast.literal_eval((pathlib.Path(folder) / "bits").read_text())


def never_stopped(processes, tmp_path_factory, arm, **options):
    """The bits of a run that nobody kills."""
    folder = tmp_path_factory.mktemp(arm)
    assert run(processes, toy.train, str(folder), arm, **options) == 0
    return result(folder)


@pytest.mark.parametrize("arm", toy.ARMS)
def test_killed_run_ends_with_the_same_bits(
    processes, tmp_path_factory, tmp_path, arm
):
    wanted = never_stopped(processes, tmp_path_factory, arm)
    draw = random.Random(arm)
    for _ in range(3):
        # At least the three batches to the next checkpoint.
        lives = draw.randint(3, 6)
        code = run(processes, toy.train, str(tmp_path), arm, lives=lives)
        assert code == -signal.SIGKILL
    assert run(processes, toy.train, str(tmp_path), arm) == 0
    assert result(tmp_path) == wanted


@pytest.mark.parametrize(
    "options",
    [{"factor": 2}, {"valid": False}, {"workers": 2}],
    ids=["accumulate", "no valid", "workers"],
)
def test_other_ways_to_train_resume_as_exactly(
    processes, tmp_path_factory, tmp_path, options
):
    wanted = never_stopped(processes, tmp_path_factory, "gradient", **options)
    for lives in (5, 8):
        code = run(
            processes,
            toy.train,
            str(tmp_path),
            "gradient",
            lives=lives,
            **options,
        )
        assert code == -signal.SIGKILL
    assert run(processes, toy.train, str(tmp_path), "gradient", **options) == 0
    assert result(tmp_path) == wanted


@pytest.mark.parametrize("saves", [0, 1, 3])
def test_half_a_checkpoint_is_never_loaded(
    processes, tmp_path_factory, tmp_path, saves
):
    wanted = never_stopped(processes, tmp_path_factory, "gradient")
    code = run(processes, toy.train, str(tmp_path), "gradient", saves=saves)
    assert code == -signal.SIGKILL
    for checkpoint in Checkpointer(tmp_path / "save").list_checkpoints():
        assert set(checkpoint.paramfiles) >= {"model", "brain", "zz_last"}
    assert run(processes, toy.train, str(tmp_path), "gradient") == 0
    assert result(tmp_path) == wanted
    assert not (tmp_path / "save" / ".partial").exists()


def test_killed_from_outside_at_any_moment(
    processes, tmp_path_factory, tmp_path
):
    wanted = never_stopped(processes, tmp_path_factory, "gradient")
    draw = random.Random(0)
    for _ in range(4):
        process = processes.Process(
            target=toy.train, args=(str(tmp_path), "gradient")
        )
        process.start()
        time.sleep(draw.uniform(0.1, 0.7))
        process.kill()
        process.join(TIME_LIMIT)
        if (tmp_path / "bits").exists():
            break
    assert run(processes, toy.train, str(tmp_path), "gradient") == 0
    assert result(tmp_path) == wanted


def test_state_saved_on_a_gpu_is_loaded_without_one(tmp_path, monkeypatch):
    brain = make(folder=tmp_path / "save")
    brain.fit(range(1), batches(2), progressbar=False)
    state = brain.checkpointer.recoverables["codebook_trainer"]
    before = bits(brain)
    with monkeypatch.context() as patch:
        serialization = toy.torch.serialization
        patch.setattr(serialization, "location_tag", lambda _: "cuda:0")
        state._save(tmp_path / "state")
    for end_of_epoch in (True, False):
        state._load(tmp_path / "state", end_of_epoch)
    assert bits(brain) == before


# A disk that is full -------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 2000])
def test_full_disk_leaves_the_earlier_checkpoint(processes, tmp_path, limit):
    assert run(processes, toy.fill_disk, str(tmp_path), limit) == 0
    told = (tmp_path / "outcome").read_text()
    found = Checkpointer(tmp_path / "save").list_checkpoints()
    assert "No checkpoint could be saved" in told and "File too large" in told
    assert f"The last one is {found[0].path.name}." in told
    assert [c.meta["loss"] for c in found] == [1.0]
    brain = make(folder=tmp_path / "save")
    brain.fit([], batches(1), progressbar=False)
    assert brain.optimizer_step == 6
    assert not (tmp_path / "save" / ".partial").exists()


def test_two_fits_are_one_in_two_parts(tmp_path):
    brains = []
    for parts in ([[1, 2, 3, 4]], [[1, 2], [3, 4]]):
        folder = tmp_path / str(len(parts))
        toy.torch.manual_seed(3)
        for epochs in parts:
            brain = make(
                parts=modules(dropout=0.3),
                folder=folder,
                reinit_schedule=ReinitSchedule(2, 3),
            )
            brain.fit(epochs, batches(3), batches(1), progressbar=False)
        brains.append(bits(brain))
    assert brains[0] == brains[1]
