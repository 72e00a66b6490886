"""Make the paper's table for a task: train each variant with each seed by the
task's own recipe, and write medians with their ranges.

To run it:
> python benchmarks/paper_matrix.py benchmarks/paper_matrix/festvoxru.yaml \
>     --data_folder=data/festvox-ru

A run that ended is never run again, one that was stopped goes on from its last
checkpoint: the same command takes up what is left. What follows the name of
the yaml file is handed to every run. The yaml file says

* ``recipe`` and ``hparams``: what to run;
* ``variants`` and ``seeds``: how often (a variant is the name of a preset, or
  ``LABEL: {KEY: VALUE}`` with overrides of its own);
* ``columns``: which figures of the runs' results.json to show, and how;
* ``note``: what was scaled, in a sentence for the table.
"""

import csv
import json
import os
import pathlib
import shlex
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import chain

import click
from report import save
from ruamel.yaml import YAML
from tqdm import tqdm

from speechbrain_vq.dataio.replacing import replacing
from speechbrain_vq.presets import recipe_path

SPREAD = {"median": statistics.median, "least": min, "most": max}


class Matrix:
    """The runs of a task and their results.

    Arguments
    ---------
    path : path
        The yaml file.
    folder : path
        Where the runs go.
    overrides : tuple of str
        For every run, as ``--key=value``.
    only : tuple of str
        The variants to run now; all where there are none.
    """

    # Over the names of the variants.
    label = "variant"

    def __init__(self, path, folder, overrides, only=()):
        self.path, self.overrides = path, list(overrides)
        self.task = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        self.folder = folder / path.stem
        self.variants = {}
        # The keys of tasks of 0.2 and before.
        self.task.setdefault("variants", self.task.pop("arms", []))
        for variant in self.task["variants"]:
            changes = {"preset": variant} if isinstance(variant, str) else None
            label, changes = (
                (variant, changes) if changes else next(iter(variant.items()))
            )
            self.variants[label] = [f"--{k}={v}" for k, v in changes.items()]
        self.runs = [(a, s) for s in self.task["seeds"] for a in self.variants]
        if unknown := set(only) - set(self.variants):
            raise click.UsageError(
                f"{path} has no variant {', '.join(unknown)}; it has "
                f"{', '.join(self.variants)}."
            )
        self.wanted = [run for run in self.runs if not only or run[0] in only]

    def command(self, variant, seed):
        """What trains a variant with a seed."""
        recipe = recipe_path(self.task["recipe"])
        return [
            sys.executable,
            str(recipe / "train.py"),
            str(recipe / "hparams" / self.task["hparams"]),
            *self.overrides,
            *self.variants[variant],
            f"--seed={seed}",
            f"--output_folder={self.output(variant, seed)}",
        ]

    def output(self, variant, seed):
        """Where a run goes."""
        return self.folder / variant / str(seed)

    def result(self, variant, seed):
        """What a run found, None where it has not ended."""
        path = self.output(variant, seed) / "results.json"
        if not path.is_file():
            return None
        return {"versions": "unknown versions", **json.loads(path.read_text())}

    def run(self, variant, seed):
        """Trains, unless that was done before; returns whether it ended
        well."""
        output = self.output(variant, seed)
        command = self.command(variant, seed)
        output.mkdir(parents=True, exist_ok=True)
        said = output / "command.json"
        begun = [*output.glob("save/CKPT*"), *output.glob("results.json")]
        if begun and said.is_file() and json.loads(said.read_text()) != command:
            raise click.ClickException(
                f"{output} holds a run of another command: name another "
                "--results, or remove it."
            )
        said.write_text(json.dumps(command))
        if self.result(variant, seed) is not None:
            return True
        threads = {"OMP_NUM_THREADS": "1"}
        with open(output / "log.txt", "a", encoding="utf-8") as log:
            done = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**threads, **os.environ},
            )
        return done.returncode == 0 and self.result(variant, seed) is not None

    def figures(self, variant, seed, title=None):
        """What a table shows of a run, None where there is nothing."""
        return self.result(variant, seed)

    def found(self, title=None):
        """What a table shows of the runs of each variant that has any."""
        found = {
            variant: [
                figures
                for seed in self.task["seeds"]
                if (figures := self.figures(variant, seed, title))
            ]
            for variant in self.variants
        }
        return {variant: runs for variant, runs in found.items() if runs}

    def heading(self):
        """What all tables have in common, as lines of Markdown."""
        results = [self.result(*run) for run in self.runs]
        # What was not trained took none.
        steps = {result["steps"] for result in results if result} - {0}
        made = {result["versions"] for result in results if result}
        said = " or ".join(map(str, sorted(steps))) or "no"
        command = ["python", sys.argv[0], str(self.path), *self.overrides]
        return [
            f"# {self.task['title']}",
            "",
            f"`{shlex.join(command)}`",
            "",
            " ".join(self.task["note"].split())
            + f" Medians (ranges) over seeds; {said} optimizer steps.",
            "",
            f"{' or '.join(sorted(made))}.",
        ]

    def table(self, title=None):
        """A table, as lines of Markdown."""
        columns = self.task["columns"]
        titles = (column["title"] for column in columns.values())
        header = [self.label, *titles, "seeds"]
        yield f"| {' | '.join(header)} |"
        yield "|" + "---|" * len(header)
        for variant, runs in self.found(title).items():
            cells = (spread(runs, *one) for one in columns.items())
            yield f"| {' | '.join([variant, *cells, str(len(runs))])} |"

    def write(self, stem):
        """Writes the table as Markdown and CSV, and a plot."""
        picture = f"![Each run]({stem.name}.png)"
        lines = [*self.heading(), "", *self.table(), "", picture]
        text = save(stem.with_suffix(".md"), lines)
        save_csv(stem.with_suffix(".csv"), self.entries())
        with replacing(stem.with_suffix(".png")) as path:
            self.plot(path)
        return text

    def entries(self):
        """The rows of the CSV: each run, and after those of a variant their
        median and their range."""
        names = ["steps", *self.task["columns"]]
        told = [self.task["title"], shlex.join(self.overrides)]
        yield ["task", "options", "variant", "seed", *names, "versions"]

        def cells(runs, function):
            values = (scaled(runs, name, {}) for name in names)
            return [function(known) if known else None for known in values]

        for variant in self.variants:
            runs = {s: self.result(variant, s) for s in self.task["seeds"]}
            runs = {seed: run for seed, run in runs.items() if run}
            if not runs:
                continue
            for seed, run in runs.items():
                values = cells([run], min)
                yield [*told, variant, seed, *values, run["versions"]]
            for said, function in SPREAD.items():
                values = cells(runs.values(), function)
                yield [*told, variant, said, *values, ""]

    def plot(self, path):
        """Draws a dot for each run, a bar at each median."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        columns = self.task["columns"]
        found = self.found()
        figure, axes = pyplot.subplots(
            1,
            len(columns),
            figsize=(3 * len(columns) + 1, 0.35 * len(found) + 1),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, column) in zip(axes[0], columns.items(), strict=True):
            for row, runs in enumerate(found.values()):
                values = scaled(runs, name, column)
                axis.plot(values, [row] * len(values), "o", alpha=0.6)
                if values:
                    axis.plot(statistics.median(values), row, "k|", ms=14)
            axis.set_title(column["title"], fontsize="medium")
            axis.grid(axis="x", alpha=0.3)
        axes[0][0].set_yticks(range(len(found)), found)
        axes[0][0].invert_yaxis()
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def scaled(runs, name, column):
    """A figure of some runs as a table shows it; where there are many
    codebooks that of the first."""
    names = (name, f"{name}_codebook_1")
    values = (
        next((run[n] for n in names if run.get(n) is not None), None)
        for run in runs
    )
    scale = column.get("scale", 1)
    return [value * scale for value in values if value is not None]


def spread(runs, name, column):
    """The median of a figure and its range, as text."""
    values = scaled(runs, name, column)
    if not values:
        return ""
    middle, low, high = (
        format(function(values), column["format"])
        for function in SPREAD.values()
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def save_csv(path, entries):
    """Writes the rows of a CSV."""
    with (
        replacing(path) as partial,
        open(partial, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(entries)


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument(
    "task", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
)
@click.argument("overrides", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "--results",
    default="results/matrix",
    show_default=True,
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Where the runs go.",
)
@click.option(
    "--jobs",
    default=os.cpu_count(),
    type=click.IntRange(min=1),
    show_default="number of cores",
    help="Runs at the same time, each on one thread.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="VARIANT",
    help="A variant to run now, may be repeated; default: all of them.",
)
def main(task, overrides, results, jobs, only):
    """Runs what is left of a table and writes it beside its yaml file."""
    if find_spec("matplotlib") is None:
        raise click.ClickException(
            'It draws with matplotlib: pip install "speechbrain-vq[report]".'
        )
    matrix = Matrix(task, results, overrides, only)
    failed = []
    # The first run prepares the data for all.
    first, *others = matrix.wanted
    with (
        tqdm(total=len(matrix.wanted), unit="run") as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        ended = chain(
            [matrix.run(*first)],
            pool.map(lambda run: matrix.run(*run), others),
        )
        for run, well in zip(matrix.wanted, ended, strict=True):
            bar.update()
            if not well:
                failed.append(run)
                bar.write(f"{matrix.output(*run)} failed: see its log.txt")
            if matrix.found():
                text = matrix.write(task.with_suffix(""))
    if matrix.found():
        click.echo(text)
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed.")


if __name__ == "__main__":
    main()
