"""A preset differs from robust.yaml in what it says; a recipe takes a preset, or
says that it would not look at what is in it; a variant of a recipe is that recipe
with other values.
"""

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from speechbrain_vq.presets import (
    parse_arguments,
    preset_names,
    preset_path,
    recipe_path,
)

CIFAR10 = recipe_path("CIFAR10/autoencoder/hparams/train.yaml")
UNITS = recipe_path("MiniSpeech/unit-discovery/hparams/train.yaml")
COMPOSED = {"residual", "product"}
# Those with presets.
YAMLS = [
    path
    for path in sorted(recipe_path("").glob("*/*/hparams/*.yaml"))
    if "!include:" in path.read_text("utf-8")
]


def parse(path, *options):
    return parse_arguments([str(path), *options])


def load(path, *options):
    path, _, overrides = parse(path, *options)
    with open(path, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides, overrides_must_match=False)


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"robust"}))
def test_a_preset_states_first_what_differs_from_robust(name):
    robust = YAML().load(preset_path("robust"))
    text = preset_path(name).read_text("utf-8")
    own, rest = text.split("# As in robust.yaml, which explains every key.\n")
    own, rest = YAML().load(own), YAML().load(rest)
    assert set(own) | set(rest) == set(robust) and not set(own) & set(rest)
    assert dict(rest) == {key: robust[key] for key in rest}
    assert all(own[key] != robust[key] for key in own)


@pytest.mark.parametrize("name", sorted(COMPOSED))
def test_composed_presets_have_several_codebooks(name):
    with open(preset_path(name), encoding="utf-8") as file:
        preset = load_hyperpyyaml(file)
    assert preset["num_codebooks"] > 1 and preset["composition"] == name


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: "/".join(p.parts[-4:]))
def test_every_preset_runs_in_every_recipe_or_is_refused(path):
    for name in preset_names():
        if name in COMPOSED and path.parts[-4] == "CIFAR10":
            with pytest.raises(ValueError, match=f"num_codebooks.*'{name}'"):
                parse(path, f"--preset={name}")
        else:
            parse(path, f"--preset={name}")


def test_a_change_that_nothing_looks_at_is_refused():
    with pytest.raises(ValueError, match="CIFAR10.*no use for num_codebooks"):
        parse(CIFAR10, "--vq={num_codebooks: 2}")
    with pytest.raises(ValueError, match="no use for composition"):
        parse(CIFAR10, "--preset=ema", "--vq={composition: residual}")
    # What it looks at may be changed there, and all of it elsewhere.
    parse(CIFAR10, "--vq={norm: null, num_codebooks: 1}")
    parse(UNITS, "--vq={num_codebooks: 3, composition: residual}")


def test_a_recipe_that_looks_at_all_of_a_preset_may_have_any(tmp_path):
    (tmp_path / "own.yaml").write_text("preset: robust\nvq: !include:x\n")
    with pytest.raises(ValueError, match="no use"):
        parse(tmp_path / "own.yaml", "--preset=residual")
    (tmp_path / "own.yaml").write_text(
        "preset: robust\nvq: !include:x\nall: !ref <vq>\n"
    )
    parse(tmp_path / "own.yaml", "--preset=residual")


HANDWRITING = recipe_path("ScribbleLens/handwriting/hparams/small.yaml")


@pytest.mark.parametrize("preset_name", sorted(set(preset_names()) - COMPOSED))
def test_a_recipe_changes_only_what_a_preset_has(preset_name):
    with open(preset_path(preset_name), encoding="utf-8") as file:
        preset = load_hyperpyyaml(file)
    changed = load(HANDWRITING, f"--preset={preset_name}", "--data_folder=x")
    was, now = preset["reinit_schedule"], changed["vq"]["reinit_schedule"]
    times = [step for step in range(700) if now and now(step).reinitialize]
    assert times == (
        list(range(100, 581, 80)) if was and was.reinitializes else []
    )


def test_arm_is_another_name_of_preset():
    with pytest.warns(FutureWarning, match="--arm is now --preset"):
        new = load(UNITS, "--arm=ema", "--data_folder=x")
    assert new["preset"] == "ema" and new["vq"]["codebook"] == "ema"


def test_yamls_that_say_arm_still_run(tmp_path):
    text = UNITS.read_text("utf-8").replace("preset", "arm")
    text = text.replace(
        "../../../../hparams/robust", str(preset_path("robust"))[:-5]
    )
    (tmp_path / "old.yaml").write_text(text)
    for option in ("--arm=ema", "--preset=ema"):
        old = load(tmp_path / "old.yaml", option, "--data_folder=x")
        assert (
            old["arm"] == "ema" and old["output_folder"] == "results/ema/1234"
        )
        assert old["vq"]["codebook"] == "ema"


VARIANT = """
recipe: !include:train.yaml
    size: 2
    vq:
        reservoir_size: 7
    layer: !ref <other>
    other: !new:torch.nn.Identity
"""
BASE = f"""
preset: robust
vq: !include:{preset_path("robust")}
size: 1
double: !ref <size> * 2
folder: !ref <preset>/<size>
layer: !new:torch.nn.Linear
    in_features: !ref <size>
    out_features: !ref <size>
all: !ref <vq>
"""


@pytest.fixture
def variant(tmp_path):
    (tmp_path / "train.yaml").write_text(BASE)
    (tmp_path / "small.yaml").write_text(VARIANT)
    return tmp_path / "small.yaml"


def test_a_variant_is_the_recipe_with_other_values(variant):
    small = load(variant)
    assert small["double"] == 4 and small["folder"] == "robust/2"
    assert small["vq"]["reservoir_size"] == 7
    assert type(small["layer"]) is torch.nn.Identity
    # The command line has the last word.
    small = load(variant, "--size=3", "--vq={reservoir_size: 9}")
    assert small["double"] == 6 and small["vq"]["reservoir_size"] == 9
    assert load(variant, "--preset=ema")["vq"]["codebook"] == "ema"
    assert load(variant.parent / "train.yaml")["double"] == 2


@pytest.mark.parametrize("before", [[], ["--size=1"], ["--size", "1"]])
def test_an_argument_that_belongs_to_no_option_is_refused(variant, before):
    with pytest.raises(ValueError, match="'size=3' .* write --size=3"):
        load(variant, *before, "size=3")
    assert load(variant, "--size", "3")["size"] == 3


@pytest.mark.parametrize("name", ["small", "train"])
def test_a_key_that_no_recipe_has_is_refused(name, variant):
    with pytest.raises(ValueError, match="'sise'. Did you mean 'size'"):
        load(variant.parent / f"{name}.yaml", "--sise=3")


@pytest.mark.parametrize("name", ["small", "train"])
def test_a_value_of_another_type_is_refused(name, variant):
    with pytest.raises(ValueError, match="--size=big: size is a number"):
        load(variant.parent / f"{name}.yaml", "--size=big")
