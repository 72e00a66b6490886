"""Measure how time and memory scale with vectors, codewords, ranks and more.

To run it:
> python benchmarks/scale.py

Each measurement runs in a new process with one thread, and records its CPU time
and the growth of its peak memory. Vectors are drawn as in kmeans.py.
Measurements already in scale.jsonl are not repeated. Exponents are the slopes
of straight lines fitted to the logarithms of sizes and times. Requires
`pip install "speechbrain-vq[bench]"`.
"""

import argparse
import json
import logging
import math
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import matplotlib.pyplot as plt
import numpy as np
import torch
from kmeans import mixture
from report import append_line, read_lines, save, versions_line
from speed import high_water, stepper

from speechbrain_vq import (
    CodebookTrainer,
    ReinitSchedule,
    Reservoir,
    VectorQuantizer,
)
from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.nnet.search import InvertedLists, nearest

HERE = pathlib.Path(__file__)
CODEWORDS = [1024, 4096, 16384, 65536, 262144]
LARGE = [65536, 262144]
# Measurements of the codes that new vectors use: codewords, vectors per codeword,
# and the learning rate of a run, or None for k-means alone.
USED = [(65536, 5 / 4, None), (8192, 5 / 4, None), (8192, 4, None)]
USED += [(8192, 5 / 4, lr) for lr in (0.01, 0.001, 0.00001)]
# Vectors per codeword in a re-initialization, as in a full reservoir.
SHARE = 4
# Numbers of vectors (N), codewords (K), dimensions (D) and codebooks (C).
BASE = {"N": 800, "K": 4096, "D": 64, "C": 1}
# Base sizes for k-means, which takes longer.
SMALL = {**BASE, "N": 8192, "K": 1024}
FULL = [
    {**SMALL, "N": SHARE * k, "K": k} for k in (1024, 4096, 8192, 16384, 32768)
]
# Sizes to measure, by operation and by the axis that varies.
AXES = {
    ("step", "N"): [{**BASE, "N": n} for n in (400, 1600, 6400)],
    ("step", "K"): [{**BASE, "K": k} for k in CODEWORDS],
    ("step", "D"): [{**BASE, "D": d} for d in (16, 64, 256)],
    ("step", "C"): [{**BASE, "C": c} for c in (1, 2, 4)],
    ("exact search", "K"): [{**BASE, "K": k} for k in CODEWORDS],
    ("inverted lists", "K"): [{**BASE, "K": k} for k in CODEWORDS],
    ("Adam, dense", "K"): [{**BASE, "K": k} for k in CODEWORDS],
    ("Adam, used rows", "K"): [{**BASE, "K": k} for k in CODEWORDS],
    ("reservoir", "K"): [{**BASE, "K": k} for k in CODEWORDS],
    ("seeds", "K"): FULL,
    ("re-initialization", "N"): [
        {**SMALL, "N": n} for n in (4096, 16384, 65536)
    ],
    ("re-initialization", "K"): FULL,
    ("re-initialization", "D"): [{**SMALL, "D": d} for d in (16, 64, 256)],
    ("re-initialization", "C"): [{**SMALL, "C": c} for c in (1, 2, 4)],
}


# Operations: each function returns a function that runs the operation once --


def step(n, k, d, c):
    """Forward and backward pass of the default, with residual codebooks."""
    options = {"num_codebooks": c, "composition": "residual"}
    return stepper(VectorQuantizer(d, k, **options), mixture(n, d))


def reinitialization(n, k, d, c):
    """Re-initialization from n vectors."""
    vectors = mixture(n, d)
    options = {"num_codebooks": c, "composition": "residual"}
    quantizer = VectorQuantizer(d, k, **options)
    return lambda: quantizer.reinitialize(vectors)


def seeds(n, k, d, c):
    """Seeding of k-means, without iterations."""
    vectors = mixture(n, d)
    return lambda: kmeans(vectors, k, max_iterations=0, generator=0)


def vectors_and_codebook(n, k, d):
    """Draw vectors and codewords from one mixture."""
    return mixture(n + k, d).split([n, k])


def exact(n, k, d, c):
    """Exact nearest-neighbor search."""
    x, codebook = vectors_and_codebook(n, k, d)
    return lambda: nearest(x, codebook)


def build_lists(codebook):
    """Build inverted lists of a codebook, with k-means on a sample of it."""
    number = math.isqrt(len(codebook))
    sample = codebook[:: max(1, len(codebook) // (64 * number))]
    centroids = kmeans(sample, number, max_iterations=5, generator=0).centroids
    return InvertedLists(codebook, centroids)


def inverted(n, k, d, c):
    """Search in inverted lists, also measuring the recall."""
    x, codebook = vectors_and_codebook(n, k, d)
    lists = build_lists(codebook)
    recall = float((lists(x) == nearest(x, codebook)).float().mean())

    def run():
        lists(x)
        return {"recall": recall}

    return run


def adam(n, k, d, c, sparse=False):
    """Lookup of n codewords, its gradient, and a step of Adam."""
    words = torch.nn.Embedding(k, d, sparse=sparse)
    optimizer = torch.optim.SparseAdam if sparse else torch.optim.Adam
    optimizer = optimizer(list(words.parameters()))
    codes = torch.randint(k, (n,))

    def run():
        words(codes).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return run


def fill(n, k, d, c):
    """Addition of n vectors to a full reservoir of 4 vectors per codeword."""
    reservoir, vectors = Reservoir(SHARE * k, d), mixture(n, d)
    while reservoir.count < reservoir.capacity:
        reservoir.add(vectors)
    return lambda: reservoir.add(vectors)


MEASURED = {
    "step": step,
    "re-initialization": reinitialization,
    "seeds": seeds,
    "exact search": exact,
    "inverted lists": inverted,
    "Adam, dense": adam,
    "Adam, used rows": lambda *sizes: adam(*sizes, sparse=True),
    "reservoir": fill,
}


def measure(what, sizes):
    """Measure an operation in this process: median CPU seconds of rounds that
    take at least 0.3 s in total, and the growth of peak memory in MiB."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    run = MEASURED[what](*(sizes[axis] for axis in "NKDC"))
    seconds = []
    while sum(seconds) < 0.3:
        start = time.process_time()
        extra = run()
        seconds.append(time.process_time() - start)
    metrics = {"seconds": statistics.median(seconds)}
    metrics["MiB"] = high_water() - before
    return {**metrics, **(extra if isinstance(extra, dict) else {})}


def usage(codes):
    """Compute the number of distinct codes and their perplexity."""
    shares = codes.unique(return_counts=True)[1] / len(codes)
    entropy = -(shares * shares.log()).sum()
    return {"distinct": len(shares), "perplexity": float(entropy.exp())}


def cluster(k, share):
    """Cluster ``share`` vectors per codeword into k codewords, and return how
    new vectors use the codes."""
    sizes = [int(share * k), 16384]
    x, test = mixture(sum(sizes), BASE["D"]).split(sizes)
    return usage(nearest(test, kmeans(x, k, generator=0).centroids))


def train(k, share=5 / 4, lr=0.01):
    """Train an autoencoder with a codebook of k codewords in this process: a
    warm-up of 16 steps, a re-initialization, and 16 steps of 1,024 vectors."""
    dim, warmup = BASE["D"], 16
    # Drawn in one call, because each call draws new modes.
    sizes = [int(share * k) // warmup] * warmup + [1024] * warmup + [16384]
    *batches, test = mixture(sum(sizes), dim).split(sizes)
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    encoder, decoder = torch.nn.Linear(dim, dim), torch.nn.Linear(dim, dim)
    quantizer = VectorQuantizer(dim, k)
    model = torch.nn.ModuleList([encoder, quantizer, decoder])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = ReinitSchedule(warmup, every=10**6)
    CodebookTrainer(model, optimizer, schedule=schedule)
    seconds, losses, peak, used = [], [], 0.0, []
    for x in batches:
        start = time.process_time()
        out = quantizer(encoder(x))
        loss = torch.nn.functional.mse_loss(decoder(out.quantized), x)
        (loss + out.loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.process_time() - start)
        losses.append(float(loss.detach()))
        peak = high_water() - before
        if len(seconds) in (warmup, len(batches)):
            quantizer.eval()
            with torch.no_grad():
                used.append(usage(quantizer.encode(encoder(test))))
            quantizer.train()
    return {
        "warm-up step": statistics.median(seconds[: warmup - 1]),
        "re-initialization": seconds[warmup - 1],
        "step": statistics.median(seconds[warmup:]),
        "at first": used[0],
        **used[1],
        "losses": [losses[warmup], losses[-1]],
        "MiB": peak,
    }


def work(rounds=5):
    """Measure steps and a re-initialization on one rank of torchrun. The ranks
    have equal parts of the same global batch."""
    torch.distributed.init_process_group("gloo")
    ranks = torch.distributed.get_world_size()
    n, k, d, _ = (BASE[axis] for axis in "NKDC")
    x = mixture(8 * n, d).chunk(ranks)[torch.distributed.get_rank()]
    quantizer = VectorQuantizer(d, k)
    optimizer = torch.optim.Adam(quantizer.parameters())
    schedule = ReinitSchedule(rounds, every=10**6)
    CodebookTrainer(quantizer, optimizer, schedule=schedule)
    parallel = torch.nn.parallel.DistributedDataParallel(quantizer)
    seconds = []
    for _ in range(2 * rounds):
        start = time.perf_counter()
        parallel(x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        seconds.append(time.perf_counter() - start)
    if torch.distributed.get_rank() == 0:
        metrics = {
            "step": min(seconds[rounds:]),
            "re-initialization": seconds[rounds - 1],
        }
        print(json.dumps(metrics))
    torch.distributed.destroy_process_group()


def run_ranks(ranks):
    """Run ``work`` on a number of ranks, and return its measurements."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc_per_node={ranks}", str(HERE), "--work"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        command, capture_output=True, text=True, check=True, env=environment
    )
    return json.loads(process.stdout.splitlines()[-1])


# The page ------------------------------------------------------------------


def jobs():
    """Yield (keys of its line, function, arguments) of each measurement."""
    for (what, axis), sizes_of_axis in AXES.items():
        for sizes in sizes_of_axis:
            name = {"what": what, "axis": axis, **sizes}
            yield name, measure, (what, sizes)
    for ranks in (1, 2):
        yield {"what": "ranks", "ranks": ranks}, run_ranks, (ranks,)
    for k in LARGE:
        yield {"what": "training", "K": k}, train, (k,)
    for k, share, lr in USED:
        name = {"what": "codes", "K": k, "share": share, "lr": lr}
        if lr is None:
            yield name, cluster, (k, share)
        else:
            yield name, train, (k, share, lr)


def collect(path):
    """Run measurements without a line in the file, and return all rows."""
    rows = read_lines(path)
    for name, function, arguments in jobs():
        if any(name.items() <= row.items() for row in rows):
            continue
        # A new process for each, forked so that imports are done.
        with ProcessPoolExecutor(1, get_context("fork")) as processes:
            metrics = processes.submit(function, *arguments).result()
        rows.append({**name, **metrics})
        append_line(path, rows[-1])
        print(rows[-1], file=sys.stderr)
    return rows


def along(rows, what, axis):
    """Select the rows of an operation along an axis."""
    return [r for r in rows if (r["what"], r.get("axis")) == (what, axis)]


def exponent(rows, axis, value):
    """Fit the exponent of a value at the three largest sizes, where constant
    overhead matters least."""
    logs = [np.log([row[key] for row in rows[-3:]]) for key in (axis, value)]
    return np.polyfit(*logs, 1)[0]


def exponents(rows):
    """Build the table of exponents."""
    lines = ["| of | over | from | to | time | memory |", "|" + "---|" * 6]
    for what, axis in AXES:
        part = along(rows, what, axis)
        cells = [what, axis, part[-3][axis], part[-1][axis]]
        cells.append(f"{exponent(part, axis, 'seconds'):.2f}")
        # Smaller values are dominated by the allocator's block size.
        grows = part[-3]["MiB"] > 4
        cells.append(f"{exponent(part, axis, 'MiB'):.2f}" if grows else "")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def over_codewords(rows):
    """Build the table of times by number of codewords."""
    names = [what for what, axis in AXES if axis == "K"]
    lines = [
        "| K | " + " | ".join(names) + " | recall of the lists | step, MiB |",
        "|" + "---|" * (len(names) + 3),
    ]
    part = {(r["what"], r["K"]): r for r in rows if r.get("axis") == "K"}

    def cell(what, k, key, factor=1):
        value = factor * part.get((what, k), {}).get(key, math.nan)
        if math.isnan(value):
            return ""
        return f"{value:.0f}" if value >= 100 else f"{value:.3g}"

    for k in sorted({k for _, k in part}):
        cells = [cell(name, k, "seconds", 1000) for name in names]
        cells += [cell("inverted lists", k, "recall"), cell("step", k, "MiB")]
        lines.append("| " + " | ".join([str(k), *cells]) + " |")
    return lines


def trainings(rows):
    """Build the tables of training runs and ranks."""
    lines = [
        "| K | warm-up step (s) | re-initialization (s) | step (s) | peak (MiB) "
        "| different codes | perplexity | loss at first, at the end |",
        "|" + "---|" * 8,
    ]
    for row in (r for r in rows if r["what"] == "training"):
        lines.append(
            f"| {row['K']} | {row['warm-up step']:.2f} | "
            f"{row['re-initialization']:.0f} | {row['step']:.2f} | "
            f"{row['MiB']:.0f} | {row['distinct']} | {row['perplexity']:.0f} | "
            f"{row['losses'][0]:.3f}, {row['losses'][1]:.3f} |"
        )
    ranks = ["| ranks | step (ms) | re-initialization (ms) |", "|---|---|---|"]
    for row in (r for r in rows if r["what"] == "ranks"):
        ranks.append(
            f"| {row['ranks']} | {1000 * row['step']:.0f} | "
            f"{1000 * row['re-initialization']:.0f} |"
        )
    return lines, ranks


def used_codes(rows):
    """Build the table of codes used by new vectors."""
    lines = [
        "| K | vectors for each | learning rate | different codes | perplexity "
        "| 16 steps later | perplexity |",
        "|" + "---|" * 7,
    ]
    for row in (r for r in rows if r["what"] == "codes"):
        cells = [row["K"], f"{row['share']:g}", row["lr"] or "k-means alone"]
        for used in [row["at first"], row] if row["lr"] else [row]:
            cells += [used["distinct"], f"{used['perplexity']:.0f}"]
        cells += [""] * (7 - len(cells))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines


def draw(rows, path):
    """Plot time and memory against the number of codewords."""
    plt.rcParams["svg.hashsalt"] = "scale"
    figure, both = plt.subplots(1, 2, figsize=(9, 4.8), layout="constrained")
    for axes, value in zip(both, ("seconds", "MiB"), strict=True):
        for what in [what for what, axis in AXES if axis == "K"]:
            part = along(rows, what, "K")
            slope = exponent(part, "K", value)
            numbers = [[row[key] for row in part] for key in ("K", value)]
            axes.loglog(*numbers, "o-", label=f"{what}: {slope:.2f}")
        axes.set(xlabel="codewords", ylabel=value)
        place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.17)}
        axes.legend(title="exponents", ncols=2, fontsize=8, **place)
    figure.savefig(path, metadata={"Date": None})


def page(rows):
    """Build the page as lines of Markdown."""
    training, ranks = trainings(rows)
    return [
        "# How time and memory scale",
        "",
        f"`python {shlex.join(sys.argv)}`",
        "",
        f"{versions_line()} Median CPU time of one thread, and growth of a "
        "process's peak memory. By default there are "
        f"{BASE['N']} vectors (N) of {BASE['D']} dimensions (D) and one codebook "
        f"(C) of {BASE['K']} codewords (K). Re-initialization and seeds take "
        f"{SHARE} vectors per codeword over K, and {SMALL['N']} vectors and "
        f"{SMALL['K']} codewords over the others. The machine was shared.",
        "",
        "![Time and memory over codewords](scale.svg)",
        "",
        "## Exponents",
        "",
        "Slopes of straight lines fitted to the logarithms at the three largest "
        "sizes. About 30 MiB of each process do not grow.",
        "",
        *exponents(rows),
        "",
        "## Milliseconds by number of codewords",
        "",
        "Adam looks up as many codewords as there are vectors: dense, like our "
        "codebook, and with gradient and state of used rows only (SparseAdam). "
        "The inverted lists have 16 probes.",
        "",
        *over_codewords(rows),
        "",
        "## Training with large codebooks",
        "",
        "A linear autoencoder of the mixture in kmeans.py: 16 warm-up steps with "
        "5/4 vectors per codeword in all, the re-initialization, and 16 steps of "
        "1,024 vectors. Different codes and perplexity are for 16,384 new "
        "vectors.",
        "",
        *training,
        "",
        "## Why so few different codes",
        "",
        "The vectors are a mixture of 3,000 modes. Within a mode, in 64 "
        "dimensions, a vector is nearer to the codewords near the center, which "
        "are means of several vectors, than to the many that are single vectors. "
        "So even after k-means alone, without training, new vectors use at most "
        "half of the codes that they could use. A learning rate of 0.01 moves "
        "the encoder so much that the clustered latents are outdated. In the "
        "steps after the re-initialization, which these runs do not repeat as "
        "the default does, encoder and codebook drift apart, and used "
        "codewords move to the center of a mode. At a rate of 0.00001, where "
        "neither moves, no codes are lost. Everything is in fp32, and the "
        "reservoir holds all vectors of the warm-up.",
        "",
        *used_codes(rows),
        "",
        "## Ranks",
        "",
        "6,400 vectors on one and on two ranks (torchrun, gloo, one machine): "
        "wall time of the fastest step and of the re-initialization.",
        "",
        *ranks,
    ]


def main():
    """Measure, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=pathlib.Path, default=HERE.parent)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.work:
        return work()
    logging.disable(logging.WARNING)  # Too few vectors per codeword
    # Warm up operations that are slow only the first time.
    stepper(VectorQuantizer(64, 64), mixture(100, 64))()
    adam(10, 64, 64, 1)()
    rows = collect(arguments.out / "scale.jsonl")
    draw(rows, arguments.out / "scale.svg")
    print(save(arguments.out / "scale.md", page(rows)))


if __name__ == "__main__":
    main()
