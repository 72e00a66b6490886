"""A preset differs from robust.yaml in what it says; an unknown name is met with
the closest.
"""

import inspect
import re

import pytest
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from speechbrain_vq import VectorQuantizer
from speechbrain_vq.presets import preset_names, preset_path
from speechbrain_vq.recipe_files import recipe_path


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"robust"}))
def test_a_preset_states_first_what_differs(name):
    text = preset_path(name).read_text("utf-8")
    base = "paper" if "# As in paper.yaml" in text else "robust"
    robust = YAML().load(preset_path(base))
    own, rest = re.split(
        r"# As in \w+\.yaml[,;].* explains every key\.\n", text
    )
    own, rest = YAML().load(own), YAML().load(rest)
    assert set(own) | set(rest) >= set(robust) and not set(own) & set(rest)
    assert dict(rest) == {key: robust[key] for key in rest}
    taken = inspect.signature(VectorQuantizer).parameters
    usual = {key: taken[key].default for key in set(own) - set(robust)}
    assert all(own[key] != {**robust, **usual}[key] for key in own)


@pytest.mark.parametrize("name", ["product", "residual"])
def test_composed_presets_have_several_codebooks(name):
    with open(preset_path(name), encoding="utf-8") as file:
        preset = load_hyperpyyaml(file)
    assert preset["num_codebooks"] > 1 and preset["composition"] == name


@pytest.mark.parametrize(
    "name, suggestion",
    [
        ("MiniSpeech", "MiniSpeech/unit-discovery"),
        ("MiniSpeech/unit-vocodr", "MiniSpeech/unit-vocoder"),
    ],
)
def test_an_unknown_recipe_is_met_with_the_closest(name, suggestion):
    with pytest.raises(ValueError, match=f"Did you mean '{suggestion}'"):
        recipe_path(f"{name}/train.py")
