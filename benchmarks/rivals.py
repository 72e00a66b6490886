"""Quantizers that people install today and ours, in the same network on the
same budget.

To run it:
> python benchmarks/rivals.py --data FOLDER --name minispeech

The network is that of recipes/MiniSpeech/unit-discovery; only the quantizer
changes. Every run is kept in a file of its own, so that an interrupted
benchmark goes on where it was. Needs `pip install "speechbrain-vq[bench]"`.
"""

import functools
import json
import pathlib
import statistics
import time

import click
import torch
import vector_quantize_pytorch as rivals
from hyperpyyaml import load_hyperpyyaml
from report import save
from torch.nn.functional import l1_loss

from speechbrain_vq import VectorQuantizer, preset_path
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.replacing import replacing
from speechbrain_vq.evaluation.units import PhoneUnitCounts, pnmi
from speechbrain_vq.lobes.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    SpeakerEncoder,
)
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.nnet.losses import entropy
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
    data_root,
    prepare,
)
from speechbrain_vq.training.monitor import UsageMonitor
from speechbrain_vq.training.trainer import CodebookTrainer
from speechbrain_vq.versions import versions

HERE = pathlib.Path(__file__).parent
DIM, CHANNELS, SPEAKER, FRAMES, BATCH, LR = 64, 128, 32, 200, 16, 1e-3


class Rival(torch.nn.Module):
    """A quantizer of vector-quantize-pytorch behind our interface."""

    def __init__(self, quantizer, size):
        super().__init__()
        self.quantizer, self.size = quantizer, size

    def forward(self, x):
        out = self.quantizer(x)
        loss = out[2] if len(out) == 3 else x.new_zeros(())
        return out[0], out[1].flatten(1), loss.sum()


def rival(kind, size, **options):
    """Builds a rival for latents of 64 dimensions."""
    if kind is rivals.FSQ:
        levels = {512: [8, 8, 8], 4096: [8, 8, 8, 8], 64: [8, 8]}[size]
        return Rival(rivals.FSQ(levels=levels, dim=DIM), size)
    return Rival(kind(dim=DIM, codebook_size=size, **options), size)


VQ = rivals.VectorQuantize
RIVALS = {
    "vqp: EMA, rotation (default)": functools.partial(rival, VQ),
    "vqp: EMA, k-means, dead codes 2": functools.partial(
        rival, VQ, kmeans_init=True, threshold_ema_dead_code=2
    ),
    "vqp: learnable codebook": functools.partial(
        rival, VQ, learnable_codebook=True, ema_update=False
    ),
    "vqp: FSQ": functools.partial(rival, rivals.FSQ),
    "vqp: SimVQ": functools.partial(rival, rivals.SimVQ),
    "vqp: 8-d cosine, k-means, dead codes 2": functools.partial(
        rival,
        VQ,
        codebook_dim=8,
        use_cosine_sim=True,
        kmeans_init=True,
        threshold_ema_dead_code=2,
    ),
}


# Variants of our presets, by the arguments of the quantizer that differ.
VARIANTS = {
    "robust, denormalized": ("robust", {"denormalize": True}),
}


def build(name, size):
    """A quantizer of ours, and what hangs its trainer on an optimizer."""
    preset, changes = VARIANTS.get(name, (name, {}))
    quantizer = VectorQuantizer.from_preset(preset, DIM, size, **changes)
    with open(preset_path(preset), encoding="utf-8") as file:
        vq = load_hyperpyyaml(file)
    return quantizer, functools.partial(
        CodebookTrainer,
        lr_multiplier=vq["codebook_lr_multiplier"],
        schedule=vq["reinit_schedule"],
    )


def load(folder, cache):
    """Normalized log-mels and phones, in memory; 500 to 1000 test utterances
    at most."""
    if cache.exists():
        return torch.load(cache)
    features, data = LogMel(), {}
    for split in ("train", "test"):
        text = (folder / f"{split}.json").read_text(encoding="utf-8")
        utts = json.loads(text.replace("{data_root}", data_root(folder)))
        utts = list(utts.values())
        if split == "test":
            utts = utts[:: max(len(utts) // 500, 1)]
        wavs = [read_audio(u["wav"], 16000).unsqueeze(0) for u in utts]
        if split == "train":
            features.fit(wavs[:: max(len(wavs) // 200, 1)])
        mels = [features(w, torch.ones(1))[0][0] for w in wavs]
        data[split] = mels, [u["phones"] for u in utts]
    cache.parent.mkdir(parents=True, exist_ok=True)
    torch.save(data, cache)
    return data


def train(name, size, data, steps, seed, scale=1.0):
    """Trains one network; returns its figures on the test set."""
    torch.manual_seed(seed)
    encoder = ConvEncoder(80, DIM, CHANNELS)
    decoder = ConvDecoder(DIM, 80, SPEAKER, CHANNELS)
    speaker = SpeakerEncoder(80, SPEAKER)
    ours = name not in RIVALS
    quantizer, attach = (
        build(name, size) if ours else (RIVALS[name](size), None)
    )
    modules = torch.nn.ModuleList([encoder, decoder, speaker, quantizer])
    optimizer = torch.optim.Adam(modules.parameters(), lr=LR)
    if ours:
        attach(modules, optimizer)

    def reconstruct(x):
        ones = torch.ones(len(x))
        latents, _ = encoder(x, ones)
        out = quantizer(latents * scale)
        decoded = decoder(out[0], speaker(x, ones))
        return decoded[:, : x.shape[1]], out[1], out[2]

    draw = torch.Generator().manual_seed(seed)
    mels = [m for m in data["train"][0] if len(m) >= FRAMES // 2]
    monitor = UsageMonitor(quantizer) if ours else None
    start = time.perf_counter()
    for step in range(1, steps + 1):
        if monitor is not None and step == steps - steps // 5:
            monitor.start()
        batch = pieces(mels, draw)
        decoded, _, loss = reconstruct(batch)
        (l1_loss(decoded, batch) + loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    figures = {"seconds": seconds}
    if monitor is not None:
        figures["train_used"] = monitor.stats()["used_codes_percent"]
        monitor.close()
    modules.eval()
    return {**figures, **evaluate(reconstruct, data["test"], size)}


def pieces(mels, draw):
    """A batch of random pieces; short utterances are repeated."""
    batch = []
    for index in torch.randint(len(mels), (BATCH,), generator=draw).tolist():
        mel = mels[index]
        while len(mel) < FRAMES:
            mel = torch.cat((mel, mels[index]))
        high = len(mel) - FRAMES + 1
        start = int(torch.randint(high, (), generator=draw))
        batch.append(mel[start : start + FRAMES])
    return torch.stack(batch)


@torch.no_grad()
def evaluate(reconstruct, split, size):
    """Reconstruction, and use and phone information of the units."""
    table, error, frames = PhoneUnitCounts(size, 50.0), 0.0, 0
    counts = torch.zeros(size)
    for mel, phones in zip(*split, strict=True):
        decoded, units, _ = reconstruct(mel.unsqueeze(0))
        error += float((decoded - mel).abs().sum())
        frames += mel.numel()
        counts += torch.bincount(units[0], minlength=size)
        table.add(units[0].tolist(), phones)
    figures = {
        "tokens": int(counts.sum()),
        "used": 100 * float((counts > 0).float().mean()),
        "perplexity": float(entropy(counts).exp()),
        "l1": error / frames,
    }
    if len(table.counts()):
        figures["pnmi"] = pnmi(table.counts())
    return figures


def run(folder, name, size, data, steps, seed, scale):
    """Trains unless it has been done."""
    stem = "".join(c if c.isalnum() else "-" for c in name)
    path = folder / f"{stem}-{size}-x{scale:g}-{steps}-{seed}.json"
    if not path.exists():
        figures = train(name, size, data, steps, seed, scale)
        with replacing(path) as partial:
            partial.write_text(json.dumps(figures), encoding="utf-8")
        click.echo(f"{path.stem}: {figures}")
    return json.loads(path.read_text(encoding="utf-8"))


def spread(runs, key, form):
    """Median (least to most)."""
    values = sorted(run[key] for run in runs if key in run)
    if not values:
        return ""
    low, high = (format(v, form) for v in (values[0], values[-1]))
    middle = format(statistics.median(values), form)
    return f"{middle} ({low} to {high})" if low != high else middle


@click.command()
@click.option("--data", "folder", required=True, type=pathlib.Path)
@click.option("--name", required=True, help="Of the corpus, in the table.")
@click.option("--about", default="", help="What the corpus is.")
@click.option("--steps", default=800, show_default=True)
@click.option("--seeds", default=3, show_default=True)
@click.option("--sizes", default="512", show_default=True)
@click.option(
    "--variants",
    "--arms",
    default=None,
    help="Separated by semicolons; default: all.",
)
@click.option("--scale", default=1.0, help="Factor on the encoder's outputs.")
@click.option("--runs", default="benchmarks/runs", type=pathlib.Path)
@click.option("--out", default=None, type=pathlib.Path)
def main(folder, name, about, steps, seeds, sizes, variants, scale, runs, out):
    """Compares quantizers on a corpus and writes the table."""
    ours = ["vanilla", "vanilla_bn", "codebook_lr", "reinit", "robust"]
    ours += ["ema", "ema_bn"]
    names = variants.split(";") if variants else [*ours, *RIVALS]
    runs = runs / name
    runs.mkdir(parents=True, exist_ok=True)
    manifests = prepare(folder, runs / "manifests")
    data = load(manifests, runs / "features.pt")
    rows = []
    # Seed by seed, so that a part of the benchmark is a whole comparison.
    results = {}
    for seed in range(1, seeds + 1):
        for size in map(int, sizes.split(",")):
            for variant in names:
                figures = run(runs, variant, size, data, steps, seed, scale)
                results.setdefault((size, variant), []).append(figures)
    for (size, variant), each in results.items():
        rows.append(
            f"| {variant} | {size} | {spread(each, 'used', '.0f')} | "
            f"{spread(each, 'train_used', '.0f')} | "
            f"{spread(each, 'perplexity', '.0f')} | "
            f"{spread(each, 'l1', '.4f')} | {spread(each, 'pnmi', '.3f')} |"
        )
    minutes = sum(len(m) for m in data["train"][0]) / 6000
    tokens = next(iter(results.values()))[0]["tokens"]
    text = save(
        out or HERE / f"rivals_{name}.md",
        [
            f"# Quantizers on {name}",
            "",
            f"`python benchmarks/rivals.py --data FOLDER --name {name} --steps "
            f"{steps} --seeds {seeds} --sizes {sizes}"
            + (f" --variants '{variants}'" if variants else "")
            + (f" --scale {scale:g}`" if scale != 1 else "`"),
            "",
            f"Data: {about}.",
            "",
            f"{minutes:.0f} minutes of training speech, {steps} steps of "
            f"{BATCH} pieces of 2 s, 50 tokens a second of {DIM} dimensions, "
            f"{tokens} test tokens"
            + (f", encoder outputs times {scale:g}" if scale != 1 else "")
            + f"; median and range of {seeds} seeds. Used codes and perplexity "
            "on the test set; used in training over the last fifth of the "
            "steps (ours only). L1 of normalized log-mels.",
            "",
            "vqp is vector-quantize-pytorch. "
            + versions("vector-quantize-pytorch")
            + ".",
            "",
            "| quantizer | K | used % | used in training % | perplexity | L1 | "
            "PNMI |",
            "|---|---|---|---|---|---|---|",
            *rows,
        ],
    )
    click.echo(text)


if __name__ == "__main__":
    main()
