"""What is damaged is named and never used, and what stops a run loses nothing
of it: real files, processes and signals."""

import contextlib
import hashlib
import logging
import os
import random
import re
import signal
import time

import pytest
import torch
import yaml
from speechbrain import Stage
from speechbrain.utils.checkpoints import Checkpointer, average_checkpoints

from speechbrain_vq import CodebookTrainer, ReinitSchedule, VectorQuantizer
from speechbrain_vq.publish import Run
from speechbrain_vq.training.resume import AtomicCheckpointer, ResumeMixin
from speechbrain_vq.training.waiting import reported_waits
from tests.training import toy
from tests.training.processes import RANK_OPTIONS, run, run_ranks
from tests.training.test_checkpointer import make_model
from tests.training.test_resume import trained
from tests.training.toy import batches, digest, make, modules

# Damaged checkpoints -------------------------------------------------------


def flip(path, position=None, bit=0):
    """Turn one bit over."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2 if position is None else position] ^= 1 << bit
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "a bit flipped": flip,
    "missing": lambda path: path.unlink(),
    "other text": lambda path: path.write_text("unixtime: soon\n"),
}


def save(folder, *values):
    """Checkpoints of models of these values, and what it takes to load one."""
    model = make_model()
    checkpointer = AtomicCheckpointer(folder, {"model": model})
    saved = []
    for value in values:
        torch.nn.init.constant_(model.weight, value)
        saved.append(checkpointer.save_checkpoint({"loss": value}))
    return saved


def recovered(folder):
    """The value that a new process would go on from."""
    model = make_model()
    AtomicCheckpointer(folder, {"model": model}).recover_if_possible()
    return model.weight.item()


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("file", ["model", "random_state", "CKPT"])
def test_the_last_whole_checkpoint_is_taken(tmp_path, caplog, file, kind):
    *_, newest = save(tmp_path, 1, 2, 3)
    (path,) = newest.path.glob(f"{file}.*")
    DAMAGE[kind](path)
    assert recovered(tmp_path) == 2
    (told,) = (m for m in caplog.messages if "is not used" in m)
    assert newest.path.name in told and path.name in told


def test_a_damaged_one_is_neither_averaged_nor_kept(tmp_path):
    saved = save(tmp_path, 1, 2, 3)
    flip(saved[1].path / "model.ckpt")
    checkpointer = AtomicCheckpointer(tmp_path, {"model": make_model(5)})
    found = checkpointer.find_checkpoints(max_num_checkpoints=2)
    assert average_checkpoints(found, "model")["weight"].item() == 2
    checkpointer.save_and_keep_only(min_keys=["loss"])
    assert not saved[1].path.exists() and len(list(tmp_path.iterdir())) == 2


def test_a_damaged_checkpoint_is_not_exported(tmp_path):
    saved = save(tmp_path / "save", 1, 2)
    (tmp_path / "hyperparams.yaml").write_text("save_folder: save")
    flip(saved[1].path / "model.ckpt")
    assert Run.open(tmp_path).latest == saved[0]


def test_no_bit_of_a_checkpoint_can_turn_unseen(tmp_path):
    draw = random.Random(0)
    (saved,) = save(tmp_path, 3)
    for path in saved.path.iterdir():
        content = path.read_bytes()
        places = range(len(content))
        if path.name != "CKPT.yaml":
            places = draw.choices(places, k=30)
        for place in places:
            flip(path, place, draw.randrange(8))
            with pytest.raises(OSError, match=path.name):
                recovered(tmp_path)
            path.write_bytes(content)
    assert recovered(tmp_path) == 3


def test_a_run_never_starts_over_beside_damaged_checkpoints(tmp_path):
    saved = save(tmp_path, 1, 2)
    (saved[0].path / "CKPT.yaml").unlink()
    flip(saved[1].path / "model.ckpt")
    brain = make(folder=tmp_path)
    with pytest.raises(OSError) as told:
        brain.fit(range(1), batches(1), progressbar=False)
    error = str(told.value)
    assert re.search("No checkpoint in .* can be used", error)
    assert "CKPT.yaml is missing" in error
    assert all(checkpoint.path.name in error for checkpoint in saved)
    assert brain.optimizer_step == 0


def test_a_later_format_is_refused_by_name(tmp_path):
    (saved,) = save(tmp_path, 1)
    assert saved.meta["speechbrain_vq"]["format"] == 1
    meta = {**saved.meta, "speechbrain_vq": {"format": 2, "version": "9.1"}}
    text = yaml.dump(meta)
    own = hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
    (saved.path / "CKPT.yaml").write_text(f"{text}# {own}\n")
    with pytest.raises(ValueError, match="speechbrain_vq 9.1, in format 2"):
        recovered(tmp_path)


# Signals -------------------------------------------------------------------


SIGNALS = pytest.mark.parametrize(
    "by, code", [(signal.SIGTERM, 143), (signal.SIGINT, 1)]
)
RUNS = pytest.mark.parametrize(
    "options",
    [{}]
    + [{"interval": 0, **more} for more in ({}, {"factor": 2}, {"workers": 2})],
    ids=["saves", "saves only at the end of epochs", "accumulates", "workers"],
)


@pytest.mark.slow
@SIGNALS
@RUNS
def test_a_signal_is_followed_by_a_checkpoint(tmp_path, by, code, options):
    folder = tmp_path / "stopped"
    for lives in (0, 4, 5):
        before, stop = progress(folder), {"lives": lives, "by": by}
        got = run(toy.train, str(folder), "gradient", **stop, **options)
        assert got == code
        # All of its batches but those of a step that is not complete.
        assert progress(folder) - before >= lives + 1
    assert trained(folder, **options) == trained(tmp_path / "whole", **options)


@pytest.mark.slow
@SIGNALS
@RUNS
def test_a_signal_in_a_validation_does_not_wait_for_its_end(
    tmp_path, by, code, options
):
    folder = tmp_path / "stopped"
    # In the first and the last of the two batches of a validation.
    for lives, epochs in (0, 1), (0, 1), (2, 2), (1, 2):
        stop = {"lives": lives, "by": by, "stage": Stage.VALID}
        got = run(toy.train, str(folder), "gradient", **stop, **options)
        assert got == code and progress(folder) == 7 * epochs
        log = folder / "log"
        lines = log.read_text().splitlines() if log.exists() else []
        assert len(lines) == epochs - 1
    assert trained(folder, **options) == trained(tmp_path / "whole", **options)
    assert log.read_text() == (tmp_path / "whole" / "log").read_text()


def progress(folder):
    """Training batches up to the latest checkpoint: seven an epoch."""
    found = Checkpointer(folder / "save").find_checkpoint()
    if found is None:
        return 0
    brain = yaml.safe_load((found.path / "brain.ckpt").read_text())
    epoch = int((found.path / "counter.ckpt").read_text())
    return 7 * (epoch - (not found.meta["end-of-epoch"])) + brain["step"]


class Stopping:
    """Sends itself a SIGTERM in a batch of a stage."""

    stop = None

    def compute_forward(self, batch, stage):
        if self.stop == (stage, self.step):
            os.kill(os.getpid(), signal.SIGTERM)
        return super().compute_forward(batch, stage)


class Stopped(Stopping, toy.Toy):
    """Has a quantizer."""


class Plain(Stopping, ResumeMixin, toy.AutoEncoder):
    """Has none."""

    def compute_objectives(self, output, batch, stage):
        decoded = self.modules.decoder(output)
        return torch.nn.functional.mse_loss(decoded, batch)


def train_plain(folder, stop=None):
    """Train for two epochs of four batches, and write the bits."""
    torch.manual_seed(3)
    parts = modules(torch.nn.Identity(), dropout=0.3)
    brain = make(Plain, parts, folder=folder / "save")
    epochs = toy.EpochCounter(2)
    brain.checkpointer.add_recoverable("counter", epochs)
    brain.stop = stop
    data = [x for (batch,) in batches(4, 4) for x in batch]
    brain.fit(
        *(epochs, data, data[:5], False),
        train_loader_kwargs={"batch_size": 4, "shuffle": True},
        valid_loader_kwargs={"batch_size": 4},
    )
    torch.save(digest(brain.modules.state_dict()), folder / "bits")


@pytest.mark.slow
def test_any_brain_follows_a_signal(tmp_path):
    for stop in (Stage.TRAIN, 2), (Stage.VALID, 1), (Stage.TRAIN, 3):
        assert run(train_plain, tmp_path / "stopped", stop) == 143
    bits = []
    for folder in tmp_path / "stopped", tmp_path / "whole":
        assert run(train_plain, folder) == 0
        bits.append(torch.load(folder / "bits"))
    assert bits[0] == bits[1]


def test_a_signal_of_another_owner_stays_with_it():
    got = []
    before = signal.signal(signal.SIGTERM, lambda *_: got.append(True))
    try:
        brain = make()
        brain.on_fit_batch_start = lambda *_: os.kill(os.getpid(), 15)
        brain.fit(range(1), batches(2), progressbar=False)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert got == [True, True] and brain.optimizer_step == 2
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


# Several ranks -------------------------------------------------------------


CAPACITY, ROUNDS = 100, 100


def collector():
    """A trainer of one quantizer of numbers, and its reservoir."""
    quantizer = VectorQuantizer(1, 8, reservoir_size=CAPACITY)
    optimizer = torch.optim.SGD(quantizer.parameters(), 0.1)
    return CodebookTrainer(quantizer, optimizer), quantizer.reservoir


def numbers(first, number):
    return torch.arange(first, first + number).view(-1, 1).float()


def collect(rank, folder):
    """The first rank sees 1000 numbers, the second 2900 and in each round
    one more; save what they keep, and in the end what of 30 and of 50."""
    trainer, reservoir = collector()
    states = []
    for number in range(2 * ROUNDS):
        part = [(0, 1000), (1000, 2900 + number)][rank]
        if number >= ROUNDS:
            part = [(0, 30), (30, 50)][rank]
        torch.manual_seed(2 * number + rank)
        reservoir.reset()
        reservoir.add(numbers(*part))
        states.append(trainer.state_dict(over_ranks=True))
    if rank == 0:
        torch.save(states, folder / "states")


def go_on(rank, folder):
    """Each rank sees 500 more, and a sample is drawn."""
    trainer, reservoir = collector()
    states, samples = torch.load(folder / "states"), []
    for number, state in enumerate(states):
        torch.manual_seed(7 * number + rank)
        trainer.load_state_dict(state)
        if number < ROUNDS:
            reservoir.add(numbers(4000 + 500 * rank, 500))
        samples.append(reservoir.gather(seed=number).flatten())
    if rank == 0:
        torch.save(samples, folder / "samples")


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """What two ranks saved."""
    folder = tmp_path_factory.mktemp("collected")
    assert run_ranks(2, collect, folder) == [0, 0]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_the_sample_is_uniform_after_a_resume_with_other_ranks(
    collected, ranks
):
    assert run_ranks(ranks, go_on, collected) == [0] * ranks
    states = torch.load(collected / "states")
    kept = [s["quantizers"]["quantizer"]["reservoir"] for s in states]
    samples = torch.load(collected / "samples")
    counts = [int(k["count"]) for k in kept]
    assert counts == [*range(3900, 3900 + ROUNDS), *[80] * ROUNDS]
    for sample in samples[:ROUNDS]:
        assert len(sample.unique()) == len(sample) == CAPACITY
    expected = 0
    for first in counts[:ROUNDS]:
        seen = torch.cat([numbers(0, first), numbers(4000, 500 * ranks)])
        shares = seen.flatten().long().div(500, rounding_mode="floor")
        expected += CAPACITY * shares.bincount() / len(seen)
    found = torch.cat(samples[:ROUNDS]).long() // 500
    # The 99.9th percentile of chi-square with 10 degrees of freedom.
    chi_square = (found.bincount() - expected).square() / expected
    assert chi_square.sum() < 29.6
    for sample in samples[ROUNDS:]:  # Nothing is lost where all fits.
        assert torch.equal(sample.sort().values, torch.arange(80.0))


def train_rank(rank, folder, stops, epochs, batches_of, valid=None):
    """Train, and stop where it is said for the rank; note bits and counts."""
    torch.manual_seed(rank)
    brain = make(
        Stopped,
        folder=folder / "save",
        run=RANK_OPTIONS,
        reinit_schedule=ReinitSchedule(1, 3),
    )
    counter = toy.EpochCounter(epochs)
    brain.checkpointer.add_recoverable("epochs", counter)
    brain.stop = stops.get(rank)
    valid = valid and batches(valid)
    brain.fit(counter, batches(batches_of), valid, progressbar=False)
    found = toy.bits(brain), brain.vq_stats["train"]
    torch.save(found, folder / f"rank{rank}")


def results(folder):
    return [torch.load(folder / f"rank{rank}") for rank in range(2)]


@pytest.mark.slow
def test_ranks_stop_together_and_count_what_all_saw(tmp_path):
    # The second rank, in the third of its eight batches.
    stops = {1: (Stage.TRAIN, 3)}
    assert run_ranks(2, train_rank, tmp_path, stops, 1, 16) == [143, 143]
    (saved,) = AtomicCheckpointer(tmp_path / "save").list_checkpoints()
    state = torch.load(saved.paramfiles["codebook_trainer"])
    reservoir = state["trainer"]["quantizers"]["quantizer"]["reservoir"]
    assert int(reservoir["count"]) > 0
    assert run_ranks(2, train_rank, tmp_path, {}, 1, 16) == [0, 0]
    for _, stats in results(tmp_path):
        # The first step of a rank is the warm-up.
        assert stats["vectors"] == 2 * 7 * 30


@pytest.mark.slow
@pytest.mark.parametrize("stopped", [{0, 1}, {1}], ids=["all", "one"])
def test_ranks_stopped_in_a_validation_go_on_with_the_same_bits(
    tmp_path, stopped
):
    stops = dict.fromkeys(stopped, (Stage.VALID, 1))
    codes = run_ranks(2, train_rank, tmp_path / "parts", stops, 2, 8, 2)
    # One that has lost its company fails; torchrun would end it.
    assert codes[1] == 143 and (codes[0] == 143) == (0 in stopped)
    assert codes[0] != 0
    bits = []
    for folder in tmp_path / "parts", tmp_path / "whole":
        assert run_ranks(2, train_rank, folder, {}, 2, 8, 2) == [0, 0]
        bits.append([found for found, _ in results(folder)])
    assert bits[0] == bits[1]


class Slow(toy.Toy):
    """The second rank takes its time before its third batch."""

    def on_fit_batch_start(self, batch, should_step):
        if self.step == 3 and os.environ["RANK"] == "1":
            time.sleep(4)


def wait(rank, folder):
    """Train with a slow rank, and note the log of this one."""
    logging.basicConfig(filename=folder / f"log{rank}")
    brain = make(Slow, run=RANK_OPTIONS)
    with reported_waits(lambda: brain.step, seconds=1):
        brain.fit([1], batches(16), progressbar=False)


@pytest.mark.slow
def test_a_rank_that_waits_says_at_what(tmp_path):
    assert run_ranks(2, wait, tmp_path) == [0, 0]
    told = (tmp_path / "log0").read_text()
    assert "Rank 0 has waited for the others for 1 s, in " in told
    # Where they meet first in a step: DDP compares buffers in the forward.
    assert "called by compute_forward, " in told and "toy.py line" in told
    assert "Rank 1 has waited" not in (tmp_path / "log1").read_text()


# Batches that teach nothing ------------------------------------------------


class Padded(toy.Toy):
    """Takes batches of vectors and lengths."""

    def compute_forward(self, batch, stage):
        x, lengths = batch
        return self.modules.quantizer(self.modules.encoder(x), lengths)


def padded(*empty, number=6):
    """Batches of which some are padding only."""
    data = [
        (x, torch.full([len(x)], float(index not in empty)))
        for index, (x,) in enumerate(batches(number))
    ]
    return torch.utils.data.DataLoader(data, batch_size=None)


@pytest.mark.parametrize("factor", [1, 2])
def test_a_batch_without_a_valid_frame_is_skipped_and_told(caplog, factor):
    brain = make(Padded, run={"grad_accumulation_factor": factor})
    brain.fit(range(2), padded(1), padded(0, number=2), progressbar=False)
    assert brain.optimizer_step == 2 * (6 // factor - 1)
    for words in "the step is skipped", "evaluation batch is ignored":
        told = [m for m in caplog.messages if words in m]
        assert len(told) == 2 and "an all-padding batch" in told[0]
    assert brain.vq_stats["valid"]["vectors"] == 30
    brain.evaluate(padded(0, number=2), progressbar=False)
    assert brain.vq_stats["test"]["vectors"] == 30


def pad(rank, folder):
    """Train on four batches a rank, of which the second has a padded one."""
    logging.basicConfig(filename=folder / f"log{rank}")
    brain = make(Padded, run=RANK_OPTIONS)
    # Not a data set, of which each rank would be given a part.
    brain.fit([1], padded(*[2] * rank, number=4), progressbar=False)
    torch.save(toy.bits(brain), folder / f"bits{rank}")


@pytest.mark.slow
def test_a_rank_with_a_batch_of_padding_is_told(tmp_path):
    assert run_ranks(2, pad, tmp_path) == [0, 0]
    log = (tmp_path / "log0").read_text()
    told = "After step 2, 1 of 2 ranks had an all-padding batch"
    assert log.count("all-padding batch") == log.count(told) == 1
    first, second = (torch.load(tmp_path / f"bits{n}") for n in range(2))
    assert first["modules"] == second["modules"] and first["steps"] == 4


def test_a_run_that_takes_no_step_stops_and_says_why(caplog):
    caplog.set_level(logging.ERROR)
    nothing = padded(*range(300), number=300)
    brain = make(Padded)
    with pytest.raises(ValueError, match="last 200 steps .*nothing is learned"):
        brain.fit(range(9), nothing, progressbar=False)
    with pytest.raises(ValueError, match="last 2 steps .* NaN in recordings"):
        sick = [(torch.nan * x,) for (x,) in batches(2)]
        make().fit(range(9), sick, progressbar=False)


class Greedy(toy.Toy):
    """Needs more memory than there is."""

    def compute_forward(self, batch, stage):
        torch.empty(2**50)
        return super().compute_forward(batch, stage)


def test_out_of_memory_names_the_sizes():
    with pytest.raises(MemoryError, match="step after 0") as told:
        make(Greedy, batch_size=7).fit([1], batches(1), progressbar=False)
    assert "batch_size=7, codebook_size of quantizer=8" in str(told.value)


class Deadly(torch.utils.data.IterableDataset):
    """Ends its process, as the system does where memory runs out."""

    def __iter__(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_worker_that_was_killed_ends_the_run_with_the_sizes():
    loader = torch.utils.data.DataLoader(
        Deadly(), num_workers=1, multiprocessing_context="fork"
    )
    with pytest.raises(MemoryError, match="batch_size=7, .*DataLoader worker"):
        make(batch_size=7).fit([1], loader, progressbar=False)


# Figures -------------------------------------------------------------------


def test_a_complete_run_that_starts_again_has_its_statistics(tmp_path):
    stats = []
    for _ in range(2):
        brain, epochs = make(folder=tmp_path), toy.EpochCounter(2)
        brain.checkpointer.add_recoverable("epochs", epochs)
        brain.fit(epochs, batches(3), batches(2), progressbar=False)
        stats.append(brain.vq_stats)
    assert stats[0] == stats[1] and stats[1]["valid"]["vectors"] == 60


def test_a_scaler_does_not_step_on_a_loss_that_is_not_finite():
    """An all-padding batch has a NaN loss, but finite gradients."""
    seen = []

    class NoLoss(toy.Toy):
        def compute_objectives(self, output, batch, stage):
            loss = super().compute_objectives(output, batch, stage)
            return loss + torch.nan if self.step == 3 else loss

        def on_fit_batch_end(self, batch, outputs, loss, should_step):
            weights = digest(list(self.modules.parameters()))
            seen.append((self.optimizer_step, weights))

    brain = make(NoLoss)
    brain.scaler = torch.amp.GradScaler("cpu")
    brain.fit(range(1), batches(5), progressbar=False)
    assert [step for step, _ in seen] == [1, 2, 2, 3, 4]
    assert seen[1] == seen[2] and brain.codebook_trainer.steps == 4


def test_a_run_that_has_reached_its_steps_is_left_as_it_is(tmp_path):
    """Its epochs do not end before."""
    newest, validated = [], []

    class Killed(toy.Toy):
        def on_stage_end(self, stage, loss, epoch=None):
            if stage == Stage.VALID and self.optimizer_step == 5:
                validated.append(len(newest))
                if not newest:
                    raise KeyboardInterrupt
            super().on_stage_end(stage, loss, epoch)

    for _ in range(4):
        brain, epochs = make(Killed, folder=tmp_path), toy.EpochCounter(100)
        brain.optimizer_step_limit = 5
        brain.checkpointer.add_recoverable("epochs", epochs)
        with contextlib.suppress(KeyboardInterrupt):
            brain.fit(epochs, batches(3), batches(2), progressbar=False)
        assert brain.optimizer_step == 5
        assert brain.vq_stats["train"]["vectors"] > 0
        newest.append(brain.checkpointer.find_checkpoint().path)
    assert validated == [0, 1] and newest[1] == newest[2] == newest[3]
