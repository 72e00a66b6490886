"""A recipe takes a preset, or says that it would not look at what is in it.

Authors
 * speechbrain_vq authors 2026
"""

import pytest
from hyperpyyaml import load_hyperpyyaml

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


@pytest.mark.parametrize("arm", sorted(COMPOSED))
def test_composed_presets_have_several_codebooks(arm):
    with open(preset_path(arm), encoding="utf-8") as file:
        preset = load_hyperpyyaml(file)
    assert preset["num_codebooks"] > 1 and preset["composition"] == arm


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: "/".join(p.parts[-4:]))
def test_every_arm_runs_in_every_recipe_or_is_refused(path):
    for arm in preset_names():
        if arm in COMPOSED and path.parts[-4] == "CIFAR10":
            with pytest.raises(ValueError, match=f"num_codebooks.*'{arm}'"):
                parse(path, f"--arm={arm}")
        else:
            parse(path, f"--arm={arm}")


def test_a_change_that_nothing_looks_at_is_refused():
    with pytest.raises(ValueError, match="CIFAR10.*no use for num_codebooks"):
        parse(CIFAR10, "--vq={num_codebooks: 2}")
    with pytest.raises(ValueError, match="no use for composition"):
        parse(CIFAR10, "--arm=ema", "--vq={composition: residual}")
    # What it looks at may be changed there, and all of it elsewhere.
    parse(CIFAR10, "--vq={norm: null, num_codebooks: 1}")
    parse(UNITS, "--vq={num_codebooks: 3, composition: residual}")


def test_a_recipe_that_looks_at_all_of_a_preset_may_have_any(tmp_path):
    (tmp_path / "own.yaml").write_text("arm: robust\nvq: !include:x\n")
    with pytest.raises(ValueError, match="no use"):
        parse(tmp_path / "own.yaml", "--arm=residual")
    (tmp_path / "own.yaml").write_text(
        "arm: robust\nvq: !include:x\nall: !ref <vq>\n"
    )
    parse(tmp_path / "own.yaml", "--arm=residual")


HANDWRITING = recipe_path("ScribbleLens/handwriting/hparams/small.yaml")


@pytest.mark.parametrize("arm", sorted(set(preset_names()) - COMPOSED))
def test_a_recipe_changes_only_what_an_arm_has(arm):
    with open(preset_path(arm), encoding="utf-8") as file:
        preset = load_hyperpyyaml(file)
    _, _, overrides = parse(HANDWRITING, f"--arm={arm}", "--data_folder=x")
    with open(HANDWRITING, encoding="utf-8") as file:
        changed = load_hyperpyyaml(file, overrides)["vq"]
    was, now = preset["reinit_schedule"], changed["reinit_schedule"]
    times = [step for step in range(700) if now and now(step).reinitialize]
    assert times == (
        list(range(100, 581, 80)) if was and was.reinitializes else []
    )
