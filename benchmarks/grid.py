"""Measure the robustness of quantizers to changes of one setting at a time.

To run it:
> python benchmarks/grid.py --data recorded=FOLDER --out benchmarks/grid

Every method is trained in the network of recipes/MiniSpeech/unit-discovery, or
of recipes/CIFAR10/autoencoder with one code per position, with base settings,
and in cells that each change one setting. A finished cell adds a
line to ``OUT.jsonl``, so the same command resumes an interrupted benchmark. The
page ``OUT.md`` is written from all lines. Requires
`pip install "speechbrain-vq[bench]"`, and for the rows encodec and moshi
`pip install --no-deps encodec moshi`.
"""

import collections
import functools
import importlib
import pathlib
import statistics
import time

import click
import torch
import vector_quantize_pytorch as vqp
from grid_tasks import DIM, SPEECH, TASKS, LogMelKMeans, Speech
from report import append_line, read_lines, save, versions_line

from speechbrain_vq import CodebookTrainer, VectorQuantizer
from speechbrain_vq._names import unknown_name
from speechbrain_vq.versions import versions

TITLES = {
    "used": "used",
    "perplexity": "perplexity",
    "l1": "L1",
    "pnmi": "PNMI",
}
FORMATS = {"used": ".0f", "perplexity": ".0f", "l1": ".4f", "pnmi": ".3f"}
# Metrics of a run that ended without codes.
NOTHING = {"used": 0, "perplexity": 1.0, "l1": 999.0, "pnmi": 1e-9}

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


def train(method, config, task, seed):
    """Train a network with a method, and return it."""
    torch.manual_seed(seed)
    steps = config["steps"]
    quantizer, trainer = build(method, config["size"], steps)
    network = task.network(quantizer, config, WINDOW.get(method, 0.0))
    optimizer = torch.optim.Adam(network.parameters(), lr=config["lr"])
    if trainer is not None:
        trainer(network, optimizer)
    # Constant over the first half of the run, then linear decay to zero.
    annealed = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1, 2 * (1 - step / steps))
    )
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        batch = task.batch(config, generator)
        error, number, _, loss = network(*batch)
        (error / number + loss).backward()
        optimizer.step()
        optimizer.zero_grad()
        annealed.step()
    return network.eval()


LOGMEL = "k-means of log-mels"


def run(method, cell, config, seed, task, split):
    """Train and evaluate a method in a cell; return the line to record."""
    start = time.perf_counter()
    if method == LOGMEL:
        network = LogMelKMeans(task.data["train"], config["size"], seed)
    else:
        network = train(method, config, task, seed)
    seconds = time.perf_counter() - start
    library = [method] if method in ("encodec", "moshi") else []
    metrics = task.evaluate(network, split, config["size"])
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


def metrics_of(lines):
    """Return the metrics that all lines have."""
    return {k: SPEECH[k] for k in SPEECH if all(k in x for x in lines)}


def medians(lines):
    """Group lines by cell and method; also return all methods and the medians."""
    cells, methods, metrics = {}, [], metrics_of(lines)
    for line in lines:
        if line["used"] is None:
            line = {**line, **NOTHING}
        key = line["cell"], line["method"]
        cells.setdefault(key, []).append(line)
        if line["method"] not in methods:
            methods.append(line["method"])
    median = {
        key: {m: statistics.median(r[m] for r in runs) for m in metrics}
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
    """Plot each method's PNMI, or perplexity, and L1 in each cell, relative to
    the best."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    _, methods, median = medians(lines)
    methods, names = compared(methods, median)
    size = max(7, 3 + len(names)), 1.6 + 0.34 * len(methods)
    figure, axes = pyplot.subplots(
        1, 2, figsize=size, sharey=True, layout="tight"
    )
    first = "pnmi" if "pnmi" in metrics_of(lines) else "perplexity"
    titles = {
        "pnmi": "phone information",
        "perplexity": "perplexity",
        "l1": "reconstruction",
    }
    for axis, key in zip(axes, (first, "l1"), strict=True):
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
        axis.set_title(titles[key])
        axis.set_xticks(range(len(names)), names, rotation=40, ha="right")
        axis.set_yticks(range(len(methods)), methods)
    figure.suptitle("512 codes by default: % of the best method in a cell")
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def summarize(lines):
    """Tabulate medians by cell, and each method's ranks and worst cells."""
    cells, methods, median = medians(lines)
    trained, names = compared(methods, median)
    metrics = metrics_of(lines)
    ranks = {m: {k: [] for k in metrics} for m in trained}
    collapsed, worst = {m: [] for m in trained}, {}
    for cell in names:
        in_cell = {m: median[cell, m] for m in trained}
        best = {
            k: min(sign * v[k] for v in in_cell.values()) * sign
            for k, sign in metrics.items()
        }
        for method, values in in_cell.items():
            for key, sign in metrics.items():
                cost = sign * values[key]
                better = [sign * v[key] < cost for v in in_cell.values()]
                ranks[method][key].append(1 + sum(better))
            line = cells[cell, method][0]
            few = values["used"] < 0.1 * min(line["size"], line["tokens"])
            ratios = {"l1": values["l1"] / best["l1"]}
            if "pnmi" in metrics:
                ratios["pnmi"] = best["pnmi"] / values["pnmi"]
            if few or ratios.get("pnmi", 1) > 2:
                collapsed[method].append(cell)
            ratio = max(ratios.values())
            worst[method] = max(worst.get(method, (0, "")), (ratio, cell))
    page = [
        "| method | cells | collapsed | worst cell (ratio to the best) | rank "
        + " | ".join(f"of {TITLES[key]}" for key in metrics)
        + " |",
        "|---" * (4 + len(metrics)) + "|",
    ]
    for method in trained:
        ratio, cell = worst[method]
        ratio = f"{ratio:.2f}" if ratio < 100 else "no codes"
        page.append(
            f"| {method} | {len(names)} | "
            f"{', '.join(collapsed[method]) or 'none'} | {cell} ({ratio}) | "
            + " | ".join(
                f"{statistics.median(ranks[method][k]):g}" for k in metrics
            )
            + " |"
        )
    for key in metrics:
        form = FORMATS[key]
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
        data[name] = TASKS[name](pathlib.Path(folder), cache / f"{name}.pt")
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
                needs_speech = method == LOGMEL or method in WINDOW
                if needs_speech and not isinstance(
                    data[config["task"]], Speech
                ):
                    continue
                line = run(
                    method, cell, config, seed, data[config["task"]], split
                )
                lines.append(line)
                append_line(path, line)
                shown = ("method", "cell", "seed", *SPEECH, "seconds")
                click.echo({key: line.get(key) for key in shown})
    recorded = sorted({line["versions"] for line in lines})
    has_phones = "pnmi" in metrics_of(lines)
    collapse = ", or a PNMI under half of the best method's" * has_phones
    within = "PNMI is computed within each language. " * has_phones
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
            "seeds. Collapsed: under 10 % of the reachable codes used"
            f"{collapse}. Ranks are medians over the cells. {within}Every line "
            f"with its configuration is in {out.name}.jsonl.",
            "",
            *page,
            "",
            versions_line(recorded=recorded),
        ],
    )


if __name__ == "__main__":
    main()
