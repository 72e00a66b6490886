"""Compare inertia and time of k-means with scikit-learn.

To run it:
> python benchmarks/kmeans.py

The data consists of as many vectors as a reservoir holds by default, from a
long-tailed mixture, like frames of phones and speakers: 3000 modes from a
standard normal distribution in 64 dimensions, the r-th with frequency
proportional to 1 / r, plus normal noise with standard deviation 0.25.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from report import save, versions_line
from sklearn.cluster import k_means
from threadpoolctl import threadpool_limits

from speechbrain_vq.nnet.kmeans import kmeans

MODES = 3000


def mixture(num_vectors: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Draw the long-tailed mixture of the module docstring, [num_vectors, dim]."""
    generator = torch.Generator().manual_seed(seed)
    modes = torch.randn(MODES, dim, generator=generator)
    weights = 1 / torch.arange(1.0, MODES + 1)
    picks = torch.multinomial(weights, num_vectors, True, generator=generator)
    noise = torch.randn(num_vectors, dim, generator=generator)
    return modes[picks] + 0.25 * noise


def timed(fit: Callable[[], float]) -> tuple[float, float]:
    """Measure the seconds of a fit, and return them with its inertia."""
    start = time.perf_counter()
    inertia = fit()
    seconds = time.perf_counter() - start
    # Progress goes to stderr, because the benchmark takes minutes.
    print(f"{seconds:.2f} s, inertia {inertia:.6g}", file=sys.stderr)
    return seconds, inertia


def compare(x: torch.Tensor, num_clusters: int, rounds: int) -> list[str]:
    """Build the table rows for one number of clusters of vectors [N, D]."""

    def ours(seed: int) -> float:
        return float(kmeans(x, num_clusters, generator=seed).inertia)

    def sklearn(seed: int, n_init: int = 1) -> float:
        return k_means(
            x.numpy(), num_clusters, n_init=n_init, random_state=seed
        )[2]

    # Alternate both, because the load of a shared machine varies.
    own, single = [], []
    for seed in range(rounds):
        own.append(timed(lambda seed=seed: ours(seed)))
        single.append(timed(lambda seed=seed: sklearn(seed)))
    ten_seconds, ten_inertia = timed(lambda: sklearn(0, n_init=10))

    def row(name: str, runs: list[tuple[float, float]]) -> str:
        seconds = statistics.median(run[0] for run in runs)
        ratios = [run[1] / ten_inertia for run in runs]
        own_seconds = statistics.median(run[0] for run in own)
        relative = statistics.median(
            run[0] / own_run[0] for run, own_run in zip(runs, own, strict=False)
        )
        if len(runs) != len(own):
            relative = seconds / own_seconds
        distortion = statistics.mean(run[1] for run in runs) / len(x)
        return (
            f"| {num_clusters} | {name} | {len(runs)} | {seconds:.2f} | "
            f"{relative:.1f} | {distortion:.3f} | "
            f"{statistics.mean(ratios):.4f} | "
            f"{min(ratios):.4f} to {max(ratios):.4f} |"
        )

    return [
        row("speechbrain_vq `kmeans`", own),
        row("scikit-learn `k_means`, n_init=1", single),
        row("scikit-learn `k_means`, n_init=10", [(ten_seconds, ten_inertia)]),
    ]


def page(args: argparse.Namespace) -> list[str]:
    """Build the page as lines of Markdown."""
    x = mixture(args.vectors, args.dim)
    kmeans(x[:1000], 16, generator=0)
    k_means(x[:1000].numpy(), 16, n_init=1)
    rows = [row for k in args.clusters for row in compare(x, k, args.rounds)]
    return [
        "# K-means against scikit-learn",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        f"{args.vectors} x {args.dim}, long-tailed mixture of {MODES} "
        f"modes; {args.threads} CPU thread(s). "
        "Seconds are medians over rounds, in which our fit and a single fit "
        "of scikit-learn alternate, each with a new seed; relative time is "
        "the median of the ratios to ours. Inertia is relative to "
        "scikit-learn's best of ten fits.",
        "",
        versions_line("scikit-learn"),
        "",
        "| K | | fits | s | relative time | mean squared distance | "
        "inertia ratio | from, to |",
        "|---|---|---|---|---|---|---|---|",
        *rows,
    ]


def main() -> None:
    """Parse the options, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for option, default, text in (
        ("--vectors", 20480, "Number of vectors."),
        ("--dim", 64, "Dimension of the vectors."),
        ("--rounds", 3, "Number of fits with different seeds."),
        ("--threads", 2, "Number of CPU threads."),
    ):
        parser.add_argument(option, type=int, default=default, help=text)
    parser.add_argument(
        "--clusters",
        type=int,
        nargs="+",
        default=[512, 2048],
        help="Numbers of clusters.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        default=Path(__file__).with_suffix(".md"),
        help="Page to write.",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with threadpool_limits(args.threads):
        lines = page(args)
    print(save(args.output, lines))


if __name__ == "__main__":
    main()
