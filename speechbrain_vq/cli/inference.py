"""Verbs that use a pretrained model."""

import os
import sys

import click

from .common import (
    INTERRUPTED,
    ExistingPath,
    clean_errors,
    engine_option,
    loading,
    model_options,
    open_engine,
    output_path,
)


def files_options(command):
    """Add the arguments and options of all verbs that process files."""
    command = click.option(
        "--overwrite",
        is_flag=True,
        help="Overwrite existing output instead of resuming.",
    )(command)
    command = click.option(
        "--model",
        "source",
        default="speech",
        show_default=True,
        metavar="FOLDER|NAME|ORG/NAME",
        help="Model: a folder, the name of a bundled model (see `list`), or a "
        "repository on the Hub.",
    )(command)
    return click.argument(
        "places",
        nargs=-1,
        required=True,
        metavar="FILES...",
        type=ExistingPath(),
    )(command)


@click.command()
@files_options
@model_options("revision", "device", "ssl_encoder", "num_codebooks", "dtype")
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with status 1 if any file was left out.",
)
@click.option(
    "--out",
    required=True,
    type=output_path,
    help="Output: NAME.jsonl, NAME.npz, or a folder for a data set (with "
    "--engine=ray, for Parquet shards).",
)
@engine_option
@click.option(
    "--format",
    type=click.Choice(["jsonl", "npz", "hf-dataset", "parquet"]),
    help="Format of --out; default: inferred from its name.",
)
@click.option(
    "--batch-seconds",
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    help="Seconds of audio per batch; longer files are split.",
)
def tokenize(
    places,
    source,
    out,
    format,
    overwrite,
    batch_seconds,
    strict,
    engine,
    **model,
) -> None:
    """Encode audio files, folders or data sets to tokens.

    Data sets are Parquet files and folders of Dataset.save_to_disk.
    """
    with loading():
        # The package's own progress bar is more informative.
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        from speechbrain_vq.inference import VQTokenizer, tokenize_to

    with clean_errors(_interrupted(overwrite)):
        runner = open_engine(engine, model)
        tokenizer = VQTokenizer.from_hparams(source, **model)
        result = tokenize_to(
            out,
            places,
            tokenizer,
            format,
            overwrite,
            batch_seconds,
            progress=True,
            engine=runner,
        )
    _report(result, out, strict)


@click.command()
@files_options
@model_options("revision", "device", "ssl_encoder", "vocoder", "num_codebooks")
@click.option(
    "--out",
    default="reconstructed",
    show_default=True,
    type=output_path,
    help="Folder for the wav files, or NAME.wav for a single file.",
)
def reconstruct(places, source, out, overwrite, **model) -> None:
    """Reconstruct audio files from their tokens."""
    with loading():
        from speechbrain_vq.inference import VQTokenizer, reconstruct_files

    with clean_errors(_interrupted(overwrite)):
        tokenizer = VQTokenizer.from_hparams(source, **model)
        result = reconstruct_files(
            places, tokenizer, out, overwrite, progress=True
        )
    _report(result, out)


@click.command()
@files_options
@model_options("revision", "device", "vocoder")
@click.option(
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="NAME_OR_WAV",
    help="Target voice: name of a training speaker, or a recording; repeat to "
    "average several voices.",
)
@click.option(
    "--out",
    required=True,
    type=output_path,
    help="Folder for the wav files, or NAME.wav for a single file.",
)
def convert(places, source, targets, out, overwrite, **model) -> None:
    """Convert audio files to another voice."""
    with loading():
        from speechbrain_vq.inference import VoiceConverter, convert_files

    with clean_errors(_interrupted(overwrite)):
        converter = VoiceConverter.from_hparams(source, **model)
        result = convert_files(
            places, converter, targets, out, overwrite, progress=True
        )
    _report(result, out)


def _interrupted(overwrite):
    restart = "Interrupted. The same command starts over."
    return restart if overwrite else INTERRUPTED


def _report(result, out, strict=False):
    """Print a summary. Exit with status 1 if no file was done or, with
    ``strict``, if any was left out."""
    from speechbrain_vq.dataio.audio import count_reasons

    for reason in result.bad.values():
        # A file name may contain line breaks.
        click.echo(f"Left out: {reason}".replace("\n", "\\n"), err=True)
    number, existing = result.done - result.existing, result.existing
    message = f"{number} {'file' if number == 1 else 'files'} done, "
    message += f"{existing} there already, " if existing else ""
    message += f"{len(result.bad)} left out"
    message += f": {count_reasons(result.bad)}." if result.bad else "."
    message += " --overwrite replaces existing files." if existing else ""
    message += f" Output: {out}" if result.done else ""
    click.echo(message)
    if not result.done or (strict and result.bad):
        sys.exit(1)
