"""Kill trainings at random moments, and count those that lose something.

To run it:
> python benchmarks/faults.py

Each training (two epochs of a small autoencoder, a checkpoint every three
batches) is killed three times in its own process, and started again each time.
It survives if it ends with the bits of a training that nobody stopped: model,
optimizer, trainer, statistics and random numbers. The last training is longer,
and killed at any of these moments as often as those of a kind together.
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

# By what is going on, the longest time from its beginning to the kill, in
# seconds.
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
    """Kills its process at a random time in what is going on."""

    def __init__(self, kind: str | None, seed: int):
        self.kind, self.draw = kind, random.Random(seed)
        self.left = self.draw.randint(1, 1 if kind == "while resuming" else 6)

    def __call__(self, going_on: str) -> None:
        """Note that something begins."""
        if going_on == self.kind:
            self.left -= 1
            if self.left == 0:
                delay = self.draw.uniform(0, MOMENTS[going_on])
                threading.Thread(target=self._kill, args=[delay]).start()

    def _kill(self, delay):
        time.sleep(delay)
        os.kill(os.getpid(), signal.SIGKILL)


def jump(seed: int) -> None:
    """Have the clock of this process up to ten years off, by another amount
    each time that it is read."""
    draw, real = random.Random(seed), time.time
    time.time = lambda: real() + draw.uniform(-YEARS, YEARS)


def train(
    folder: Path,
    kind: str | None = None,
    seed: int = 0,
    epochs: int = 2,
    jumps: bool = False,
) -> None:
    """Train to the end, or until killed, from the latest checkpoint, and write
    the hashes of all that was trained."""
    if jumps:
        jump(seed)
    # In the background, a shell has Ctrl-C ignored.
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

    def note(event, arguments):
        if event == "os.rename":
            killer("in the renaming of a checkpoint")
        if event == "shutil.rmtree" and "CKPT" in str(arguments[0]):
            killer("in the deletion of a checkpoint")

    sys.addaudithook(note)
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
    """Make processes of a server that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "tests.training.toy"])
    return context


def start(
    folder: Path, after: float | None = None, by: int = 0, **options
) -> int:
    """Train in a process, send it a signal after some seconds, and return its
    exit code."""
    process = processes().Process(target=train, args=[folder], kwargs=options)
    process.start()
    if after is not None:
        process.join(after)
        if process.is_alive():
            os.kill(process.pid, by)
    process.join()
    return process.exitcode


def damage(folder: Path, draw: random.Random) -> None:
    """Truncate, change or remove a file of the newest checkpoint of several."""
    found = AtomicCheckpointer(folder / "save").find_checkpoints()
    if len(found) < 2:
        return
    path = draw.choice(sorted(found[0].path.iterdir()))
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    kind = draw.randrange(3)
    if kind == 0:
        path.unlink()
    else:
        content[place] ^= 1 << draw.randrange(8)
        path.write_bytes(content[:place] if kind == 1 else content)


def count(kind: str, tries: int, seed: int = 0) -> tuple[int, int]:
    """Kill trainings in one way.

    Arguments
    ---------
    kind : str
        One of ``KINDS``.
    tries : int
        Kills, at least.
    seed : int
        Seed of the moments.

    Returns
    -------
    tuple
        The numbers of kills after which a training did and did not end with
        the bits of one never stopped.
    """
    draw, found = random.Random(f"{kind} {seed}"), {True: 0, False: 0}
    kills_each, options = KILLS, {"jumps": kind in (JUMPS, ONE)}
    if kind == ONE:
        # A kill comes after 7 of its 10 batches on average.
        kills_each = options["epochs"] = tries
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place, "whole")
        start(whole, epochs=options.get("epochs", 2))
        begin = time.perf_counter()
        start(Path(place, "again"))  # The server of processes is up by now.
        seconds = time.perf_counter() - begin
        wanted = ast.literal_eval((whole / "bits").read_text())
        number = 0
        while sum(found.values()) < tries:
            number += 1
            folder, kills = Path(place, str(number)), 0
            for _ in range(kills_each):
                way = draw.choice([*MOMENTS, None]) if kind == ONE else kind
                options["seed"] = draw.randrange(2**32)
                if way in MOMENTS:
                    code = start(folder, kind=way, **options)
                else:
                    by = SIGNALS.get(kind, signal.SIGKILL)
                    after = draw.uniform(0, seconds)
                    code = start(folder, after, by, **options)
                kills += code != 0
                if kind == DAMAGED:
                    damage(folder, draw)
            lost = start(folder, **options) != 0
            bits = "" if lost else (folder / "bits").read_text()
            found[not lost and ast.literal_eval(bits) == wanted] += kills
            print(f"{kind}: {found}", file=sys.stderr)
    return found[True], found[False]


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tries", type=int, default=50)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    page = Path(__file__).with_suffix(".md")
    parser.add_argument("--out", type=Path, default=page)
    arguments = parser.parse_args()
    lines = [
        "# Trainings that were killed",
        "",
        f"`python {shlex.join(sys.argv)}`",
        "",
        f"{versions_line('speechbrain')} A training survives if it ends with "
        "the bits of one never stopped; it is killed three times, one training "
        "as often as the last line says.",
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
