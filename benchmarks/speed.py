"""Measure time and memory of quantizers relative to a lower bound.

To run it:
> python benchmarks/speed.py

The lower bound ("floor") is the search alone, `w[(x @ w.T).argmin(1)]` without
gradients. Each row is the forward and backward pass of a quantizer on a batch of
16 x 200 x 64. Ratios are medians over rounds in which floor and quantizer
alternate. Memory is the growth of peak memory of a new process over three steps.
Both are also plotted against the codebook size. Requires
`pip install "speechbrain-vq[bench,report]"`.
"""

import pathlib
import statistics
import subprocess
import sys
import time

import click
import matplotlib.pyplot as plt
import speechbrain as sb
import torch
import vector_quantize_pytorch as rivals
from report import save, versions_line

from speechbrain_vq import (
    ReinitSchedule,
    Reservoir,
    VectorQuantizer,
    VQMixin,
)
from speechbrain_vq.lobes.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    SpeakerEncoder,
)
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.training.monitor import UsageMonitor

BATCH, TIME, DIM = 16, 200, 64
SIZES = (512, 4096, 16384)


def robust(size):
    """Build our default quantizer with its usage monitor."""
    quantizer = VectorQuantizer(DIM, size)
    quantizer.monitor = UsageMonitor(quantizer)
    return quantizer


QUANTIZERS = {
    "speechbrain_vq robust (norm, entropy loss, reservoir, monitor)": robust,
    "speechbrain_vq vanilla": lambda size: VectorQuantizer(
        DIM, size, norm=None, reservoir_size=0, entropy_weight=0.0
    ),
    "speechbrain_vq EMA": lambda size: VectorQuantizer(
        DIM, size, codebook="ema", reservoir_size=0
    ),
    "vqp EMA (default)": lambda size: rivals.VectorQuantize(DIM, size),
    "vqp learnable codebook": lambda size: rivals.VectorQuantize(
        DIM, size, learnable_codebook=True, ema_update=False
    ),
}


def stepper(quantizer, x=None):
    """Build a training step of a quantizer: forward, loss, backward."""
    x = (torch.randn(BATCH, TIME, DIM) if x is None else x).requires_grad_()

    def step():
        out = quantizer(x)
        (out[0].sum() + out[2].sum()).backward()
        x.grad = None
        quantizer.zero_grad(set_to_none=True)

    return step


def floor(size, device="cpu"):
    """Build the lower bound: nearest-neighbor search and lookup."""
    x = torch.randn(BATCH * TIME, DIM, device=device)
    w = torch.randn(size, DIM, device=device)

    @torch.no_grad()
    def step():
        return w[(x @ w.T).argmin(1)]

    return step


def wait():
    """Wait for the accelerator, if there is one."""
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()


def clock(step):
    """Measure the seconds of one call."""
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def ratio(step, base, rounds):
    """Measure two alternating calls: the median and quartiles of the ratio of
    their times, and the best time of the first in seconds."""
    for _ in range(3):
        step(), base()
    pairs = [(clock(step), clock(base)) for _ in range(rounds)]
    ratios = [seconds / bound for seconds, bound in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4)
    return middle, low, high, min(seconds for seconds, _ in pairs)


def peak_growth(name, size):
    """Measure the MiB by which three steps raise a new process's peak memory."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import speed;"
        "step = speed.stepper(speed.QUANTIZERS[sys.argv[2]](int(sys.argv[3])));"
        "speed.report_growth(step)"
    )
    command = [sys.executable, "-c", code, str(pathlib.Path(__file__).parent)]
    process = subprocess.run(
        [*command, name, str(size)], capture_output=True, text=True, check=True
    )
    return float(process.stdout.split()[-1])


def report_growth(step):
    """Print the MiB by which three steps raise peak memory (Linux)."""
    small = torch.randn(64, 64, requires_grad=True)
    (small @ small).sum().backward()  # Start threads, load libraries
    # Reset the high-water mark, because imports peak higher than the steps.
    pathlib.Path("/proc/self/clear_refs").write_text("5")
    before = high_water()
    for _ in range(3):
        step()
    click.echo(high_water() - before)


def high_water():
    """Read this process's peak resident memory since its reset, in MiB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024


def graph_breaks(device="cpu"):
    """Count graph breaks of the default quantizer's step in torch.compile."""
    quantizer = VectorQuantizer(DIM, 512).to(device)
    x = torch.randn(BATCH, TIME, DIM, device=device, requires_grad=True)
    return torch._dynamo.explain(quantizer)(x).graph_break_count


def compile_seconds():
    """Measure the seconds of the default's first compiled step with K = 512."""
    quantizer = torch.compile(VectorQuantizer(DIM, 512))
    return clock(stepper(quantizer))


class Plain(torch.nn.Module):
    """Minimal straight-through quantizer with both losses."""

    def __init__(self, size):
        super().__init__()
        self.codebook = torch.nn.Parameter(torch.randn(size, DIM))

    def forward(self, x, lengths):
        flat = x.flatten(0, 1)
        bias = self.codebook.square().sum(1) / 2
        indices = torch.addmm(bias, flat, self.codebook.t(), alpha=-1).argmin(1)
        codes = self.codebook[indices].view_as(x)
        loss = torch.nn.functional.mse_loss(codes, x.detach())
        loss = loss + 0.25 * torch.nn.functional.mse_loss(x, codes.detach())
        return x + (codes - x).detach(), indices, loss


class Autoencoder(sb.Brain):
    """Brain with the network of MiniSpeech/unit-discovery."""

    def compute_forward(self, wavs, stage):
        lengths = torch.ones(len(wavs), device=wavs.device)
        features, lengths = self.modules.features(wavs, lengths)
        latents, token_lengths = self.modules.encoder(features, lengths)
        vq = self.modules.quantizer(latents, token_lengths)
        speaker = self.modules.speaker(features, lengths)
        return features, self.modules.decoder(vq[0], speaker, token_lengths), vq

    def compute_objectives(self, predictions, wavs, stage):
        features, decoded, vq = predictions
        return (decoded - features).abs().mean() + vq[2]


class VQAutoencoder(VQMixin, Autoencoder):
    """The same Brain with VQMixin."""


def brain(cls, quantizer, batches):
    """Build a Brain and train it past the warm-up."""
    modules = {
        "features": LogMel(),
        "encoder": ConvEncoder(80, DIM, 128),
        "quantizer": quantizer,
        "speaker": SpeakerEncoder(80, 32),
        "decoder": ConvDecoder(DIM, 80, 32, 128),
    }
    trained_brain = cls(
        modules,
        lambda p: torch.optim.Adam(p, lr=1e-3),
        {"reinit_schedule": ReinitSchedule(2, "never")},
        {"device": str(batches[0].device)},
    )
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    trained_brain.fit(range(1), loader, progressbar=False)
    trained_brain.modules.train()
    return trained_brain


def brain_steps(rounds, device="cpu"):
    """Measure the step of a VQMixin Brain relative to a Brain with a plain
    quantizer: median and quartiles of the ratio, and steps per second of both."""
    batches = [torch.randn(16, 32000, device=device) / 10 for _ in range(4)]
    ours = brain(VQAutoencoder, VectorQuantizer(DIM, 512), batches)
    plain = brain(Autoencoder, Plain(512), batches)

    def step(brain):
        brain.step += 1
        return brain.fit_batch(batches[0])

    pairs = []
    for number in range(rounds + 3):
        # Alternate the order, so that each goes first in half of the rounds.
        order = (ours, plain) if number % 2 else (plain, ours)
        times = {b: clock(lambda b=b: step(b)) for b in order}
        pairs.append((times[ours], times[plain]))
    pairs = pairs[3:]
    low, middle, high = statistics.quantiles([a / b for a, b in pairs], n=4)
    rates = [
        1 / statistics.median(column) for column in zip(*pairs, strict=True)
    ]
    return middle, low, high, *rates


def reservoir_update(rounds=200):
    """Measure the milliseconds of adding 3200 vectors to a full reservoir."""
    reservoir, vectors = Reservoir(20480, DIM), torch.randn(3200, DIM)
    mask = torch.ones(3200, dtype=torch.bool)
    for _ in range(10):
        reservoir.add(vectors, mask)
    times = [clock(lambda: reservoir.add(vectors, mask)) for _ in range(rounds)]
    return 1000 * statistics.median(times)


def draw(picture: pathlib.Path, milliseconds: dict, mib: dict) -> None:
    """Plot time and memory of each quantizer's step by codebook size."""
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
    for axes, values, label in zip(
        panels, (milliseconds, mib), ("ms a step", "MiB a step"), strict=True
    ):
        for name, numbers in values.items():
            ours = name.startswith("speechbrain_vq")
            style = "o-" if ours else "s--"
            axes.plot(SIZES, numbers, style, label=name, ms=4)
        axes.set(
            xscale="log", yscale="log", xlabel="codebook size", ylabel=label
        )
        axes.set_xticks(SIZES, map(str, SIZES))
        axes.minorticks_off()
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        **{"loc": "outside lower center", "ncols": 3, "frameon": False},
    )
    figure.savefig(picture, dpi=160)


@click.command()
@click.option(
    "--rounds",
    default=30,
    show_default=True,
    help="Rounds in which a quantizer and the floor alternate.",
)
@click.option(
    "--threads", default=2, show_default=True, help="Number of CPU threads."
)
def main(rounds, threads):
    """Measure, print the table and write it next to this script."""
    torch.set_num_threads(threads)
    lines = [
        "# Speed and memory of a training step",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        "Forward and backward on 16 x 200 x 64 relative to the floor `w[(x @ "
        "w.T).argmin(1)]`: median ratio (quartiles) and best milliseconds of "
        f"{rounds} alternating rounds, {threads} CPU threads; MiB: growth of "
        "peak memory of a new process over three steps.",
        "",
        "vqp is vector-quantize-pytorch. "
        + versions_line("vector-quantize-pytorch"),
        "",
        "![Time and memory by codebook size](speed.png)",
        "",
        "| quantizer | " + " | ".join(f"K = {k}" for k in SIZES) + " |",
        "|---|" + "---|" * len(SIZES),
    ]
    milliseconds, mib = {}, {}
    for name, make in QUANTIZERS.items():
        cells, milliseconds[name], mib[name] = [], [], []
        for size in SIZES:
            middle, low, high, best = ratio(
                stepper(make(size)), floor(size), rounds
            )
            milliseconds[name].append(1000 * best)
            mib[name].append(peak_growth(name, size))
            cells.append(
                f"{middle:.2f} ({low:.2f} to {high:.2f}), {1000 * best:.1f} "
                f"ms, {mib[name][-1]:.0f} MiB"
            )
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
        click.echo(lines[-1])
    middle, low, high, rate, plain = brain_steps(4 * rounds)
    lines += [
        "",
        "A full step of a Brain with the network of MiniSpeech/unit-discovery "
        f"(16 x 2 s) with `VQMixin` and the default takes {middle:.3f} "
        f"({low:.3f} to {high:.3f}) times as long as with a plain "
        f"straight-through quantizer: {rate:.2f} vs. {plain:.2f} steps per "
        f"second (medians and quartiles of {4 * rounds} alternating rounds). "
        "The first compiled step of the default takes "
        f"{compile_seconds():.0f} s.",
        "",
        f"A full reservoir of 20480 x 64 takes 3200 vectors in "
        f"{reservoir_update():.2f} ms (median). Graph breaks of one training "
        f"step of the default under torch.compile: {graph_breaks()}.",
    ]
    page = pathlib.Path(__file__).with_suffix(".md")
    draw(page.with_suffix(".png"), milliseconds, mib)
    click.echo(save(page, lines))


if __name__ == "__main__":
    main()
