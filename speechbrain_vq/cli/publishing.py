"""Verbs that publish a model."""

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
    help="Folder of the exported model; may be given as OUTPUT, too.",
)
@click.option(
    "--min-key",
    metavar="METRIC",
    help="Metric to choose the checkpoint with the lowest value of; default: "
    "the latest checkpoint.",
)
@click.option(
    "--max-key",
    metavar="METRIC",
    help="Metric to choose the checkpoint with the highest value of.",
)
@click.option("--checkpoint", help="Name or path of the checkpoint.")
@click.option(
    "--example", type=file_path, help="Recording to publish with the model."
)
@click.option(
    "--repo-id",
    metavar="ORG/NAME",
    help="Repository on the Hub that the card's code loads.",
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
    help="Training data on the Hub; may be repeated.",
)
@click.option(
    "--force",
    is_flag=True,
    help="Export a model in its warm-up, or with a dead codebook.",
)
def export(
    run_folder, output, out, license, language, datasets, **options
) -> None:
    """Export a training run as a folder that from_hparams loads."""
    if (output is None) == (out is None):
        raise click.UsageError("Give the folder of the model by --out, once.")
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


_VISIBILITY = {
    None: "visibility as set by its owner (--private: members only)",
    True: "private",
    False: "public",
}


@click.command()
@click.argument("folder", type=folder_path)
@click.argument("repo_id", metavar="ORG/NAME")
@click.option(
    "--file",
    "files",
    multiple=True,
    metavar="NAME",
    help="Further file or subfolder of FOLDER to push, e.g. LICENSE; may be "
    "repeated.",
)
@click.option(
    "--private/--no-private",
    default=None,
    help="Visibility of a new repository; default: the setting of ORG.",
)
@click.option(
    "--revision", help="Branch to push to; created if it does not exist."
)
@click.option("--tag", help="Tag of the commit; an existing tag never moves.")
@click.option(
    "--create-pr",
    is_flag=True,
    help="Open a pull request instead, a new one with each call.",
)
@click.option("--message", "commit_message", help="Title of the commit.")
def push(folder, repo_id, **options) -> None:
    """Push an exported model to the Hugging Face Hub."""
    with loading():
        from huggingface_hub import ModelCard

        from speechbrain_vq.publish import push_to_hub

    card = folder / "README.md"
    if card.is_file():
        license = ModelCard.load(card, ignore_metadata_errors=True).data.license
        click.echo(
            f"Pushing {folder} to {repo_id}, license {license}, "
            f"{_VISIBILITY[options['private']]} ...",
            err=True,
        )
    again = (
        "Interrupted. Run the same again: what has arrived is not sent twice."
    )
    with clean_errors(again):
        click.echo(push_to_hub(folder, repo_id, **options))
