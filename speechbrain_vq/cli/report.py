"""Verb that writes a report on a run or a model."""

import pathlib

import click

from .common import clean_errors


@click.command()
@click.argument("source", metavar="RUN_OR_MODEL")
@click.option(
    "--compare",
    multiple=True,
    metavar="RUN_OR_MODEL",
    help="Run or model to compare with; may be repeated.",
)
@click.option(
    "--data",
    type=click.Path(exists=True, path_type=pathlib.Path),
    help="Manifest or folder of recordings; default: the test set of the run, "
    "or the example of the model.",
)
@click.option(
    "--out",
    "output",
    default="report.html",
    show_default=True,
    type=click.Path(dir_okay=False, path_type=pathlib.Path),
    help="File to write.",
)
def report(source, output, compare, data) -> None:
    """Write one HTML page to listen to, look at and compare runs."""
    from speechbrain_vq.report import write_report

    with clean_errors():
        path = write_report(source, output, compare, data)
    click.echo(f"Wrote {path}: open it in a browser.")
