"""The command line: every verb is one call into the package.

Authors
 * speechbrain_vq authors 2026
"""

import json
import os
import pathlib
import subprocess
import sys

import click

from speechbrain_vq.dataio.atomic import atomic_write


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
        with atomic_write(json_file) as partial:
            partial.write_text(json.dumps(figures, indent=2) + "\n")


@main.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_extra_args": True,
    }
)
@click.argument("recipe")
@click.option(
    "--hparams",
    default="train.yaml",
    show_default=True,
    metavar="FILE",
    help="Which of the recipe's hparams/.",
)
@click.pass_context
def train(context, recipe, hparams) -> None:
    """Run a recipe that came with the package, e.g. MiniSpeech/unit-discovery;
    what follows its name is handed to its train.py."""
    from speechbrain_vq.presets import recipe_path

    try:
        folder = recipe_path(f"{recipe}/train.py").parent
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    command = [sys.executable, str(folder / "train.py")]
    path = folder / "hparams" / hparams
    if not path.is_file():
        known = sorted(file.name for file in path.parent.glob("*.yaml"))
        raise click.UsageError(
            f"{recipe} has no {hparams}; it has {', '.join(known)}."
        )
    command += [str(path), *context.args]
    sys.exit(subprocess.call(command))


@main.command()
@click.argument(
    "run_folder", type=click.Path(exists=True, path_type=pathlib.Path)
)
@click.argument("output", type=click.Path(path_type=pathlib.Path))
@click.option("--min-key", help="Checkpoint with the lowest such number.")
@click.option("--max-key", help="Checkpoint with the highest such number.")
@click.option("--checkpoint", help="Checkpoint of this name or path.")
@click.option(
    "--example",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="A recording to pass on with the model.",
)
@click.option("--repo-id", metavar="ORG/NAME", help="Where it will be pushed.")
@click.option("--license", help="Of the model; apache-2.0 by default.")
@click.option("--language", multiple=True, help="E.g. en; may be repeated.")
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="ORG/NAME",
    help="On the Hub, that it was trained on; may be repeated.",
)
@click.option("--force", is_flag=True, help="Though it is not fit for use.")
def export(run_folder, output, license, language, datasets, **options) -> None:
    """Turn the folder of a finished run into one that from_hparams loads."""
    from speechbrain_vq.hub import export_pretrained

    card = {
        "license": license,
        "language": list(language),
        "datasets": list(datasets),
    }
    options["card"] = {key: value for key, value in card.items() if value}
    try:
        export_pretrained(run_folder, output, **options)
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"Exported to {output}")


@main.command()
@click.argument(
    "folder",
    type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
)
@click.argument("repo_id", metavar="ORG/NAME")
@click.option(
    "--private/--no-private",
    default=None,
    help="Of a repository that is made here; default: as ORG has it.",
)
@click.option("--revision", help="The branch; made if it is not there.")
@click.option("--tag", help="A name for the commit; never moved.")
@click.option(
    "--create-pr",
    is_flag=True,
    help="Open a pull request instead, a new one each time.",
)
@click.option("--message", "commit_message", help="Of the commit.")
def push(folder, repo_id, **options) -> None:
    """Put an exported model on the Hugging Face Hub."""
    from speechbrain_vq.hub import HubError, push_to_hub

    try:
        click.echo(push_to_hub(folder, repo_id, **options))
    except KeyboardInterrupt:
        raise click.ClickException(
            "Interrupted. Run the same again: what has arrived is not sent "
            "twice."
        ) from None
    except (HubError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _uses_model(command):
    """The arguments and options of the verbs that use a model."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Do it all anew."),
        click.option(
            "--device", help="E.g. cpu, cuda; default: what is there."
        ),
        click.option("--revision", help="Of a model on the Hub."),
        click.option(
            "--model", required=True, help="A folder, or ORG/NAME on the Hub."
        ),
        click.argument("places", nargs=-1, required=True, metavar="FILES..."),
    ):
        command = option(command)
    return command


def _said(result):
    """How many files there are now, and what became of those that were."""
    bad = f"{len(result.bad)} left out."
    if not result.existing:
        return f"{result.done} files done, {bad}"
    return (
        f"{result.done - result.existing} files done, {result.existing} there "
        f"already, {bad} Those that were there stay as they are, whatever "
        "made them: --overwrite does them anew."
    )


_choose_vocoder = click.option(
    "--vocoder",
    metavar="FOLDER|ORG/NAME",
    help="A HiFi-GAN of SpeechBrain, or one on units; default: Griffin-Lim.",
)


def _run_model(
    run, model, revision, run_opts, interface="VQTokenizer", **options
):
    """Loads a model, runs what is to be run with it, says how it went."""
    from speechbrain_vq import inference
    from speechbrain_vq.hub import HubError

    run_opts = {key: value for key, value in run_opts.items() if value}
    loader = getattr(inference, interface)
    anew = click.get_current_context().params["overwrite"]
    try:
        result = run(
            loader.from_hparams(model, revision, run_opts=run_opts, **options)
        )
    except KeyboardInterrupt:
        raise click.ClickException(
            "Interrupted. The same command "
            + ("does it all anew." if anew else "goes on from here.")
        ) from None
    except (HubError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for reason in result.bad.values():
        click.echo(f"Left out: {reason}", err=True)
    click.echo(_said(result))
    if not result.done:
        sys.exit(1)


@main.command()
@_uses_model
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=pathlib.Path),
    help="NAME.jsonl, NAME.npz, or a folder for a data set.",
)
@click.option(
    "--format",
    type=click.Choice(["jsonl", "npz", "hf-dataset"]),
    help="Of --out; default: what its name says.",
)
@click.option(
    "--batch-seconds",
    default=60.0,
    show_default=True,
    type=click.FloatRange(min=1),
    help="Audio at a time; longer files are done in pieces.",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    show_default=True,
    help="Of the encoder.",
)
def tokenize(
    places, model, revision, device, precision, out, overwrite, **options
) -> None:
    """Write the tokens of audio files, or of those in folders."""
    from speechbrain_vq.inference import tokenize_to

    _run_model(
        lambda tokenizer: tokenize_to(
            out,
            places,
            tokenizer,
            overwrite=overwrite,
            progress=True,
            **options,
        ),
        model,
        revision,
        {"device": device, "eval_precision": precision},
    )


@main.command()
@_uses_model
@_choose_vocoder
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    help="The folder for the wav files.",
)
def reconstruct(
    places, model, revision, device, vocoder, out, overwrite
) -> None:
    """Write what the tokens keep of audio files, as wav files."""
    from speechbrain_vq.inference import reconstruct_files

    _run_model(
        lambda tokenizer: reconstruct_files(
            places, tokenizer, out, overwrite, progress=True
        ),
        model,
        revision,
        {"device": device},
        vocoder=vocoder,
    )


@main.command()
@_uses_model
@_choose_vocoder
@click.option(
    "--target",
    "targets",
    required=True,
    multiple=True,
    metavar="NAME_OR_WAV",
    help="A speaker that the model knows, or a recording; of several, the mean.",
)
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=pathlib.Path),
    help="The folder for the wav files; for one file also NAME.wav.",
)
def convert(
    places, model, revision, device, vocoder, targets, out, overwrite
) -> None:
    """Write what audio files say in another voice, as wav files."""
    from speechbrain_vq.inference import convert_files

    _run_model(
        lambda converter: convert_files(
            places, converter, targets, out, overwrite, progress=True
        ),
        model,
        revision,
        {"device": device},
        "VoiceConverter",
        vocoder=vocoder,
    )


def _can_be_made(context, parameter, folder):
    """Refuses a folder that cannot be, before there is anything to write."""
    if folder is None:
        return None
    places = (folder, *folder.absolute().parents)
    there = next(place for place in places if os.path.lexists(place))
    if not there.is_dir():
        raise click.BadParameter(f"'{there}' is no folder.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise click.BadParameter(f"'{there}' cannot be written to.")
    return folder


# What does nothing without the other, or without a model, or with one.
_OF_CONVERSIONS = ("targets", "audio")
_OF_MODELS = (
    *("judges", "max_reconstructed", "conversions", *_OF_CONVERSIONS),
    *("vocoder", "revision", "device"),
)
_OF_TOKENS = ("codebook_size",)


def _check_used(source, options):
    """Refuses what is asked for and would do nothing."""
    context = click.get_current_context()
    asked = {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name)
        is click.core.ParameterSource.COMMANDLINE
    }
    tokens = pathlib.Path(source).suffix == ".jsonl"
    for names, idle, needs in (
        (_OF_MODELS, tokens, f"a model: {source} has only tokens"),
        (_OF_TOKENS, not tokens, "a .jsonl of tokens: a model says its own"),
        (_OF_CONVERSIONS, not options["conversions"], "--conversion-pairs"),
    ):
        for name in names:
            if idle and name in asked:
                raise click.UsageError(f"{asked[name]} needs {needs}.")


@main.command()
@click.argument("source", metavar="MODEL|TOKENS.jsonl")
@click.option(
    "--manifest",
    required=True,
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="Json manifest of the test set, with phones and speakers if known.",
)
@click.option(
    "--item",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="ZeroSpeech item file; default: made of the manifest's phones.",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    callback=_can_be_made,
    help="Folder for results.json, results.md and a picture.",
)
@click.option(
    "--judges",
    "judges",
    multiple=True,
    metavar="NAME|MODULE:CALLABLE",
    help="Judge of decoded speech: resemblyzer, whisper (or "
    "whisper:PATH_OR_NAME of its weights), or one of your own; may be "
    "repeated.",
)
@click.option(
    "--reconstruct",
    "max_reconstructed",
    default=32,
    show_default=True,
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
    help="Number of pairs of an utterance and another speaker to convert.",
)
@click.option(
    "--targets",
    metavar="MANIFEST",
    type=click.Path(exists=True, dir_okay=False, path_type=pathlib.Path),
    help="Manifest of the target speakers; default: --manifest.",
)
@click.option(
    "--audio",
    type=click.Path(file_okay=False, path_type=pathlib.Path),
    callback=_can_be_made,
    help="Folder for the converted, source and target recordings.",
)
@click.option(
    "--replicates",
    default=100,
    show_default=True,
    type=click.IntRange(min=0),
    help="Number of bootstrap replicates; 0: no intervals.",
)
@click.option("--seed", default=0, show_default=True, help="Random seed.")
@click.option(
    "--codebook-size",
    type=click.IntRange(min=1),
    help="Number of codes of the tokens in a file.",
)
@click.option(
    "--data-root",
    type=click.Path(exists=True, file_okay=False, path_type=pathlib.Path),
    help="Value of {data_root} in the manifest.",
)
# Of the last release: there is one ABX now.
@click.option("--abx", type=click.Choice(["own", "fastabx"]), hidden=True)
@_choose_vocoder
@click.option("--revision", help="Of a model on the Hub.")
@click.option("--device", help="E.g. cpu, cuda; default: what is there.")
def evaluate(source, out, revision, device, vocoder, abx, **options) -> None:
    """Evaluate units: phones, ABX, probes, bit rate, reconstruction."""
    from speechbrain_vq.evaluation import evaluate as run
    from speechbrain_vq.evaluation import write_report
    from speechbrain_vq.evaluation.report import as_text
    from speechbrain_vq.hub import HubError

    _check_used(source, options)
    if abx == "fastabx":
        raise click.UsageError(
            "--abx=fastabx is gone: leave it out, ABX agrees with fastabx."
        )
    model = {"revision": revision, "vocoder": vocoder}
    if device:
        model["run_opts"] = {"device": device}
    try:
        evaluation = run(source, progress=True, **options, **model)
    except (HubError, ImportError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    click.echo(as_text(evaluation), nl=False)
    if out is None:
        return
    try:
        for file in write_report(evaluation, out):
            click.echo(f"Wrote {file}")
    except OSError as error:
        raise click.ClickException(
            f"The report cannot be written: {error}"
        ) from error
