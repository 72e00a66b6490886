"""The recipes to train with are listed, and can be printed."""

import pytest
from hyperpyyaml import resolve_references
from ruamel.yaml import YAML
from ruamel.yaml.comments import TaggedScalar

from speechbrain_vq import recipe_files
from speechbrain_vq.presets import bundled_names, preset_names
from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipe_files import recipe_names, recipe_path, recipe_yaml
from tests.commands import cli

YAMLS = [
    (recipe, path.name)
    for recipe in recipe_names()
    for path in sorted(recipe_path(f"{recipe}/hparams").glob("*.yaml"))
]


def test_all_there_is_is_listed_in_a_line_each():
    rows = cli("list").output.splitlines()
    for name in (*recipe_names(), *preset_names(), *bundled_names()):
        lines = [row for row in rows if row.startswith(f"  {name} ")]
        # The bundled "units" has the name of a recipe for folders.
        assert len(lines[-1].split()) > 3 and len(lines) < 3


def values(path, *options):
    """Values of a yaml file with what it includes."""
    options = [str(path), "--data_folder=x", *options]
    base, _, overrides = parse_arguments(options)
    with open(base, encoding="utf-8") as file:
        return plain(YAML().load(resolve_references(file, overrides).read()))


def plain(value):
    """Make equal what has the same tags and values."""
    tag = getattr(getattr(value, "tag", None), "value", None)
    if isinstance(value, dict):
        value = {key: plain(inner) for key, inner in value.items()}
    elif isinstance(value, list):
        value = [plain(inner) for inner in value]
    elif isinstance(value, TaggedScalar):
        value = value.value
    return {"tag": tag, "value": value} if tag else value


@pytest.mark.parametrize("recipe, name", YAMLS)
def test_a_yaml_written_out_is_the_same_and_is_whole(recipe, name, tmp_path):
    output = cli("config", recipe, f"--config={name}").output
    assert output.startswith("# speechbrain-vq train ")
    assert "!include" not in output
    mine = tmp_path / "my.yaml"
    mine.write_text(output)
    assert values(mine) == values(recipe_yaml(recipe, name))


def test_a_yaml_written_out_keeps_comments_and_takes_presets(tmp_path):
    original = recipe_yaml("MiniSpeech/unit-discovery", "train.yaml")
    mine, text = tmp_path / "my.yaml", recipe_files.write_out(original)
    assert "# Seed needs to be set at top" in text
    assert "# Gradient estimator: " in text
    mine.write_text(text.replace("ment_weight: 0.25", "ment_weight: 0.5"))
    mixed = values(mine, "--preset=vanilla")
    expected = values(original, "--preset=vanilla")
    # What was changed is changed in another preset, too, and nothing else.
    assert mixed["vq"].pop("commitment_weight") == 0.5
    assert expected["vq"].pop("commitment_weight") == 0.25
    assert mixed["vq"] == expected["vq"]


def test_a_file_here_wins_over_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = "MiniSpeech/unit-discovery"
    assert recipe_yaml(recipe, "train.yaml").is_absolute()
    (tmp_path / "train.yaml").touch()
    assert not recipe_yaml(recipe, "train.yaml").is_absolute()
    with pytest.raises(ValueError, match="Did you mean 'train.yaml'"):
        recipe_yaml(recipe, "trainn.yaml")
