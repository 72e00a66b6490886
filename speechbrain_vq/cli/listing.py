"""Verbs that list recipes, presets and models, and print recipes."""

import pathlib

import click

from speechbrain_vq.dataio.manifests import read_json
from speechbrain_vq.presets import (
    bundled,
    bundled_names,
    describe_preset,
    preset_names,
)
from speechbrain_vq.recipe_files import (
    FOLDER_RECIPES,
    describe_recipe,
    recipe_names,
    recipe_path,
    recipe_yaml,
    write_out,
)

_USES = {
    "speech": "codec, the default: ",
    "units": "discrete units close to phones: ",
}


@click.command("list")
def list_all() -> None:
    """List the recipes, presets and bundled models."""
    recipes = {name: describe_recipe(name) for name in recipe_names()}
    for name in recipes:
        files = recipe_path(f"{name}/hparams").glob("*.yaml")
        others = sorted({path.name for path in files} - {"train.yaml"})
        if others:
            recipes[name] += f" (--config: {', '.join(others)})"
    _show("Recipes for `train RECIPE` and `config RECIPE`", recipes)
    for_folders = {
        name: f"{recipe}: {describe_recipe(recipe)}"
        for name, recipe in FOLDER_RECIPES.items()
    }
    _show("Recipes for `train FOLDER --recipe=NAME`", for_folders)
    # List the recommended preset first.
    names = sorted(preset_names(), key=lambda name: name != "robust")
    presets = {name: describe_preset(name) for name in names}
    _show("Presets for --preset", presets)
    models = {
        name: f"{_USES.get(name, '')}{_describe_model(name)}"
        for name in bundled_names()
    }
    _show("Bundled models for --model", models)


@click.command()
@click.argument("recipe")
@click.option(
    "--config",
    "name",
    default="train.yaml",
    show_default=True,
    metavar="NAME",
    help="Name of the recipe's yaml file to print.",
)
def config(recipe, name) -> None:
    """Print the yaml file of a recipe, as a template for your own.

    Run `speechbrain-vq config RECIPE > my.yaml`, edit the file, then run
    `speechbrain-vq train RECIPE --config my.yaml` in any folder.
    """
    recipe = FOLDER_RECIPES.get(recipe, recipe)
    text = write_out(recipe_yaml(recipe, name))
    click.echo(f"# speechbrain-vq train {recipe} --config THIS_FILE")
    click.echo(text, nl=False)


def _show(title, texts):
    """Print names and their descriptions in the format of `--help`."""
    formatter = click.get_current_context().make_formatter()
    with formatter.section(title):
        formatter.write_dl(list(texts.items()))
    click.echo(formatter.getvalue())


def _describe_model(name):
    about = read_json(pathlib.Path(bundled(name), "config.json"))
    books = about["num_codebooks"]
    return (
        f"{about['sample_rate'] // 1000} kHz, {about['token_rate']:g} tokens "
        f"per second, {books} codebook{'s' * (books > 1)} of "
        f"{about['codebook_size']} codes"
    )
