"""Comparison with other quantizers in the same network and training budget.

To run it:
> python benchmarks/rivals.py --data FOLDER --name minispeech

The network is that of recipes/MiniSpeech/unit-discovery; only the quantizer
changes. Each run is saved to its own file, so the same command resumes an
interrupted benchmark. Requires `pip install "speechbrain-vq[bench]"`.
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
from report import save, versions_line
from torch.nn.functional import l1_loss

from speechbrain_vq import VectorQuantizer, preset_path
from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.evaluation.phone_units import PhoneUnitCounts, pnmi
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

HERE = pathlib.Path(__file__).parent
DIM, CHANNELS, SPEAKER, FRAMES, BATCH, LR = 64, 128, 32, 200, 16, 1e-3


class Rival(torch.nn.Module):
    """Adapter of a vector-quantize-pytorch quantizer to our interface."""

    def __init__(self, quantizer, size):
        super().__init__()
        self.quantizer, self.size = quantizer, size

    def forward(self, x):
        out = self.quantizer(x)
        loss = out[2] if len(out) == 3 else x.new_zeros(())
        return out[0], out[1].flatten(1), loss.sum()


def rival(kind, size, **options):
    """Build a vector-quantize-pytorch quantizer of 64-d latents."""
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


# Variants of our presets: preset and changed arguments of the quantizer.
VARIANTS = {
    "robust, denormalized": ("robust", {"denormalize": True}),
}


def build(name, size):
    """Build our quantizer and the constructor of its trainer."""
    preset, changes = VARIANTS.get(name, (name, {}))
    quantizer = VectorQuantizer.from_preset(preset, DIM, size, **changes)
    with open(preset_path(preset), encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file)
    return quantizer, functools.partial(
        CodebookTrainer,
        lr_multiplier=hparams["codebook_lr_multiplier"],
        schedule=hparams["reinit_schedule"],
    )


def load(folder, cache):
    """Load normalized log-mels and phones into memory, with at most 500 to
    1000 test utterances."""
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
    """Train one network and return its metrics on the test set."""
    torch.manual_seed(seed)
    encoder = ConvEncoder(80, DIM, CHANNELS)
    decoder = ConvDecoder(DIM, 80, SPEAKER, CHANNELS)
    speaker = SpeakerEncoder(80, SPEAKER)
    ours = name not in RIVALS
    quantizer, trainer = (
        build(name, size) if ours else (RIVALS[name](size), None)
    )
    modules = torch.nn.ModuleList([encoder, decoder, speaker, quantizer])
    optimizer = torch.optim.Adam(modules.parameters(), lr=LR)
    if ours:
        trainer(modules, optimizer)

    def reconstruct(x):
        lengths = torch.ones(len(x))
        latents, _ = encoder(x, lengths)
        out = quantizer(latents * scale)
        decoded = decoder(out[0], speaker(x, lengths))
        return decoded[:, : x.shape[1]], out[1], out[2]

    generator = torch.Generator().manual_seed(seed)
    mels = [m for m in data["train"][0] if len(m) >= FRAMES // 2]
    monitor = UsageMonitor(quantizer) if ours else None
    start = time.perf_counter()
    for step in range(1, steps + 1):
        if monitor is not None and step == steps - steps // 5:
            monitor.start()
        batch = random_crops(mels, generator)
        decoded, _, loss = reconstruct(batch)
        (l1_loss(decoded, batch) + loss).backward()
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    metrics = {"seconds": seconds}
    if monitor is not None:
        metrics["train_used"] = monitor.stats()["used_codes_percent"]
        monitor.close()
    modules.eval()
    return {**metrics, **evaluate(reconstruct, data["test"], size)}


def random_crops(mels, generator):
    """Draw a batch of random crops; short utterances are repeated."""
    batch = []
    indices = torch.randint(len(mels), (BATCH,), generator=generator)
    for index in indices.tolist():
        mel = mels[index]
        while len(mel) < FRAMES:
            mel = torch.cat((mel, mels[index]))
        num_starts = len(mel) - FRAMES + 1
        start = int(torch.randint(num_starts, (), generator=generator))
        batch.append(mel[start : start + FRAMES])
    return torch.stack(batch)


@torch.no_grad()
def evaluate(reconstruct, split, size):
    """Compute reconstruction error, code usage and phone information."""
    table, error, frames = PhoneUnitCounts(size, 50.0), 0.0, 0
    counts = torch.zeros(size)
    for mel, phones in zip(*split, strict=True):
        decoded, units, _ = reconstruct(mel.unsqueeze(0))
        error += float((decoded - mel).abs().sum())
        frames += mel.numel()
        counts += torch.bincount(units[0], minlength=size)
        table.add(units[0].tolist(), phones)
    metrics = {
        "tokens": int(counts.sum()),
        "used": 100 * float((counts > 0).float().mean()),
        "perplexity": float(entropy(counts).exp()),
        "l1": error / frames,
    }
    if len(table.counts()):
        metrics["pnmi"] = pnmi(table.counts())
    return metrics


def run(folder, name, size, data, steps, seed, scale):
    """Train a network unless its metrics are saved, and return them."""
    stem = "".join(c if c.isalnum() else "-" for c in name)
    path = folder / f"{stem}-{size}-x{scale:g}-{steps}-{seed}.json"
    if not path.exists():
        metrics = train(name, size, data, steps, seed, scale)
        with atomic_write(path) as partial:
            partial.write_text(json.dumps(metrics), encoding="utf-8")
        click.echo(f"{path.stem}: {metrics}")
    return json.loads(path.read_text(encoding="utf-8"))


def spread(runs, key, format_spec):
    """Format the median of a metric and its range."""
    values = sorted(run[key] for run in runs if key in run)
    if not values:
        return ""
    low, high = (format(v, format_spec) for v in (values[0], values[-1]))
    middle = format(statistics.median(values), format_spec)
    return f"{middle} ({low} to {high})" if low != high else middle


@click.command()
@click.option(
    "--data",
    "folder",
    required=True,
    type=pathlib.Path,
    help="Folder of the corpus.",
)
@click.option("--name", required=True, help="Name of the corpus.")
@click.option("--about", default="", help="Description of the corpus.")
@click.option(
    "--steps", default=800, show_default=True, help="Training steps per run."
)
@click.option(
    "--seeds", default=3, show_default=True, help="Number of seeds, from 1."
)
@click.option(
    "--sizes",
    default="512",
    show_default=True,
    help="Codebook sizes, separated by commas.",
)
@click.option(
    "--variants",
    "--arms",
    default=None,
    help="Quantizer variants, separated by semicolons; default: all.",
)
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    help="Factor on the encoder's outputs.",
)
@click.option(
    "--runs",
    default="benchmarks/runs",
    show_default=True,
    type=pathlib.Path,
    help="Folder of the saved runs.",
)
@click.option(
    "--out",
    default=None,
    type=pathlib.Path,
    help="Page to write; default: rivals_NAME.md beside this script.",
)
def main(folder, name, about, steps, seeds, sizes, variants, scale, runs, out):
    """Compare quantizers on a corpus and write the table."""
    ours = ["vanilla", "vanilla_bn", "codebook_lr", "reinit", "robust"]
    ours += ["ema", "ema_bn"]
    names = variants.split(";") if variants else [*ours, *RIVALS]
    runs = runs / name
    runs.mkdir(parents=True, exist_ok=True)
    manifests = prepare(folder, runs / "manifests")
    data = load(manifests, runs / "features.pt")
    rows = []
    # Seeds come first, so that an interrupted benchmark compares all variants.
    results = {}
    for seed in range(1, seeds + 1):
        for size in map(int, sizes.split(",")):
            for variant in names:
                metrics = run(runs, variant, size, data, steps, seed, scale)
                results.setdefault((size, variant), []).append(metrics)
    for (size, variant), metrics in results.items():
        rows.append(
            f"| {variant} | {size} | {spread(metrics, 'used', '.0f')} | "
            f"{spread(metrics, 'train_used', '.0f')} | "
            f"{spread(metrics, 'perplexity', '.0f')} | "
            f"{spread(metrics, 'l1', '.4f')} | "
            f"{spread(metrics, 'pnmi', '.3f')} |"
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
            f"{BATCH} crops of 2 s, 50 tokens a second of {DIM} dimensions, "
            f"{tokens} test tokens"
            + (f", encoder outputs times {scale:g}" if scale != 1 else "")
            + f"; median and range of {seeds} seeds. Used codes and perplexity "
            "on the test set; used in training over the last fifth of the "
            "steps (ours only). L1 of normalized log-mels.",
            "",
            "vqp is vector-quantize-pytorch. "
            + versions_line("vector-quantize-pytorch"),
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
