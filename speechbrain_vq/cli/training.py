"""Verbs that train a model."""

import logging
import pathlib
import re
import runpy
import sys
from difflib import get_close_matches
from importlib.util import find_spec

import click

from speechbrain_vq._names import suggestion
from speechbrain_vq.dataio.manifests import write_json
from speechbrain_vq.recipe_arguments import format_option, parse_arguments
from speechbrain_vq.recipe_files import (
    folder_recipe,
    recipe_names,
    recipe_path,
    recipe_yaml,
)

from .common import loading, output_file, output_folder

DEMO = pathlib.Path("results/demo")


@click.command()
@click.option(
    "--out",
    type=output_folder,
    help=f"Folder for the corpus, runs and results; default: {DEMO}.",
)
@click.option(
    "--output", type=output_folder, hidden=True, help="Former name of --out."
)
@click.option(
    "--seed", default=1, show_default=True, help="Random seed of the training."
)
@click.option(
    "--steps",
    default=800,
    show_default=True,
    metavar="N",
    # The warm-up of the preset `robust` takes 100 steps.
    type=click.IntRange(min=101),
    help="Number of optimizer steps per preset.",
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
    type=output_file,
    help="JSON file to write the metrics to.",
)
def demo(out, output, seed, steps, minutes, json_file) -> None:
    """Train a vanilla and a robust codebook on synthetic speech."""
    with loading():
        from speechbrain_vq.demo import run_demo

    metrics = run_demo(out or output or DEMO, seed, steps, minutes)
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        write_json(json_file, metrics, indent=2)


@click.command(
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True}
)
@click.argument("source", metavar="FOLDER|RECIPE")
@click.option(
    "--recipe",
    default="units",
    show_default=True,
    metavar="NAME",
    help="Recipe for a FOLDER: units, codec or voices.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help="Preset of the quantizer (see `list`); default: the recipe's.",
)
@click.option(
    "--steps",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of optimizer steps; default: the recipe's, or based on the "
    "amount of audio in FOLDER.",
)
@click.option(
    "--logger",
    type=click.Choice(["file", "tensorboard", "wandb"]),
    help="Logger of metrics, samples and hyperparameters; default: file.",
)
@click.option(
    "--config",
    metavar="FILE",
    help="Yaml file of hyperparameters: a path (see `config`), or the name of "
    "one of the recipe's files; default: train.yaml.",
)
@click.option(
    "--out",
    type=output_folder,
    help="Output folder of the run; default: results/FOLDER, or the recipe's.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Fail if audio in FOLDER cannot be read, instead of skipping it.",
)
@click.option("--hparams", hidden=True, help="Former name of --config.")
@click.option(
    "--output_folder",
    "--output-folder",
    type=output_folder,
    hidden=True,
    help="Former name of --out.",
)
@click.pass_context
def train(
    context,
    source,
    recipe,
    preset,
    steps,
    logger,
    config,
    out,
    strict,
    hparams,
    output_folder,
) -> None:
    """Train a model on a folder of recordings or with a recipe.

    FOLDER contains recordings in any format that libsndfile reads, with one
    subfolder per speaker if there are several. RECIPE is a name shown by
    `list`, such as MiniSpeech/unit-discovery.

    Other options override keys of the recipe's yaml file, such as
    --codebook_size=256 (see `config`), or are run options of SpeechBrain.
    """
    _check_options(context, logger)
    is_folder = _is_folder(source)
    name = folder_recipe(recipe) if is_folder else source
    yaml = recipe_yaml(name, config or hparams or "train.yaml")
    out = out or output_folder
    data = []
    if is_folder:
        folder = pathlib.Path(source).resolve()
        out = out or pathlib.Path("results", folder.name)
        data = [format_option("data_folder", pathlib.Path(source))]
        if any(re.match("--data[-_]folder\\b", arg) for arg in context.args):
            raise click.UsageError(
                f"The data is the folder {source}: leave --data_folder out, or "
                "name a recipe instead of the folder."
            )
    options = {
        "preset": preset,
        "number_of_steps": steps,
        "output_folder": out,
    }
    arguments = [
        format_option(k, v) for k, v in options.items() if v is not None
    ]
    arguments = [str(yaml), *arguments, *context.args]
    parse_arguments([*arguments, *data])
    script = recipe_path(f"{name}/train.py")
    if logger is not None:
        arguments.append(f"--logger={logger}")
    if is_folder:
        if out.resolve().is_relative_to(folder):
            raise click.UsageError(
                f"The run in {out} would be among the recordings in {source}: "
                "choose another folder with --out."
            )
        if not any(folder.iterdir()):
            raise click.UsageError(f"The folder {source} is empty.")
        arguments += ["--strict=True"] * strict
        # This script creates manifests, sets defaults, and runs the recipe.
        arguments = [str(script), source, *arguments]
        script = recipe_path("common/folder.py")
    # Hide warnings about optional packages when SpeechBrain is imported.
    errors = logging.StreamHandler()
    errors.setLevel(logging.ERROR)
    logging.basicConfig(handlers=[errors])
    with loading():
        # The slowest import in every recipe.
        import speechbrain_vq.publish.export  # noqa: F401
    sys.argv = [str(script), *arguments]
    runpy.run_path(str(script), run_name="__main__")


def _check_options(context: click.Context, logger: str | None) -> None:
    """Raise a usage error for a misspelled option, or for a logger whose
    package is not installed."""
    own = [o for p in context.command.params for o in p.opts if o[0] == "-"]
    for argument in context.args:
        name = argument.split("=")[0]
        close = get_close_matches(name, own, n=1, cutoff=0.82)
        if close:
            raise click.UsageError(
                f"No option '{name}'. Did you mean '{close[0]}'?"
            )
    if logger not in (None, "file") and find_spec(logger) is None:
        raise click.UsageError(f"--logger={logger} needs: pip install {logger}")


def _is_folder(source: str) -> bool:
    """Return whether ``source`` is a folder of recordings, not a recipe."""
    recipes = recipe_names()
    if source in recipes:
        return False
    path = pathlib.Path(source)
    if path.is_dir():
        return True
    if path.is_file():
        raise click.UsageError(
            f"'{source}' is a file: give the folder of the recordings."
        )
    siblings = [str(p) for p in path.parent.glob("*") if p.is_dir()]
    hint = suggestion(str(path), [*recipes, *siblings])
    raise click.UsageError(
        f"'{source}' is neither a folder nor a recipe.{hint} "
        "`speechbrain-vq list` shows the recipes."
    )
