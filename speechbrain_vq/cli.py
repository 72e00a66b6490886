"""The command line: every verb is one call into the package.

Authors
 * speechbrain_vq authors 2026
"""

import json
import pathlib
import subprocess
import sys

import click


@click.group()
@click.version_option(package_name="speechbrain-vq")
def main() -> None:
    """Vector-quantized bottlenecks for SpeechBrain that do not collapse."""


@main.command()
@click.option(
    "--output",
    default="results/demo",
    show_default=True,
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="Where everything goes.",
)
@click.option("--seed", default=1, show_default=True, help="Of the training.")
@click.option(
    "--steps",
    default=800,
    show_default=True,
    # The first hundred are the warm-up of `robust`.
    type=click.IntRange(min=101),
    help="Optimizer steps of each arm.",
)
@click.option(
    "--minutes",
    default=30.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Of speech made.",
)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="Write the figures here too.",
)
def demo(output, seed, steps, minutes, json_file) -> None:
    """Train the same codebook two ways on speech made here, and compare."""
    from speechbrain_vq.demo import run_demo

    try:
        figures = run_demo(output, seed, steps, minutes)
    except KeyboardInterrupt:
        raise click.ClickException(
            "Interrupted. The same command goes on from here."
        ) from None
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    if json_file is not None:
        json_file.parent.mkdir(parents=True, exist_ok=True)
        partial = json_file.with_name(json_file.name + ".partial")
        partial.write_text(json.dumps(figures, indent=2) + "\n")
        partial.replace(json_file)


@main.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
    }
)
@click.argument("recipe")
@click.pass_context
def train(context, recipe) -> None:
    """Run a recipe that came with the package, e.g. MiniSpeech/unit-discovery;
    what follows its name is handed to its train.py."""
    from speechbrain_vq.presets import recipe_path

    try:
        folder = recipe_path(f"{recipe}/train.py").parent
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    command = [sys.executable, str(folder / "train.py")]
    command += [str(folder / "hparams" / "train.yaml"), *context.args]
    sys.exit(subprocess.call(command))


@main.command()
@click.argument(
    "run_folder", type=click.Path(exists=True, path_type=pathlib.Path)
)
@click.argument("output", type=click.Path(path_type=pathlib.Path))
@click.option("--min-key", help="Lowest of this number in the meta.")
@click.option("--max-key", help="Highest of this number in the meta.")
@click.option("--force", is_flag=True, help="Weights need not be finite.")
def export(run_folder, output, min_key, max_key, force) -> None:
    """Turn the folder of a finished run into one that from_hparams loads."""
    from speechbrain_vq.hub import export_pretrained

    try:
        export_pretrained(run_folder, output, min_key, max_key, force)
    except (FileNotFoundError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Exported to {output}")
