"""A run killed anywhere, and resumed, ends with the bits of one never stopped;
checkpoints are whole or not there."""

import ast
import random
import signal
import time

import pytest
from speechbrain.utils.checkpoints import Checkpointer

from tests.training import toy
from tests.training.processes import TIME_LIMIT, run, start
from tests.training.toy import batches, bits, make

pytestmark = pytest.mark.slow

# At least the three batches to the next checkpoint.
IN_STEPS = [{"lives": 5}, {"lives": 3}, {"lives": 6}]
IN_SAVES = [{"saves": 0}, {"saves": 1}, {"saves": 3}]


def trained(folder, kills=(), arm="gradient", **options):
    """The bits at the end of a training that is killed in these places."""
    for kill in kills:
        code = run(toy.train, str(folder), arm, **kill, **options)
        assert code == -signal.SIGKILL
        for checkpoint in Checkpointer(folder / "save").list_checkpoints():
            assert set(checkpoint.paramfiles) >= {"model", "brain", "zz_last"}
    assert run(toy.train, str(folder), arm, **options) == 0
    assert not (folder / "save" / ".partial").exists()
    return ast.literal_eval((folder / "bits").read_text())


@pytest.mark.parametrize(
    "kills, options",
    [
        *((IN_STEPS, {"arm": arm}) for arm in toy.ARMS),
        (IN_SAVES, {}),
        (IN_STEPS, {"factor": 2}),
        (IN_STEPS, {"valid": False}),
        (IN_STEPS, {"workers": 2}),
    ],
    ids=str,
)
def test_a_killed_run_ends_with_the_bits_of_one_never_stopped(
    tmp_path, kills, options
):
    whole = trained(tmp_path / "whole", **options)
    assert trained(tmp_path / "killed", kills, **options) == whole


def test_killed_from_outside_at_any_moment(tmp_path):
    draw, folder = random.Random(0), tmp_path / "killed"
    for _ in range(4):
        process = start(toy.train, str(folder), "gradient")
        time.sleep(draw.uniform(0.1, 0.7))
        process.kill()
        process.join(TIME_LIMIT)
        if (folder / "bits").exists():
            break
    assert trained(folder) == trained(tmp_path / "whole")


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


@pytest.mark.parametrize("limit", [0, 2000])
def test_full_disk_leaves_the_earlier_checkpoint(tmp_path, limit):
    assert run(toy.fill_disk, str(tmp_path), limit) == 0
    outcome = (tmp_path / "outcome").read_text()
    (earlier,) = Checkpointer(tmp_path / "save").list_checkpoints()
    assert "No checkpoint could be saved" in outcome
    assert "File too large" in outcome and earlier.path.name in outcome
    assert earlier.meta["loss"] == 1.0
    brain = make(folder=tmp_path / "save")
    brain.fit([], batches(1), progressbar=False)
    assert brain.optimizer_step == 6
    assert not (tmp_path / "save" / ".partial").exists()
