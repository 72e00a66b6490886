"""Verb that writes a report on a run or a model."""

import click

from .common import (
    check_output,
    device_option,
    existing_path,
    loading,
    new_file,
    revision_option,
    ssl_encoder_option,
    vocoder_option,
)


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
    type=existing_path,
    help="Manifest or folder of recordings; default: the test set of the run, "
    "or the example of the model.",
)
@click.option(
    "--out",
    "output",
    default="report.html",
    show_default=True,
    type=new_file,
    callback=check_output,
    help="File to write.",
)
@vocoder_option
@ssl_encoder_option
@revision_option
@device_option
def report(
    source, output, compare, data, revision, device, vocoder, ssl_encoder
) -> None:
    """Write one HTML page to listen to, look at and compare runs."""
    with loading():
        from speechbrain_vq.report import write_report

    path = write_report(
        source,
        output,
        compare,
        data,
        revision=revision,
        vocoder=vocoder,
        ssl_encoder=ssl_encoder,
        run_opts={"device": device} if device else None,
    )
    click.echo(f"Wrote {path}: open it in a browser.")
