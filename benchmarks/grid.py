"""Measure the robustness of quantizers to changes of one setting at a time.

To run it:
> python benchmarks/grid.py --data recorded=FOLDER --out benchmarks/grid

Every method is trained in the network of recipes/MiniSpeech/unit-discovery with
base settings, and in cells that each change one setting. A finished cell adds a
line to ``OUT.jsonl``, so the same command resumes an interrupted benchmark. The
page ``OUT.md`` is written from all lines. Requires
`pip install "speechbrain-vq[bench]"`, and for the rows encodec and moshi
`pip install --no-deps encodec moshi`.
"""

import collections
import functools
import importlib
import json
import pathlib
import statistics
import time

import click
import torch
import vector_quantize_pytorch as vqp
from report import append_line, read_lines, save, versions_line

from speechbrain_vq import CodebookTrainer, VectorQuantizer
from speechbrain_vq._names import unknown_name
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.evaluation.phone_units import PhoneUnitCounts, pnmi_within
from speechbrain_vq.lobes.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    SpeakerEncoder,
    WindowPredictor,
    normalize_utterances,
    stack_frames,
    utterance_moments,
)
from speechbrain_vq.lobes.features import LogMel
from speechbrain_vq.nnet import kmeans, nearest
from speechbrain_vq.nnet.losses import entropy
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
    data_root,
    prepare,
)
from speechbrain_vq.versions import versions

# Metrics, with -1 if higher is better.
METRICS = {"used": -1, "perplexity": -1, "l1": 1, "pnmi": -1}
# Metrics of a run that ended without codes.
NOTHING = {"used": 0, "perplexity": 1.0, "l1": 999.0, "pnmi": 1e-9}

DIM, CHANNELS, SPEAKER, MELS, STRIDE, RATE = 64, 64, 32, 80, 2, 50.0

BASE = {
    "task": "recorded",
    "size": 512,  # Codebook size
    "lr": 1e-3,
    "scale": 1.0,  # Factor on the encoder output
    "pieces": 16,  # Pieces per batch
    "frames": 200,  # Frames per piece, two per token
    "silence": 0.0,  # Fraction of pieces that are silent
    "padding": 0.0,  # Fraction of each piece that is padding
    "steps": 250,
}
CELLS = {
    "base": {},
    "K 64": {"size": 64},
    "K 4096": {"size": 4096},
    "K 16384": {"size": 16384},
    "lr x 1/4": {"lr": 2.5e-4},
    "lr x 4": {"lr": 4e-3},
    "lr x 10": {"lr": 1e-2},
    "scale 0.01": {"scale": 0.01},
    "scale 100": {"scale": 100.0},
    "50 tokens": {"pieces": 2, "frames": 50},
    "6400 tokens": {"pieces": 64},
    "silence 70%": {"silence": 0.7},
    "padding 80%": {"padding": 0.8},
    "80 steps": {"steps": 80},
    "1000 steps": {"steps": 1000},
    "10000 steps": {"steps": 10000},
    "festvox-ru": {"task": "festvox-ru"},
    "minispeech": {"task": "minispeech"},
}
# Cells that run with only one seed, because they take longest.
LONG = {"K 16384", "10000 steps"}


class Network(torch.nn.Module):
    """Autoencoder of utterance-normalized log-mels with a quantizer."""

    def __init__(self, quantizer, scale, window_weight=0.0):
        super().__init__()
        self.quantizer, self.scale = quantizer, scale
        self.window_weight = window_weight
        self.encoder = ConvEncoder(
            MELS, DIM, CHANNELS, STRIDE, utterance_norm=True, linear=True
        )
        self.speaker = SpeakerEncoder(MELS, SPEAKER, moments=True)
        self.decoder = ConvDecoder(
            DIM, MELS, SPEAKER, CHANNELS, STRIDE, linear=True, moments=True
        )
        if window_weight:
            self.window = WindowPredictor(DIM, MELS, STRIDE)

    def forward(self, mels, lengths, moments):
        latents, token_lengths = self.encoder(mels, lengths, moments)
        quantized, codes, loss = self.quantizer(
            latents * self.scale, token_lengths
        )[:3]
        if self.training and self.window_weight:
            x = normalize_utterances(mels, lengths, moments)
            window_error = self.window(quantized, x, lengths)
            loss = loss + self.window_weight * window_error
        speaker = self.speaker(mels, lengths, moments)
        decoded = self.decoder(quantized, speaker, token_lengths)
        error, number = self.decoder.errors(decoded, mels, lengths)
        return error, number, codes, loss


class Vqp(torch.nn.Module):
    """Adapter from a vector-quantize-pytorch quantizer to our interface."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x, lengths):
        options = {}
        # Its commitment loss does not support a mask with a projection.
        takes_mask = isinstance(self.quantizer, vqp.VectorQuantize) and (
            isinstance(self.quantizer.project_in, torch.nn.Identity)
        )
        if takes_mask and (lengths < 1).any():
            frames = torch.round(lengths * x.shape[1]).unsqueeze(1)
            options["mask"] = torch.arange(x.shape[1]) < frames
        out = self.quantizer(x, **options)
        loss = out[2].sum() if len(out) == 3 else x.new_zeros(())
        return out[0], out[1].flatten(1), loss


class ChannelFirst(torch.nn.Module):
    """Adapter from the channel-first quantizers of encodec and moshi."""

    def __init__(self, library, size):
        super().__init__()
        module = importlib.import_module(f"{library}.quantization.core_vq")
        self.quantizer = module.VectorQuantization(DIM, size)

    def forward(self, x, lengths):
        quantized, codes, loss = self.quantizer(x.transpose(1, 2))[:3]
        return quantized.transpose(1, 2), codes, loss.sum()


def fsq(size):
    """Build FSQ with ``size`` codes, and levels as its authors propose."""
    levels = {
        64: [8, 8],
        512: [8, 8, 8],
        4096: [8, 8, 8, 8],
        16384: [8, 8, 8, 6, 5],
    }[size]
    return Vqp(vqp.FSQ(levels=levels, dim=DIM))


def preset(name, changes, size, total_steps):
    """Build a preset's quantizer and the constructor of its trainer."""
    quantizer = VectorQuantizer.from_preset(name, DIM, size, **changes)
    return quantizer, functools.partial(
        CodebookTrainer, total_steps=total_steps
    )


# Weight of the window predictor, an auxiliary task for unit discovery.
WINDOW = {"robust, window predictor": 0.3}
BEFORE = {"entropy_weight": 0.0}
DEAD = {"kmeans_init": True, "threshold_ema_dead_code": 2}
# robust without the entropy loss that it has now, and variants of it.
VARIANTS = {
    "no entropy": BEFORE,
    "window predictor": BEFORE,
    "denormalized": {**BEFORE, "denormalize": True},
    "running norm": {**BEFORE, "norm": "running"},
    "batch norm": {**BEFORE, "norm": "batch"},
}
METHODS = {
    **{
        name: functools.partial(preset, name, {})
        for name in ("paper", "robust", "diveq")
    },
    **{
        f"robust, {name}": functools.partial(preset, "robust", changes)
        for name, changes in VARIANTS.items()
    },
    **{
        name: functools.partial(preset, name, {})
        for name in ("cosine", "fsq", "lfq", "simvq", "vanilla", "ema_bn")
    },
    "vqp: EMA (default)": {},
    "vqp: EMA, k-means, dead codes": DEAD,
    "vqp: 8-d cosine, k-means, dead codes": {
        **DEAD,
        "codebook_dim": 8,
        "use_cosine_sim": True,
    },
    "vqp: FSQ": fsq,
    "vqp: SimVQ": lambda size: Vqp(vqp.SimVQ(dim=DIM, codebook_size=size)),
    "encodec": lambda size: ChannelFirst("encodec", size),
    "moshi": lambda size: ChannelFirst("moshi", size),
}


def build(method, size, steps):
    """Build a method's quantizer and its trainer's constructor, or None."""
    recipe = METHODS[method]
    if isinstance(recipe, dict):
        quantizer = vqp.VectorQuantize(dim=DIM, codebook_size=size, **recipe)
        return Vqp(quantizer), None
    if isinstance(recipe, functools.partial):
        return recipe(size=size, total_steps=steps)
    return recipe(size), None


def load(folder, cache):
    """Load log-mels, their moments, phones and languages into memory."""
    if cache.exists():
        return torch.load(cache)
    manifests = prepare(folder, cache.with_suffix(""))
    features, data = LogMel(), {}
    for split in ("train", "valid", "test"):
        text = (manifests / f"{split}.json").read_text(encoding="utf-8")
        utts = json.loads(text.replace("{data_root}", data_root(manifests)))
        wavs = [read_audio(u["wav"], 16000) for u in utts.values()]
        wavs = [wav.unsqueeze(0) for wav in wavs]
        if split == "train":
            features.fit(wavs[:: max(len(wavs) // 200, 1)])
        mels = [features(w, torch.ones(1))[0] for w in wavs]
        data[split] = {
            "mels": [m[0] for m in mels],
            "moments": [utterance_moments(m, torch.ones(1)) for m in mels],
            "phones": [u["phones"] for u in utts.values()],
            "langs": [u.get("lang", "") for u in utts.values()],
        }
    torch.save(data, cache)
    return data


def draw_batch(data, config, generator):
    """Draw pieces [B, T, C], relative lengths and the utterances' moments."""
    frames, pieces, moments = config["frames"], [], []
    for _ in range(config["pieces"]):
        index = int(torch.randint(len(data["mels"]), (), generator=generator))
        mel = data["mels"][index]
        if len(mel) < frames:
            mel = mel.repeat(-(-frames // len(mel)), 1)
        last = len(mel) - frames + 1
        start = int(torch.randint(last, (), generator=generator))
        piece = mel[start : start + frames]
        if torch.rand((), generator=generator) < config["silence"]:
            noise = torch.randn(piece.shape, generator=generator)
            piece = mel.quantile(0.05, dim=0) + 0.1 * noise
        pieces.append(piece)
        moments.append(data["moments"][index])
    mean, std = (torch.cat(m) for m in zip(*moments, strict=True))
    lengths = torch.full((len(pieces),), 1 - config["padding"])
    valid = torch.arange(frames) < torch.round(lengths[0] * frames)
    return torch.stack(pieces) * valid.unsqueeze(1), lengths, (mean, std)


def train(method, config, data, seed):
    """Train a network with a method, and return it."""
    torch.manual_seed(seed)
    steps = config["steps"]
    quantizer, trainer = build(method, config["size"], steps)
    network = Network(quantizer, config["scale"], WINDOW.get(method, 0.0))
    optimizer = torch.optim.Adam(network.parameters(), lr=config["lr"])
    if trainer is not None:
        trainer(network, optimizer)
    # Constant over the first half of the run, then linear decay to zero.
    annealed = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, 2 * (1 - step / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = draw_batch(data["train"], config, generator)
        error, number, _, loss = network(*batch)
        (error / number + loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        annealed.step()
    return network.eval()


@torch.no_grad()
def evaluate(network, split, size):
    """Compute reconstruction error, codebook usage and PNMI."""
    error, number, counts = 0.0, 0, torch.zeros(size)
    tables = {}
    for mel, moments, phones, lang in zip(
        *(split[k] for k in ("mels", "moments", "phones", "langs")),
        strict=True,
    ):
        utterance_error, values, codes, _ = network(
            mel.unsqueeze(0), torch.ones(1), moments
        )
        error += float(utterance_error)
        number += int(values)
        codes = codes.flatten()
        if (codes < 0).any():  # Still in the warm-up
            return {"tokens": len(codes), **dict.fromkeys(METRICS)}
        counts += torch.bincount(codes, minlength=size)
        table = tables.setdefault(lang, PhoneUnitCounts(size, RATE))
        table.add(codes.tolist(), phones)
    return {
        "tokens": int(counts.sum()),
        "used": int((counts > 0).sum()),
        "perplexity": float(entropy(counts).exp()),
        "l1": error / number,
        "pnmi": pnmi_within(t.counts() for t in tables.values() if t.phones),
    }


class LogMelKMeans(torch.nn.Module):
    """K-means of pairs of normalized log-mel frames, without a network."""

    def __init__(self, data, size, seed):
        super().__init__()
        pairs = torch.cat(
            [
                self._pairs(mel.unsqueeze(0), moments)[0, : len(mel) // STRIDE]
                for mel, moments in zip(
                    data["mels"], data["moments"], strict=True
                )
            ]
        )
        generator = torch.Generator().manual_seed(seed)
        sample = torch.randperm(len(pairs), generator=generator)[:40960]
        self.centroids = kmeans(
            pairs[sample], size, generator=generator
        ).centroids

    @staticmethod
    def _pairs(mels, moments):
        x = normalize_utterances(mels, torch.ones(len(mels)), moments)
        return stack_frames(x, STRIDE)

    def forward(self, mels, lengths, moments):
        codes = nearest(self._pairs(mels, moments), self.centroids)
        mean, std = (m.unsqueeze(1) for m in moments)
        decoded = self.centroids[codes].reshape(1, -1, MELS)
        decoded = decoded[:, : mels.shape[1]] * std + mean
        return (decoded - mels).abs().sum(), mels.numel(), codes, None


LOGMEL = "k-means of log-mels"


def run(method, cell, config, seed, data, split):
    """Train and evaluate a method in a cell; return the line to record."""
    start = time.perf_counter()
    if method == LOGMEL:
        network = LogMelKMeans(data["train"], config["size"], seed)
    else:
        network = train(method, config, data, seed)
    seconds = time.perf_counter() - start
    library = [method] if method in ("encodec", "moshi") else []
    metrics = evaluate(network, data[split], config["size"])
    return {
        "method": method,
        "cell": cell,
        "seed": seed,
        "split": split,
        **config,
        **metrics,
        "seconds": round(seconds, 1),
        "versions": versions("vector-quantize-pytorch", *library),
    }


def medians(lines):
    """Group lines by cell and method; also return all methods and the medians."""
    cells, methods = {}, []
    for line in lines:
        if line["used"] is None:
            line = {**line, **NOTHING}
        key = line["cell"], line["method"]
        cells.setdefault(key, []).append(line)
        if line["method"] not in methods:
            methods.append(line["method"])
    median = {
        key: {m: statistics.median(r[m] for r in runs) for m in METRICS}
        for key, runs in cells.items()
    }
    return cells, methods, median


def compared(methods, median):
    """Select methods that ran in at least half of the cells, except variants of
    the default, and the cells in which all of them ran."""
    number = collections.Counter(method for _, method in median)
    half = max(number.values()) / 2
    methods = [
        m
        for m in methods
        if m != LOGMEL and "robust," not in m and number[m] >= half
    ]
    names = [c for c in CELLS if all((c, m) in median for m in methods)]
    return methods, names


def plot(lines, path):
    """Plot each method's PNMI and L1 in each cell, relative to the best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, methods, median = medians(lines)
    methods, names = compared(methods, median)
    size = max(7, 3 + len(names)), 1.6 + 0.34 * len(methods)
    figure, axes = pyplot.subplots(
        1, 2, figsize=size, sharey=True, layout="tight"
    )
    for axis, (key, title) in zip(
        axes,
        [("pnmi", "phone information"), ("l1", "reconstruction")],
        strict=True,
    ):
        ratios = []
        for method in methods:
            row = []
            for cell in names:
                values = [median[cell, m][key] for m in methods]
                value = median[cell, method][key]
                lower = key == "l1"
                ratio = min(values) / value if lower else value / max(values)
                row.append(100 * ratio)
            ratios.append(row)
        axis.imshow(ratios, vmin=50, vmax=100, cmap="viridis", aspect="auto")
        for y, row in enumerate(ratios):
            for x, value in enumerate(row):
                color = "black" if value > 75 else "white"
                axis.text(
                    x, y, f"{value:.0f}", ha="center", va="center", color=color
                )
        axis.set_title(title)
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.set_yticks(range(len(methods)), methods)
    figure.suptitle("512 codes by default: % of the best method in a cell")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def summarize(lines):
    """Tabulate medians by cell, and each method's ranks and worst cells."""
    cells, methods, median = medians(lines)
    trained, names = compared(methods, median)
    ranks = {m: {k: [] for k in METRICS} for m in trained}
    collapsed, worst = {m: [] for m in trained}, {}
    for cell in names:
        in_cell = {m: median[cell, m] for m in trained}
        best = {
            k: min(sign * v[k] for v in in_cell.values()) * sign
            for k, sign in METRICS.items()
        }
        for method, values in in_cell.items():
            for key, sign in METRICS.items():
                cost = sign * values[key]
                better = [sign * v[key] < cost for v in in_cell.values()]
                ranks[method][key].append(1 + sum(better))
            line = cells[cell, method][0]
            few = values["used"] < 0.1 * min(line["size"], line["tokens"])
            if few or values["pnmi"] < best["pnmi"] / 2:
                collapsed[method].append(cell)
            ratio = max(
                values["l1"] / best["l1"], best["pnmi"] / values["pnmi"]
            )
            worst[method] = max(worst.get(method, (0, "")), (ratio, cell))
    page = [
        "| method | cells | collapsed | worst cell (ratio to the best) | "
        "rank of used | of perplexity | of L1 | of PNMI |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for method in trained:
        ratio, cell = worst[method]
        ratio = f"{ratio:.2f}" if ratio < 100 else "no codes"
        page.append(
            f"| {method} | {len(names)} | "
            f"{', '.join(collapsed[method]) or 'none'} | {cell} ({ratio}) | "
            + " | ".join(
                f"{statistics.median(ranks[method][k]):g}" for k in METRICS
            )
            + " |"
        )
    for key, form in (
        ("used", ".0f"),
        ("perplexity", ".0f"),
        ("l1", ".4f"),
        ("pnmi", ".3f"),
    ):
        page += ["", f"## {key}", "", "| cell | " + " | ".join(methods) + " |"]
        page.append("|---" * (len(methods) + 1) + "|")
        for cell in CELLS:
            if not any((cell, method) in cells for method in methods):
                continue
            row = []
            for method in methods:
                runs = cells.get((cell, method))
                row.append(
                    _spread([r[key] for r in runs], form) if runs else ""
                )
            page.append(f"| {cell} | " + " | ".join(row) + " |")
    return page


def _spread(values, form):
    """Format a median, with the range if there are several values."""
    middle = format(statistics.median(values), form)
    if len(values) == 1:
        return middle
    return f"{middle} ({min(values):{form}} to {max(values):{form}})"


def listed(kind, known):
    """Return the callback of an option that lists known names."""

    def names(context, parameter, value):
        chosen = value.split(";") if value else list(known)
        for name in chosen:
            if name not in known:
                raise click.BadParameter(unknown_name(kind, name, known))
        return chosen

    return names


@click.command()
@click.option(
    "--data",
    "corpora",
    multiple=True,
    metavar="NAME=FOLDER",
    help="Corpus of a task; repeatable.",
)
@click.option(
    "--task",
    default="recorded",
    show_default=True,
    help="Task of cells that do not name one.",
)
@click.option(
    "--about", default="", help="Description of the corpus, for the page."
)
@click.option(
    "--cells",
    callback=listed("cell", CELLS),
    help="Cells, separated by semicolons; all by default.",
)
@click.option(
    "--methods",
    callback=listed("method", [LOGMEL, *METHODS]),
    help="Methods, separated by semicolons; all by default.",
)
@click.option("--seeds", default=3, show_default=True, help="Number of seeds.")
@click.option(
    "--split", default="test", show_default=True, help="Split to evaluate on."
)
@click.option(
    "--cache",
    default="benchmarks/runs",
    show_default=True,
    type=pathlib.Path,
    help="Folder for computed features.",
)
@click.option(
    "--out",
    default="benchmarks/grid",
    show_default=True,
    type=pathlib.Path,
    help="Path of the lines and the page, without suffix.",
)
def main(corpora, task, about, cells, methods, seeds, split, cache, out):
    """Train the methods in the cells, and write the lines and the page."""
    cache.mkdir(parents=True, exist_ok=True)
    data = {}
    for pair in corpora:
        name, _, folder = pair.partition("=")
        data[name] = load(pathlib.Path(folder), cache / f"{name}.pt")
    path = out.with_suffix(".jsonl")
    lines = read_lines(path)
    finished = {(x["method"], x["cell"], x["seed"]) for x in lines}
    for seed in range(1, seeds + 1):
        for cell in cells:
            config = {**BASE, "task": task, **CELLS[cell]}
            if config["task"] not in data or (seed > 1 and cell in LONG):
                continue
            for method in methods:
                if (method, cell, seed) in finished:
                    continue
                line = run(
                    method, cell, config, seed, data[config["task"]], split
                )
                lines.append(line)
                append_line(path, line)
                shown = ("method", "cell", "seed", *METRICS, "seconds")
                click.echo({key: line[key] for key in shown})
    recorded = sorted({line["versions"] for line in lines})
    page = summarize(lines)
    plot(lines, out.with_suffix(".png"))
    save(
        out.with_suffix(".md"),
        [
            "# Robustness grid",
            "",
            f"`python benchmarks/grid.py --data {task}=FOLDER --task {task} "
            f"--out benchmarks/{out.name}`",
            "",
            f"![Methods by cell]({out.name}.png)",
            "",
            f"{about}; 64 channels, batches of 1,600 tokens, "
            "250 steps, K = 512, learning rate 0.001, decaying to zero over "
            "the last half, unless the cell states otherwise. Medians over "
            "seeds. Collapsed: under 10 % of the reachable codes used, or a "
            "PNMI under half of the best method's. Ranks are medians over the "
            "cells. PNMI is computed within each language. Every line with its "
            f"configuration is in {out.name}.jsonl.",
            "",
            *page,
            "",
            versions_line(recorded=recorded),
        ],
    )


if __name__ == "__main__":
    main()
