"""Verbs that train a model."""

import json
import pathlib
import subprocess
import sys

import click

from speechbrain_vq._names import suggestion
from speechbrain_vq.dataio.atomic import atomic_write

from .common import INTERRUPTED, clean_errors, output_folder


@click.command()
@click.option(
    "--output",
    default="results/demo",
    show_default=True,
    type=output_folder,
    help="Folder for the speech, the runs and the results.",
)
@click.option(
    "--seed", default=1, show_default=True, help="Random seed of the training."
)
@click.option(
    "--steps",
    default=800,
    show_default=True,
    # The first hundred are the warm-up of `robust`.
    type=click.IntRange(min=101),
    help="Optimizer steps of each variant.",
)
@click.option(
    "--minutes",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Minutes of speech to synthesize.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="File to write the metrics to.",
)
def demo(output, seed, steps, minutes, json_file) -> None:
    """Train a codebook in two ways on synthetic speech, and compare them."""
    from speechbrain_vq.demo import run_demo

    with clean_errors(INTERRUPTED):
        metrics = run_demo(output, seed, steps, minutes)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(json_file) as partial:
            partial.write_text(json.dumps(metrics, indent=2) + "\n")


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("recipe")
@click.option(
    "--hparams",
    default="train.yaml",
    show_default=True,
    metavar="FILE",
    help="File of the recipe's hparams/ to train with.",
)
@click.pass_context
def train(context, recipe, hparams) -> None:
    """Train by a recipe, such as MiniSpeech/unit-discovery.

    All further options are passed to its train.py.
    """
    from speechbrain_vq.presets import recipe_path

    with clean_errors():
        folder = recipe_path(f"{recipe}/train.py").parent
    path = folder / "hparams" / hparams
    if not path.is_file():
        known = sorted(file.name for file in path.parent.glob("*.yaml"))
        raise click.UsageError(
            f"{recipe} has no {hparams}.{suggestion(hparams, known)} "
            f"It has {', '.join(known)}."
        )
    script = [sys.executable, str(folder / "train.py")]
    sys.exit(subprocess.call([*script, str(path), *context.args]))
