"""Verbs that use a pretrained model."""

import os
import pathlib
import sys

import click

from speechbrain_vq._names import suggestion

from .common import (
    INTERRUPTED,
    announce_loading,
    any_path,
    check_output,
    clean_errors,
    device_option,
    engine_option,
    open_engine,
    output_folder,
    revision_option,
    ssl_encoder_option,
    vocoder_option,
)


def _check_places(context, parameter, places):
    """Refuse files that do not exist, before a model is loaded."""
    for place in places:
        if not os.path.lexists(place):
            beside = map(str, pathlib.Path(place).parent.glob("*"))
            raise click.BadParameter(
                f"there is no '{place}'.{suggestion(place, beside)}"
            )
    return places


def model_options(command):
    """Add the arguments and options of all verbs that use a model."""
    for option in (
        click.option(
            "--overwrite",
            is_flag=True,
            help="Overwrite existing output instead of resuming.",
        ),
        device_option,
        revision_option,
        click.option(
            "--model",
            default="speech",
            show_default=True,
            help="Folder of the model, name of a bundled one, or ORG/NAME on "
            "the Hub.",
        ),
        click.argument(
            "places",
            nargs=-1,
            required=True,
            metavar="FILES...",
            callback=_check_places,
        ),
    ):
        command = option(command)
    return command


strict_option = click.option(
    "--strict",
    is_flag=True,
    help="Exit with 1 if a file was left out.",
)
codebooks_option = click.option(
    "--codebooks",
    type=click.IntRange(min=1),
    help="Use only the first N codebooks (lower bit rate); default: all.",
)


@click.command()
@model_options
@ssl_encoder_option
@strict_option
@codebooks_option
@click.option(
    "--out",
    required=True,
    type=any_path,
    callback=check_output,
    help="Output: NAME.jsonl, NAME.npz, or a folder for a data set or, with "
    "an engine, Parquet shards.",
)
@engine_option
@click.option(
    "--format",
    type=click.Choice(["jsonl", "npz", "hf-dataset", "parquet"]),
    help="Format of --out; default: by its name.",
)
@click.option(
    "--batch-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Seconds of audio per batch; longer files are split.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Precision of the encoder.",
)
def tokenize(
    places,
    model,
    revision,
    device,
    precision,
    codebooks,
    ssl_encoder,
    out,
    overwrite,
    strict,
    engine,
    **options,
) -> None:
    """Write the tokens of audio files, folders or data sets.

    Data sets are Parquet files, and folders of Dataset.save_to_disk.
    """
    announce_loading()
    # Ours shows more than that of saving a data set.
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    from speechbrain_vq.inference import VQTokenizer, tokenize_to

    run_opts = {"device": device, "eval_precision": precision}
    with clean_errors(_interrupted(overwrite)):
        runner = open_engine(engine, run_opts)
        tokenizer = _load(
            VQTokenizer,
            model,
            revision,
            run_opts,
            num_codebooks=codebooks,
            ssl_encoder=ssl_encoder,
        )
        result = tokenize_to(
            out,
            places,
            tokenizer,
            overwrite=overwrite,
            progress=True,
            engine=runner,
            **options,
        )
    _report(result, out, strict)


@click.command()
@model_options
@ssl_encoder_option
@vocoder_option
@codebooks_option
@click.option(
    "--out",
    default="reconstructed",
    show_default=True,
    type=output_folder,
    callback=check_output,
    help="Folder for the wav files.",
)
def reconstruct(
    places,
    model,
    revision,
    device,
    vocoder,
    codebooks,
    ssl_encoder,
    out,
    overwrite,
) -> None:
    """Reconstruct audio files from their tokens, as wav files."""
    announce_loading()
    from speechbrain_vq.inference import VQTokenizer, reconstruct_files

    with clean_errors(_interrupted(overwrite)):
        tokenizer = _load(
            VQTokenizer,
            model,
            revision,
            {"device": device},
            vocoder=vocoder,
            num_codebooks=codebooks,
            ssl_encoder=ssl_encoder,
        )
        result = reconstruct_files(
            places, tokenizer, out, overwrite, progress=True
        )
    _report(result, out)


@click.command()
@model_options
@vocoder_option
@click.option(
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="NAME_OR_WAV",
    help="Target: name of a training speaker, or a recording; repeat to "
    "average several.",
)
@click.option(
    "--out",
    required=True,
    type=any_path,
    callback=check_output,
    help="Folder for the wav files; for one file also NAME.wav.",
)
def convert(
    places, model, revision, device, vocoder, targets, out, overwrite
) -> None:
    """Convert audio files to another voice, as wav files."""
    announce_loading()
    from speechbrain_vq.inference import VoiceConverter, convert_files

    with clean_errors(_interrupted(overwrite)):
        converter = _load(
            VoiceConverter, model, revision, {"device": device}, vocoder=vocoder
        )
        result = convert_files(
            places, converter, targets, out, overwrite, progress=True
        )
    _report(result, out)


def _load(interface, model, revision, run_opts, **options):
    """Load a model with the run options that were given."""
    run_opts = {key: value for key, value in run_opts.items() if value}
    return interface.from_hparams(model, revision, run_opts=run_opts, **options)


def _interrupted(overwrite):
    if overwrite:
        return "Interrupted. The same command begins anew."
    return INTERRUPTED


def _report(result, out, strict=False):
    """Show how many files were processed, and fail if there were none."""
    from speechbrain_vq.dataio.audio import count_reasons

    for reason in result.bad.values():
        # A name may have several lines.
        click.echo(f"Left out: {reason}".replace("\n", "\\n"), err=True)
    number = result.done - result.existing
    message = f"{number} {'file' if number == 1 else 'files'} done, "
    if result.existing:
        message += f"{result.existing} there already, "
    message += f"{len(result.bad)} left out"
    if result.bad:
        message += f": {count_reasons(result.bad)}"
    message += "."
    if result.existing:
        message += " --overwrite replaces existing files."
    click.echo(f"{message} Output: {out}")
    if not result.done or (strict and result.bad):
        sys.exit(1)
