"""Kill training runs at random moments, and count those that resume inexactly.

To run it:
> python benchmarks/faults.py

Each run (two epochs of a small autoencoder, a checkpoint every three batches)
has its own process, is killed three times, and is restarted each time. It
survives if its final model, optimizer, trainer, statistics and random numbers
are bit-identical to those of an uninterrupted run. The last kind is a single
long run that gets all kills, at random moments of any kind.
"""

import argparse
import ast
import functools
import multiprocessing
import os
import random
import shlex
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import torch
from report import save, versions_line
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_vq import ReinitSchedule, VectorQuantizer
from speechbrain_vq.training.resume import AtomicCheckpointer
from tests.training import toy

# Maximum delay of the kill after the start of each event, in seconds.
MOMENTS = {
    "in a step": 0.005,
    "in a re-initialization": 0.005,
    "in a save": 0.02,
    "in the renaming of a checkpoint": 0.0003,
    "in the deletion of a checkpoint": 0.002,
    "while resuming": 0.02,
}
SIGNALS = {
    "kill -9 at any time": signal.SIGKILL,
    "SIGTERM at any time": signal.SIGTERM,
    "Ctrl-C at any time": signal.SIGINT,
}
DAMAGED = "newest checkpoint damaged"
JUMPS = "kill -9 at any time, clock jumping"
ONE = "one training, every kind of kill -9, clock jumping"
KINDS = [*MOMENTS, *SIGNALS, DAMAGED, JUMPS, ONE]
KILLS = 3
YEARS = 10 * 365 * 86400


class Killer:
    """Kill this process at a random time during the n-th event of a kind."""

    def __init__(self, kind: str | None, seed: int):
        self.kind, self.rng = kind, random.Random(seed)
        most = 1 if kind == "while resuming" else 6
        self.remaining = self.rng.randint(1, most)

    def __call__(self, event: str) -> None:
        """Count an event that is starting."""
        if event == self.kind:
            self.remaining -= 1
            if self.remaining == 0:
                delay = self.rng.uniform(0, MOMENTS[event])
                threading.Thread(target=self._kill, args=[delay]).start()

    def _kill(self, delay):
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)


def jump(seed: int) -> None:
    """Shift the clock of this process by up to ten years, by a new amount each
    time it is read."""
    rng, real = random.Random(seed), time.time
    time.time = lambda: real() + rng.uniform(-YEARS, YEARS)


def train(
    folder: Path,
    kind: str | None = None,
    seed: int = 0,
    epochs: int = 2,
    jumps: bool = False,
) -> None:
    """Train from the latest checkpoint to the end, or until killed, and write
    the hashes of the trained state."""
    if jumps:
        jump(seed)
    # Shells make background processes ignore Ctrl-C.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    killer = Killer(kind, seed)

    class Brain(toy.Toy):
        def on_fit_batch_start(self, batch, should_step):
            killer("in a step")

    class Quantizer(VectorQuantizer):
        def reinitialize(self, *args, **kwargs):
            killer("in a re-initialization")
            return super().reinitialize(*args, **kwargs)

    class Checkpoints(AtomicCheckpointer):
        def save_checkpoint(self, *args, **kwargs):
            killer("in a save")
            return super().save_checkpoint(*args, **kwargs)

        def recover_if_possible(self, *args, **kwargs):
            killer("while resuming")
            return super().recover_if_possible(*args, **kwargs)

    def audit(event, arguments):
        if event == "os.rename":
            killer("in the renaming of a checkpoint")
        if event == "shutil.rmtree" and "CKPT" in str(arguments[0]):
            killer("in the deletion of a checkpoint")

    sys.addaudithook(audit)
    torch.set_num_threads(1)
    torch.manual_seed(3)
    quantizer = Quantizer(toy.DIM, 8, reservoir_size=64)
    parts = toy.modules(quantizer, dropout=0.3)
    epochs = EpochCounter(epochs)
    brain = Brain(
        parts,
        toy.adam,
        {"reinit_schedule": ReinitSchedule(3, 2)},
        {"device": "cpu", "ckpt_interval_steps": 3},
        Checkpoints(
            folder / "save",
            {"model": torch.nn.ModuleDict(parts), "epochs": epochs},
        ),
    )
    data = [x for (batch,) in toy.batches(10, 4) for x in batch]
    brain.fit(
        epochs,
        data,
        data[:5],
        progressbar=False,
        train_loader_kwargs={"batch_size": 4, "shuffle": True},
        valid_loader_kwargs={"batch_size": 4},
    )
    (folder / "bits").write_text(repr(toy.bits(brain)))


@functools.cache
def processes():
    """Return a context whose fork server has imported the modules needed."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.training.toy"])
    return context


def start(
    folder: Path, after: float | None = None, by: int = 0, **options
) -> int:
    """Train in a new process, send it signal ``by`` after ``after`` seconds, and
    return its exit code."""
    process = processes().Process(target=train, args=[folder], kwargs=options)
    process.start()
    if after is not None:
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, by)
    process.join()
    return process.exitcode


def damage(folder: Path, rng: random.Random) -> None:
    """Truncate, change or remove a file of the newest of several checkpoints."""
    checkpoints = AtomicCheckpointer(folder / "save").find_checkpoints()
    if len(checkpoints) < 2:
        return
    path = rng.choice(sorted(checkpoints[0].path.iterdir()))
    content = bytearray(path.read_bytes())
    index = rng.randrange(len(content))
    kind = rng.randrange(3)
    if kind == 0:
        path.unlink()
    else:
        content[index] ^= 1 << rng.randrange(8)
        path.write_bytes(content[:index] if kind == 1 else content)


def count(kind: str, tries: int, seed: int = 0) -> tuple[int, int]:
    """Kill runs in one way, and count the kills that they survive.

    Arguments
    ---------
    kind : str
        One of ``KINDS``.
    tries : int
        Minimum number of kills.
    seed : int
        Random seed for the moments.

    Returns
    -------
    tuple
        Numbers of kills of runs that ended bit-identical to an uninterrupted
        one, and of runs that did not.
    """
    rng, kills_by_outcome = random.Random(f"{kind} {seed}"), {True: 0, False: 0}
    kills_each, options = KILLS, {"jumps": kind in (JUMPS, ONE)}
    if kind == ONE:
        # On average, a kill comes after 7 of the 10 batches in an epoch.
        kills_each = options["epochs"] = tries
    with tempfile.TemporaryDirectory() as scratch:
        reference = Path(scratch, "reference")
        start(reference, epochs=options.get("epochs", 2))
        begin = time.perf_counter()
        start(Path(scratch, "timed"))  # Without the start of the fork server.
        seconds = time.perf_counter() - begin
        expected = ast.literal_eval((reference / "bits").read_text())
        number = 0
        while sum(kills_by_outcome.values()) < tries:
            number += 1
            folder, kills = Path(scratch, str(number)), 0
            for _ in range(kills_each):
                event = rng.choice([*MOMENTS, None]) if kind == ONE else kind
                options["seed"] = rng.randrange(2**32)
                if event in MOMENTS:
                    code = start(folder, kind=event, **options)
                else:
                    by = SIGNALS.get(kind, signal.SIGKILL)
                    after = rng.uniform(0, seconds)
                    code = start(folder, after, by, **options)
                kills += code != 0
                if kind == DAMAGED:
                    damage(folder, rng)
            failed = start(folder, **options) != 0
            bits = "" if failed else (folder / "bits").read_text()
            survived = not failed and ast.literal_eval(bits) == expected
            kills_by_outcome[survived] += kills
            print(f"{kind}: {kills_by_outcome}", file=sys.stderr)
    return kills_by_outcome[True], kills_by_outcome[False]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tries", type=int, default=50, help="kills per kind")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    page = Path(__file__).with_suffix(".md")
    parser.add_argument("--out", type=Path, default=page, help="page to write")
    arguments = parser.parse_args()
    lines = [
        "# Killed training runs",
        "",
        f"`python {shlex.join(sys.argv)}`",
        "",
        f"{versions_line('speechbrain')} A run survives if it ends "
        "bit-identical to an uninterrupted one. Each is killed three times, "
        "except in the last line, where one run gets all kills.",
        "",
        "| kind | tries | survived | lost |",
        "|---|---|---|---|",
    ]
    for kind in arguments.kinds:
        survived, lost = count(kind, arguments.tries)
        lines.append(f"| {kind} | {survived + lost} | {survived} | {lost} |")
    print(save(arguments.out, lines))


if __name__ == "__main__":
    main()
