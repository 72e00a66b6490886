"""Run the measurements of speed.py and kmeans.py, and others, on a GPU.

To run it, in about ten minutes:
> python benchmarks/gpu.py

It checks that codes agree with the CPU, in fp32 and under autocast. It measures
steps relative to the lower bound and to vector-quantize-pytorch, bf16,
torch.compile, peak memory, host synchronizations, a Brain's step, k-means, and
approximate search. `--device=cpu --quick` tries the script without a GPU.
Requires `pip install "speechbrain-vq[bench]"`.
"""

import math
import pathlib
import shlex
import sys
import warnings

import click
import torch
from kmeans import mixture
from report import save, versions_line
from speed import (
    BATCH,
    DIM,
    QUANTIZERS,
    TIME,
    brain_steps,
    clock,
    floor,
    graph_breaks,
    ratio,
    stepper,
)

from speechbrain_vq import VectorQuantizer
from speechbrain_vq.nnet import InvertedLists, kmeans, nearest

DEFAULT = next(iter(QUANTIZERS))

# Maximum relative excess of a distance that rounding may cause.
_LARGEST_EXCESS = 1e-4


def batch(device):
    """Draw a batch of encoder outputs."""
    return torch.randn(BATCH, TIME, DIM, device=device)


def table(*rows):
    """Format rows as lines of Markdown, the first as the header."""
    lines = ["| " + " | ".join(map(str, row)) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def codes(device, sizes):
    """Compare codes with the CPU's: the fraction of equal codes, and the
    largest relative excess of the distance to a different codeword."""
    rows = [["K", "fp32", "bf16 autocast", "largest excess distance"]]
    for size in sizes:
        words = mixture(size + BATCH * TIME, DIM)
        x, words = words.split([BATCH * TIME, size])
        expected, cells = nearest(x, words), []
        best = (x - words[expected]).norm(dim=1)
        excess = 0.0
        for dtype in (None, torch.bfloat16):
            with torch.autocast(device, dtype, enabled=dtype is not None):
                actual = nearest(x.to(device), words.to(device)).cpu()
            cells.append(f"{float((actual == expected).float().mean()):.5f}")
            distance = (x - words[actual]).norm(dim=1)
            excess = max(excess, float((distance / best - 1).amax()))
        if excess > _LARGEST_EXCESS:
            raise ValueError(
                f"Codes differ from the CPU's, K = {size}: {excess}"
            )
        rows.append([size, *cells, f"{excess:.1e}"])
    return table(*rows)


def peak(step, device):
    """Format the MiB by which a step raises the GPU's peak memory."""
    if device == "cpu":
        return ""
    step()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step()
    return f", {(torch.cuda.max_memory_allocated() - before) / 2**20:.0f} MiB"


def steps(device, sizes, rounds):
    """Compare training steps with the lower bound."""
    rows = [["quantizer", *(f"K = {size}" for size in sizes)]]
    for name, make in QUANTIZERS.items():
        cells = []
        for size in sizes:
            step = stepper(make(size).to(device), batch(device))
            base = floor(size, device)
            middle, low, high, best = ratio(step, base, rounds)
            cells.append(
                f"{middle:.2f} ({low:.2f} to {high:.2f}), {1000 * best:.2f} ms"
                + peak(step, device)
            )
        rows.append([name, *cells])
    return table(*rows)


def variants(device, size, rounds):
    """Compare autocast and compiled steps of the default with plain ones."""
    plain = stepper(QUANTIZERS[DEFAULT](size).to(device), batch(device))
    inner = stepper(QUANTIZERS[DEFAULT](size).to(device), batch(device))

    def autocast():
        with torch.autocast(device, torch.bfloat16):
            inner()

    compiled = torch.compile(VectorQuantizer(DIM, size).to(device))
    compiled = stepper(compiled, batch(device))
    first = clock(compiled)
    rows = [["default, K = " + str(size), "over the plain step", "ms"]]
    for name, step in (("bf16 autocast", autocast), ("compiled", compiled)):
        middle, low, high, best = ratio(step, plain, rounds)
        cell = f"{middle:.2f} ({low:.2f} to {high:.2f})"
        rows.append([name, cell, f"{1000 * best:.2f}"])
    text = f"The first compiled step takes {first:.0f} s; graph breaks: "
    return [*table(*rows), "", text + f"{graph_breaks(device)}."]


def host_syncs(device):
    """Count how often steps of each quantizer wait for the GPU."""
    if device == "cpu":
        return ["Not counted on a CPU."]
    rows = [["quantizer, K = 512", "host synchronizations a step"]]
    for name, make in QUANTIZERS.items():
        step = stepper(make(512).to(device), batch(device))
        step()
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            step()
        torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in caught if "synchroniz" in str(w.message)]
        rows.append([name, len(waits)])
    return table(*rows)


def cluster(x, size):
    """Measure the seconds of k-means, and return them with its inertia."""
    results = []
    seconds = clock(lambda: results.append(kmeans(x, size, generator=0)))
    return seconds, float(results[0].inertia)


def clusterings(device, problems):
    """Compare k-means with the CPU's, except where that would take hours."""
    rows = [["vectors", "K", "s", "CPU, s", "inertia over the CPU's"]]
    for number, size, with_cpu in problems:
        x = mixture(number, DIM)
        seconds, inertia = cluster(x.to(device), size)
        cells = [number, size, f"{seconds:.2f}", "", ""]
        if with_cpu:
            seconds, base = cluster(x, size)
            cells[3:] = [f"{seconds:.2f}", f"{inertia / base:.4f}"]
        rows.append(cells)
    return table(*rows)


def approximate(device, sizes, rounds):
    """Compare inverted lists with the exact search."""
    rows = [["K", "exact over inverted lists", "recall"]]
    for size in sizes:
        x, words = (
            mixture(size + BATCH * TIME, DIM)
            .to(device)
            .split([BATCH * TIME, size])
        )
        number = math.isqrt(size)
        sample = words[:: max(1, size // (64 * number))]
        lists = InvertedLists(words, kmeans(sample, number).centroids)
        middle, low, high, _ = ratio(
            lambda x=x, words=words: nearest(x, words),
            lambda x=x, lists=lists: lists(x),
            rounds,
        )
        recall = float((lists(x) == nearest(x, words)).float().mean())
        rows.append(
            [size, f"{middle:.2f} ({low:.2f} to {high:.2f})", f"{recall:.4f}"]
        )
    return table(*rows)


def a_brain_step(device, rounds):
    """Compare the step of a Brain with VQMixin with that of a plain one."""
    middle, low, high, rate, plain = brain_steps(rounds, device)
    return [
        "A whole step of a Brain with the network of MiniSpeech/unit-discovery "
        f"(16 x 2 s) as `VQMixin` takes {middle:.3f} ({low:.3f} to {high:.3f}) "
        "times that with a plain straight-through quantizer: "
        f"{rate:.1f} against {plain:.1f} steps a second."
    ]


def sections(device, quick):
    """List the sections of the page as (title, function, *arguments)."""
    rounds, sizes, large = 30, (512, 4096, 16384), (65536, 262144)
    problems = [(20480, 512, True), (20480, 2048, True)]
    problems += [(4 * size, size, False) for size in (16384, *large)]
    if quick:
        rounds, sizes, large = 3, (512,), (4096,)
        problems = [(2000, 64, True)]
    return [
        ("Codes against those of the CPU", codes, [*sizes, large[0]]),
        ("Steps over the floor `w[(x @ w.T).argmin(1)]`", steps, sizes, rounds),
        ("Precision and compilation", variants, sizes[-1], rounds),
        ("Host synchronizations", host_syncs),
        ("A Brain", a_brain_step, rounds),
        ("K-means of the mixture of kmeans.py", clusterings, problems),
        ("Approximate search", approximate, large, rounds),
    ]


@click.command()
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda")
@click.option("--quick", is_flag=True, help="Use small sizes and few rounds.")
@click.option(
    "--out",
    type=click.Path(path_type=pathlib.Path),
    default=pathlib.Path(__file__).with_suffix(".md"),
    help="Page to write.",
)
def main(device, quick, out):
    """Measure, print the page and write it next to this script."""
    if device == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            "torch finds no GPU here. To try the script without one: "
            "python benchmarks/gpu.py --device=cpu --quick --out=gpu_test.md"
        )
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    failed = False
    lines = [
        "# Quantizers on a GPU",
        "",
        f"`python {shlex.join(sys.argv)}`",
        "",
        f"{name}. {versions_line('vector-quantize-pytorch')} vqp is "
        f"vector-quantize-pytorch. Batches are {BATCH} x {TIME} x {DIM}; ratios "
        "are medians (quartiles) of alternating rounds, milliseconds the best, "
        "MiB the growth of the peak in a step.",
    ]
    for title, function, *arguments in sections(device, quick):
        try:
            section = function(device, *arguments)
        except Exception as error:  # Access to a GPU is rare: run the rest.
            section = [f"Failed: {error!r}"]
            failed = True
        lines += ["", f"## {title}", "", *section]
        save(out, lines)
    click.echo("\n".join(lines))
    sys.exit(failed)


if __name__ == "__main__":
    main()
