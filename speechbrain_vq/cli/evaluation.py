"""Verbs that evaluate a model or tokens, and write reports."""

import pathlib
import sys

import click

from .common import (
    clean_errors,
    engine_option,
    existing_path,
    file_path,
    folder_path,
    loading,
    model_options,
    open_engine,
    output_file,
    output_folder,
)


@click.command()
@click.argument("source", metavar="MODEL|TOKENS.jsonl")
@click.option(
    "--manifest",
    required=True,
    type=file_path,
    help="JSON manifest of the test set, with phones and speakers if known.",
)
@click.option(
    "--item",
    type=file_path,
    help="ZeroSpeech item file; default: items from the manifest's phones.",
)
@click.option(
    "--out",
    type=output_folder,
    help="Folder for results.json, results.md and, for a MODEL, report.html.",
)
@click.option(
    "--report",
    metavar="FILE",
    type=output_file,
    help="File for an HTML report on a MODEL, with recordings from the "
    "manifest; default: report.html in --out.",
)
@click.option(
    "--judges",
    "judges",
    multiple=True,
    metavar="NAME|MODULE:CALLABLE",
    help="Judge of decoded speech: resemblyzer, whisper, "
    "whisper:PATH_OR_NAME_OF_WEIGHTS, or your own; may be repeated.",
)
@click.option(
    "--reconstruct",
    "max_reconstructed",
    default=32,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=0),
    help="Number of utterances to reconstruct.",
)
@click.option(
    "--conversion-pairs",
    "conversions",
    default=0,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=0),
    help="Number of (utterance, target speaker) pairs to convert.",
)
@click.option(
    "--targets",
    metavar="MANIFEST",
    type=file_path,
    help="Manifest of the target speakers; default: --manifest.",
)
@click.option(
    "--audio",
    type=output_folder,
    help="Folder for the converted, source and target recordings.",
)
@click.option(
    "--replicates",
    default=100,
    show_default=True,
    metavar="N",
    type=click.IntRange(min=0),
    help="Number of bootstrap replicates; 0 for no confidence intervals.",
)
@click.option(
    "--seed",
    default=0,
    show_default=True,
    type=click.IntRange(min=0),
    help="Random seed.",
)
@click.option(
    "--codebook-size",
    metavar="N",
    type=click.IntRange(min=1),
    help="Codebook size of TOKENS.jsonl; default: as stored in its lines.",
)
@click.option(
    "--data-root",
    type=folder_path,
    help="Folder to substitute for {data_root} in the manifest.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Exit with status 1 if any utterance was left out.",
)
@model_options("vocoder", "ssl_encoder", "revision", "device")
@engine_option
def evaluate(source, out, report, strict, engine, **options) -> None:
    """Evaluate the units of a model or a token file.

    Metrics are phone information, ABX, bit rate and, for a MODEL,
    reconstruction and voice conversion.
    """
    is_tokens = pathlib.Path(source).suffix == ".jsonl"
    if not options["conversions"] and (options["targets"] or options["audio"]):
        raise click.UsageError("--targets and --audio need --conversion-pairs.")
    with loading():
        from speechbrain_vq.evaluation import evaluate as run
        from speechbrain_vq.evaluation import write_report
        from speechbrain_vq.evaluation.report import as_markdown

    with clean_errors("Interrupted. No results were written."):
        runner = open_engine(engine, options)
        evaluation = run(source, progress=True, engine=runner, **options)
    click.echo(as_markdown(evaluation), nl=False)
    for file in write_report(evaluation, out) if out else ():
        click.echo(f"Wrote {file}")
    if report is None and out and not is_tokens:
        report = out / "report.html"
    if report is not None:
        from speechbrain_vq.report import write_report as write_page

        names = "data_root", "vocoder", "ssl_encoder", "revision", "device"
        given = {name: options[name] for name in names}
        page = write_page(source, report, data=options["manifest"], **given)
        click.echo(f"Wrote {page}")
    if "used_codes_percent" in evaluation.metrics.get("cost", ()):
        from speechbrain_vq.report.summary import judge

        values = {k: x.value for k, x in evaluation.metrics["cost"].items()}
        counts = evaluation.tables["code_counts"]
        values["vectors"] = int(counts[0].sum())
        verdict = judge(values, counts.shape[1], counts.shape[0])
        click.echo(f"Verdict: {verdict.text}")
    settings = evaluation.settings
    bad = settings.get("utterances_left_out", 0)
    reasons = f": {settings['reasons']}" if bad else ""
    number = settings["utterances"]
    click.echo(
        f"{number} utterance{'s' * (number > 1)} evaluated, {bad} left out"
        f"{reasons}."
    )
    if strict and bad:
        sys.exit(1)


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
    help="Manifest or folder of recordings to encode; default: the test set "
    "of the run, or the example of the model.",
)
@click.option(
    "--out",
    "output",
    default="report.html",
    show_default=True,
    type=output_file,
    help="HTML file to write.",
)
@model_options("vocoder", "ssl_encoder", "revision", "device")
def report(**options) -> None:
    """Write an HTML report on a run or model.

    The page shows recordings, training curves, codebook and units, and a
    comparison with other runs.
    """
    with loading():
        from speechbrain_vq.report import write_report

    path = write_report(**options)
    click.echo(f"Wrote {path}: open it in a browser.")
