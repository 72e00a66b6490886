"""Train every variant of a task with every seed, using the task's recipe, and
tabulate medians and ranges of metrics.

To run it:
> python benchmarks/paper_matrix.py benchmarks/paper_matrix/festvoxru.yaml \
>     --data_folder=data/festvox-ru

The same command resumes an interrupted table: finished runs are skipped, and
interrupted ones continue from their last checkpoint. Arguments after the yaml
file are passed to every run. Keys of the yaml file:

* ``recipe`` and ``hparams``: recipe folder and hyperparameter file;
* ``variants`` and ``seeds``: the runs (a variant is the name of a preset, or
  ``LABEL: {KEY: VALUE}`` with overrides);
* ``columns``: metrics in the runs' results.json to show, with their formats;
* ``note``: text for the page, for example about what was scaled down.
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
from report import save, versions_line
from ruamel.yaml import YAML
from tqdm import tqdm

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.recipe_files import recipe_path

# Recipe option that selects a preset
PRESET = "preset"
SPREAD = {"median": statistics.median, "least": min, "most": max}


class Matrix:
    """Runs of a task and their results.

    Arguments
    ---------
    path : path
        Yaml file of the task.
    folder : path
        Folder of the runs.
    overrides : tuple of str
        Overrides for every run, as ``--key=value``.
    only : tuple of str
        Variants to run now; all by default.
    """

    # Table heading of the column of variants.
    label = "variant"

    def __init__(self, path, folder, overrides, only=()):
        self.path, self.overrides = path, list(overrides)
        self.task = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
        self.folder = folder / path.stem
        self.variants = {}
        for variant in self.task["variants"]:
            if isinstance(variant, str):
                variant = {variant: {PRESET: variant}}
            for label, changes in variant.items():
                options = [f"--{k}={v}" for k, v in changes.items()]
                self.variants[label] = options
        self.runs = [(v, s) for s in self.task["seeds"] for v in self.variants]
        if unknown := set(only) - set(self.variants):
            raise click.UsageError(
                f"{path} has no variant {', '.join(unknown)}; it has "
                f"{', '.join(self.variants)}."
            )
        self.selected = [r for r in self.runs if not only or r[0] in only]

    def command(self, variant, seed):
        """Build the command line that trains a variant with a seed."""
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
        """Return the output folder of a run."""
        return self.folder / variant / str(seed)

    def result(self, variant, seed):
        """Read the results of a run; None if it has not finished."""
        path = self.output(variant, seed) / "results.json"
        if not path.is_file():
            return None
        return {"versions": "unknown versions", **json.loads(path.read_text())}

    def run(self, variant, seed):
        """Train a variant, unless its run has finished; return whether it
        succeeded."""
        output = self.output(variant, seed)
        command = self.command(variant, seed)
        output.mkdir(parents=True, exist_ok=True)
        record = output / "command.json"
        started = [*output.glob("save/CKPT*"), *output.glob("results.json")]
        previous = json.loads(record.read_text()) if record.is_file() else None
        if started and previous not in (None, command):
            raise click.ClickException(
                f"{output} holds a run of another command: use another "
                "--results, or remove this folder."
            )
        record.write_text(json.dumps(command))
        if self.result(variant, seed) is not None:
            return True
        threads = {"OMP_NUM_THREADS": "1"}
        with open(output / "log.txt", "a", encoding="utf-8") as log:
            process = subprocess.run(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**threads, **os.environ},
            )
        succeeded = process.returncode == 0
        return succeeded and self.result(variant, seed) is not None

    def metrics(self, variant, seed, title=None):
        """Return the metrics of a run for a table; None if there are none."""
        return self.result(variant, seed)

    def all_metrics(self, title=None):
        """Collect the metrics of all runs for a table, by variant."""
        by_variant = {
            variant: [
                metrics
                for seed in self.task["seeds"]
                if (metrics := self.metrics(variant, seed, title))
            ]
            for variant in self.variants
        }
        return {name: runs for name, runs in by_variant.items() if runs}

    def heading(self):
        """Format the title, command, note and versions of the page."""
        results = [r for run in self.runs if (r := self.result(*run))]
        # K-means of features takes no steps.
        steps = {result["steps"] for result in results} - {0}
        step_text = " or ".join(map(str, sorted(steps))) or "no"
        command = ["python", sys.argv[0], str(self.path), *self.overrides]
        return [
            f"# {self.task['title']}",
            "",
            f"`{shlex.join(command)}`",
            "",
            " ".join(self.task["note"].split())
            + f" Medians (ranges) over seeds; {step_text} optimizer steps.",
            "",
            versions_line(recorded=(result["versions"] for result in results)),
        ]

    def table(self, title=None):
        """Format a table as lines of Markdown."""
        columns = self.task["columns"]
        titles = (column["title"] for column in columns.values())
        header = [self.label, *titles, "seeds"]
        yield f"| {' | '.join(header)} |"
        yield "|" + "---|" * len(header)
        for variant, runs in self.all_metrics(title).items():
            cells = (spread(runs, *column) for column in columns.items())
            yield f"| {' | '.join([variant, *cells, str(len(runs))])} |"

    def write(self, stem):
        """Write the table as Markdown and CSV, and a plot."""
        picture = f"![Each run]({stem.name}.png)"
        lines = [*self.heading(), "", *self.table(), "", picture]
        text = save(stem.with_suffix(".md"), lines)
        save_csv(stem.with_suffix(".csv"), self.entries())
        with atomic_write(stem.with_suffix(".png")) as path:
            self.plot(path)
        return text

    def entries(self):
        """Generate the rows of the CSV: the runs of each variant, then their
        median and range."""
        names = ["steps", *self.task["columns"]]
        task = [self.task["title"], shlex.join(self.overrides)]
        yield ["task", "options", "variant", "seed", *names, "versions"]

        def cells(runs, statistic):
            columns = (scaled(runs, name, {}) for name in names)
            return [statistic(values) if values else None for values in columns]

        for variant in self.variants:
            runs = {s: self.result(variant, s) for s in self.task["seeds"]}
            runs = {seed: run for seed, run in runs.items() if run}
            if not runs:
                continue
            for seed, run in runs.items():
                values = cells([run], min)
                yield [*task, variant, seed, *values, run["versions"]]
            for name, statistic in SPREAD.items():
                values = cells(runs.values(), statistic)
                yield [*task, variant, name, *values, ""]

    def plot(self, path):
        """Plot a dot for each run and a bar at each median."""
        import matplotlib

        matplotlib.use("agg")
        from matplotlib import pyplot

        columns = self.task["columns"]
        variants = self.all_metrics()
        figure, axes = pyplot.subplots(
            1,
            len(columns),
            figsize=(3 * len(columns) + 1, 0.35 * len(variants) + 1.2),
            sharey=True,
            squeeze=False,
            layout="constrained",
        )
        for axis, (name, column) in zip(axes[0], columns.items(), strict=True):
            for row, runs in enumerate(variants.values()):
                values = scaled(runs, name, column)
                axis.plot(values, [row] * len(values), "o", c="C0", alpha=0.6)
                if values:
                    axis.plot(statistics.median(values), row, "k|", ms=14)
            better = "lower" if column.get("lower_is_better") else "higher"
            axis.set_title(
                f"{column['title']}\n{better} is better", fontsize="medium"
            )
            axis.grid(axis="x", alpha=0.3)
        axes[0][0].set_yticks(range(len(variants)), variants)
        axes[0][0].invert_yaxis()
        figure.savefig(path, dpi=110)
        pyplot.close(figure)


def scaled(runs, name, column):
    """Return the values of a metric, scaled for a table. With several codebooks,
    these are the values of the first."""
    names = (name, f"{name}_codebook_1")
    values = (
        next((run[n] for n in names if run.get(n) is not None), None)
        for run in runs
    )
    scale = column.get("scale", 1)
    return [value * scale for value in values if value is not None]


def spread(runs, name, column):
    """Format the median and range of a metric."""
    values = scaled(runs, name, column)
    if not values:
        return ""
    middle, low, high = (
        format(statistic(values), column["format"])
        for statistic in SPREAD.values()
    )
    return middle if low == high else f"{middle} ({low} to {high})"


def save_csv(path, entries):
    """Write the rows of a CSV."""
    with (
        atomic_write(path) as partial,
        open(partial, "w", newline="", encoding="utf-8") as file,
    ):
        csv.writer(file, lineterminator="\n").writerows(entries)


task_argument = click.argument(
    "task", type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path)
)
overrides_argument = click.argument(
    "overrides", nargs=-1, type=click.UNPROCESSED
)


def results_option(folder):
    """Build the option for the runs' folder, with its default."""
    return click.option(
        "--results",
        default=folder,
        show_default=True,
        type=click.Path(file_okay=False, path_type=pathlib.Path),
        help="Folder of the runs.",
    )


@click.command(context_settings={"ignore_unknown_options": True})
@task_argument
@overrides_argument
@results_option("results/matrix")
@click.option(
    "--jobs",
    default=os.cpu_count(),
    type=click.IntRange(min=1),
    show_default="number of cores",
    help="Number of parallel runs, each on one thread.",
)
@click.option(
    "--only",
    multiple=True,
    metavar="VARIANT",
    help="Variant to run now; repeatable. Default: all.",
)
def main(task, overrides, results, jobs, only):
    """Run the remaining runs of a task and write its table next to the yaml
    file."""
    if find_spec("matplotlib") is None:
        raise click.ClickException(
            "The plots require matplotlib: "
            'pip install "speechbrain-vq[report]".'
        )
    matrix = Matrix(task, results, overrides, only)
    failed = []
    # The first run goes alone, because it prepares the data for all.
    first, *others = matrix.selected
    with (
        tqdm(total=len(matrix.selected), unit="run") as bar,
        ThreadPoolExecutor(jobs) as pool,
    ):
        successes = chain(
            [matrix.run(*first)],
            pool.map(lambda run: matrix.run(*run), others),
        )
        for run, succeeded in zip(matrix.selected, successes, strict=True):
            bar.update()
            if not succeeded:
                failed.append(run)
                bar.write(f"{matrix.output(*run)} failed: see its log.txt")
            if matrix.all_metrics():
                text = matrix.write(task.with_suffix(""))
    if matrix.all_metrics():
        click.echo(text)
    if failed:
        raise click.ClickException(f"{len(failed)} runs failed.")


if __name__ == "__main__":
    main()
