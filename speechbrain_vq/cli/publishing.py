"""Verbs that export a model and push it to the Hub."""

import click

from .common import (
    clean_errors,
    existing_path,
    file_path,
    folder_path,
    loading,
    output_path,
)


@click.command()
@click.argument("run_folder", type=existing_path)
@click.argument("output", required=False, type=output_path)
@click.option(
    "--out",
    type=output_path,
    help="Folder for the exported model; same as the argument OUTPUT.",
)
@click.option(
    "--min-key",
    metavar="METRIC",
    help="Metric whose lowest value selects the checkpoint; default: the "
    "latest checkpoint.",
)
@click.option(
    "--max-key",
    metavar="METRIC",
    help="Metric whose highest value selects the checkpoint.",
)
@click.option("--checkpoint", help="Name or path of the checkpoint to export.")
@click.option(
    "--example", type=file_path, help="Recording to publish with the model."
)
@click.option(
    "--repo-id",
    metavar="ORG/NAME",
    help="Repository on the Hub for the code example in the model card.",
)
@click.option(
    "--license", help="License of the exported model; default: apache-2.0."
)
@click.option(
    "--language",
    multiple=True,
    help="Language of the training data, e.g. en; may be repeated.",
)
@click.option(
    "--dataset",
    "datasets",
    multiple=True,
    metavar="ORG/NAME",
    help="Data set on the Hub that the model was trained on; may be repeated.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Export the model even if it is in warm-up or its codebook is dead.",
)
def export(
    run_folder, output, out, license, language, datasets, **options
) -> None:
    """Export the model of a training run.

    The exported folder can be loaded with from_hparams and pushed to the Hub.
    """
    if (output is None) == (out is None):
        raise click.UsageError(
            "Give an output folder with --out."
            if out is None
            else f"Give one output folder: {output} or {out}."
        )
    output = out or output
    with loading():
        from speechbrain_vq.publish import export_pretrained

    card = {
        "license": license,
        "language": list(language),
        "datasets": list(datasets),
    }
    options["card"] = {key: value for key, value in card.items() if value}
    export_pretrained(run_folder, output, **options)
    click.echo(f"Exported to {output}")


@click.command()
@click.argument("folder", type=folder_path)
@click.argument("repo_id", metavar="ORG/NAME")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="NAME",
    help="Additional file or subfolder of FOLDER to push, e.g. LICENSE; may "
    "be repeated.",
)
@click.option(
    "--private/--no-private",
    default=None,
    help="Visibility of a new repository; default: the setting of ORG.",
)
@click.option(
    "--revision", help="Branch to push to; created if it does not exist."
)
@click.option("--tag", help="Tag for the commit; an existing tag never moves.")
@click.option(
    "--create-pr",
    is_flag=True,
    help="Open a new pull request instead of committing to the branch.",
)
@click.option("--message", "commit_message", help="Title of the commit.")
def push(folder, repo_id, **options) -> None:
    """Push an exported model to the Hugging Face Hub."""
    with loading():
        from speechbrain_vq.publish import push_to_hub

    with clean_errors(
        "Interrupted. Run the same command again: uploaded files are not sent "
        "twice."
    ):
        click.echo(push_to_hub(folder, repo_id, **options))
