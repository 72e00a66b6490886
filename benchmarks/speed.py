"""Time and memory of one training step of a quantizer, over the floor.

To run it:
> python benchmarks/speed.py

The floor is what no quantizer can leave out, `w[(x @ w.T).argmin(1)]` without
gradients. Each row is the forward and backward pass of a quantizer on a batch
of 16 x 200 x 64; ratios are medians over rounds in which floor and quantizer
alternate. Memory is the growth of the peak of a fresh process over three
steps. Needs `pip install "speechbrain-vq[bench]"`.

Authors
 * speechbrain_vq authors 2026
"""

import pathlib
import statistics
import subprocess
import sys
import time

import click
import torch
import vector_quantize_pytorch as rivals
from report import save

from speechbrain_vq import Reservoir, VectorQuantizer
from speechbrain_vq.training.monitor import UsageMonitor
from speechbrain_vq.versions import versions

BATCH, TIME, DIM = 16, 200, 64
SIZES = (512, 4096, 16384)


def robust(size):
    """Our default, watched by its monitor."""
    quantizer = VectorQuantizer(DIM, size)
    quantizer.monitor = UsageMonitor(quantizer)
    return quantizer


QUANTIZERS = {
    "speechbrain_vq robust (norm, reservoir, monitor)": robust,
    "speechbrain_vq vanilla": lambda size: VectorQuantizer(
        DIM, size, norm=None, reservoir_size=0
    ),
    "speechbrain_vq EMA": lambda size: VectorQuantizer(
        DIM, size, codebook="ema", reservoir_size=0
    ),
    "vqp EMA (default)": lambda size: rivals.VectorQuantize(DIM, size),
    "vqp learnable codebook": lambda size: rivals.VectorQuantize(
        DIM, size, learnable_codebook=True, ema_update=False
    ),
}


def stepper(quantizer):
    """A training step of a quantizer: forward, loss, backward."""
    x = torch.randn(BATCH, TIME, DIM, requires_grad=True)

    def step():
        out = quantizer(x)
        (out[0].sum() + out[2].sum()).backward()
        x.grad = None
        quantizer.zero_grad(set_to_none=True)

    return step


def floor(size):
    """What no quantizer can leave out."""
    x, w = torch.randn(BATCH * TIME, DIM), torch.randn(size, DIM)

    @torch.no_grad()
    def step():
        return w[(x @ w.T).argmin(1)]

    return step


def clock(step):
    """Seconds of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def ratio(step, base, rounds):
    """Median over rounds of the ratio of two neighbouring calls, its
    quartiles, and the best time."""
    for _ in range(3):
        step(), base()
    pairs = [(clock(step), clock(base)) for _ in range(rounds)]
    ratios = [ours / floor for ours, floor in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high, min(ours for ours, _ in pairs)


def peak_growth(name, size):
    """MiB by which three steps raise the peak of a fresh process."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import speed;"
        "step = speed.stepper(speed.QUANTIZERS[sys.argv[2]](int(sys.argv[3])));"
        "speed.report_growth(step)"
    )
    command = [sys.executable, "-c", code, str(pathlib.Path(__file__).parent)]
    done = subprocess.run(
        [*command, name, str(size)], capture_output=True, text=True, check=True
    )
    return float(done.stdout.split()[-1])


def report_growth(step):
    """Prints how far three steps raise this process's memory (Linux)."""
    small = torch.randn(64, 64, requires_grad=True)
    (small @ small).sum().backward()  # Threads and libraries are up
    # Imports peak higher than what follows: start the high-water mark anew.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    for _ in range(3):
        step()
    click.echo(high_water() - before)


def high_water():
    """Peak resident memory of this process since its reset, MiB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024


def graph_breaks():
    """Graph breaks of one training step of the default under torch.compile."""
    quantizer = VectorQuantizer(DIM, 512)
    x = torch.randn(BATCH, TIME, DIM, requires_grad=True)
    return torch._dynamo.explain(quantizer)(x).graph_break_count


def reservoir_update(rounds=200):
    """Milliseconds to add 3200 vectors to a full reservoir."""
    reservoir, vectors = Reservoir(20480, DIM), torch.randn(3200, DIM)
    mask = torch.ones(3200, dtype=torch.bool)
    for _ in range(10):
        reservoir.add(vectors, mask)
    times = [clock(lambda: reservoir.add(vectors, mask)) for _ in range(rounds)]
    return 1000 * statistics.median(times)


@click.command()
@click.option("--rounds", default=30, show_default=True)
@click.option("--threads", default=2, show_default=True)
def main(rounds, threads):
    """Measures, prints the table and writes it beside this file."""
    torch.set_num_threads(threads)
    lines = [
        "# Speed and memory of a training step",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        "Forward and backward on 16 x 200 x 64 over the floor `w[(x @ "
        "w.T).argmin(1)]`: median ratio (quartiles) and best milliseconds of "
        f"{rounds} alternating rounds, {threads} CPU threads; MiB: growth of "
        "the peak of a fresh process over three steps.",
        "",
        "vqp is vector-quantize-pytorch. "
        + versions("vector-quantize-pytorch")
        + ".",
        "",
        "| quantizer | " + " | ".join(f"K = {k}" for k in SIZES) + " | MiB at "
        f"K = {SIZES[-1]} |",
        "|---|" + "---|" * (len(SIZES) + 1),
    ]
    for name, make in QUANTIZERS.items():
        cells = []
        for size in SIZES:
            middle, low, high, best = ratio(
                stepper(make(size)), floor(size), rounds
            )
            cells.append(
                f"{middle:.2f} ({low:.2f} to {high:.2f}), {1000 * best:.1f} ms"
            )
        cells.append(f"{peak_growth(name, SIZES[-1]):.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        click.echo(lines[-1])
    lines += [
        "",
        f"A full reservoir of 20480 x 64 takes 3200 vectors in "
        f"{reservoir_update():.2f} ms (median). Graph breaks of one training "
        f"step of the default under torch.compile: {graph_breaks()}.",
    ]
    click.echo(save(pathlib.Path(__file__).with_suffix(".md"), lines))


if __name__ == "__main__":
    main()
