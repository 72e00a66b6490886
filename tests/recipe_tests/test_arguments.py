"""A recipe takes a preset, or refuses what it has no use for; a variant of a recipe
is that recipe with other values."""

import os
import subprocess
import sys

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_vq import VectorQuantizer
from speechbrain_vq.presets import preset_names, preset_path
from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipe_files import recipe_path

CIFAR10 = recipe_path("CIFAR10/autoencoder/hparams/train.yaml")
PHONES = recipe_path("WSJ/phone-recognition/hparams/train.yaml")
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


@pytest.mark.parametrize("path", YAMLS, ids=lambda p: "/".join(p.parts[-4:]))
def test_every_recipe_makes_one_quantizer_of_its_preset(path):
    hparams = load(path, "--data_folder=x")
    quantizer = hparams["quantizer"]
    assert quantizer is hparams["modules"]["quantizer"]
    assert quantizer is hparams["checkpointer"].recoverables["quantizer"]
    for name in preset_names():
        parse(path, "--data_folder=x", f"--preset={name}")


@pytest.mark.parametrize("name", preset_names())
def test_a_recipe_takes_every_preset(name):
    hparams = load(UNITS, f"--preset={name}", "--data_folder=x")
    quantizer, preset = hparams["quantizer"], hparams["vq"]
    assert (quantizer.norm is None) == (preset["norm"] is None)
    has_none = quantizer.reservoir.capacity == 0
    assert has_none == (preset["reservoir_size"] == 0)
    for key in ("composition", "num_codebooks", "commitment_weight"):
        assert getattr(quantizer, key) == preset[key]
    assert quantizer.trainer_options["schedule"] == preset["reinit_schedule"]
    options = {"input_dim": 64, "codebook_size": 512}
    assert repr(VectorQuantizer.from_preset(name, **options)) == repr(quantizer)
    dim = preset.get("codebook_dim")
    if dim is not None:  # In place of a recipe's own, but not of the user's.
        own = load(PHONES, f"--preset={name}", "--data_folder=x")
        assert own["quantizer"].codebook_dim == dim
        wide = "--codebook_dim=16"
        own = load(PHONES, f"--preset={name}", "--data_folder=x", wide)
        assert own["quantizer"].codebook_dim == 16


def test_a_preset_that_a_quantizer_has_no_use_for_is_refused():
    with pytest.raises(ValueError, match="num_codebooks is an option of its"):
        load(CIFAR10, "--vq={num_codebooks: 2}")
    for name in COMPOSED:
        with pytest.raises(ValueError, match="cannot use .* num_codebooks=2"):
            load(CIFAR10, f"--preset={name}")
    with pytest.raises(ValueError, match="composition='residual'"):
        load(CIFAR10, "--preset=ema", "--vq={composition: residual}")
    # What it takes may be changed there, and all of it elsewhere.
    images = load(CIFAR10, "--vq={norm: null}")["quantizer"]
    assert images.norm is None and images.num_codebooks == 8
    changes = "--vq={num_codebooks: 3, composition: residual}"
    units = load(UNITS, "--data_folder=x", changes)["quantizer"]
    assert units.num_codebooks == 3 and units.composition == "residual"


HANDWRITING = recipe_path("ScribbleLens/handwriting/hparams/small.yaml")


@pytest.mark.parametrize("preset_name", sorted(set(preset_names()) - COMPOSED))
def test_a_recipe_changes_only_what_it_names(preset_name):
    with open(preset_path(preset_name), encoding="utf-8") as file:
        preset = load_hyperpyyaml(file)
    # Of 2 levels for each dimension of a lattice.
    options = f"--preset={preset_name}", "--codebook_dim=12", "--data_folder=x"
    changed = load(HANDWRITING, *options)
    assert changed["vq"].pop("codebook_init") == "xavier"
    preset.pop("codebook_init")
    assert repr(changed["vq"]) == repr(preset)


def test_times_are_only_changed_where_there_are_some():
    times = "--vq={reinit_schedule: {until: 90%}}"
    changed = load(UNITS, "--data_folder=x", times)["vq"]["reinit_schedule"]
    assert changed.until == "90%" and changed.growth == 1.5
    with pytest.raises(ValueError, match="preset 'vanilla' cannot be"):
        load(UNITS, "--data_folder=x", "--preset=vanilla", times)


def test_arm_is_another_name_of_preset():
    with pytest.warns(FutureWarning, match="--arm is now --preset"):
        new = load(UNITS, "--arm=ema", "--data_folder=x")
    assert new["preset"] == "ema" and new["vq"]["codebook"] == "ema"


def test_yamls_that_say_arm_still_run(tmp_path):
    text = recipe_path("common/unit_discovery.yaml").read_text("utf-8")
    text = text.replace("preset: robust", "arm: robust")
    text = text.replace("<preset>", "<arm>")
    text = text.replace("../../hparams/robust.yaml", str(preset_path("robust")))
    (tmp_path / "old.yaml").write_text(text)
    for option in ("--arm=ema", "--preset=ema"):
        old = load(tmp_path / "old.yaml", option, "--data_folder=x")
        assert old["arm"] == old["vq"]["codebook"] == "ema"
        assert old["output_folder"] == "results/ema/1234"


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
    with pytest.raises(ValueError, match="'size=3': write --size=3"):
        load(variant, *before, "size=3")
    assert load(variant, "--size", "3")["size"] == 3


@pytest.mark.parametrize("name", ["small", "train"])
@pytest.mark.parametrize(
    "option, message",
    [
        ("--sise=3", "'--sise'. Did you mean '--size'"),
        ("--size=big", "--size=big: size must be an integer"),
    ],
)
def test_what_no_recipe_takes_is_refused(name, option, message, variant):
    with pytest.raises(ValueError, match=message):
        load(variant.parent / f"{name}.yaml", option)


PHONES = recipe_path("FestvoxRu/phone-recognition/hparams/train.yaml")


def test_a_section_of_a_preset_is_changed_by_key():
    with pytest.raises(ValueError, match="robust' cannot be changed to 5"):
        parse(PHONES, "--data_folder=x", "--vq={reinit_schedule: 5}")


def test_folders_and_single_symbols_need_no_quotes():
    values = parse(PHONES, "--data_folder=2024", "--not_phones=SP")[2]
    assert '"2024"' in values.replace("'", '"')
    values = load(PHONES, "--data_folder=x", "--not_phones=SP")
    assert values["not_phones"] == ["SP"]
    # The default is the list of arguments of an !apply.
    asr = recipe_path("MiniSpeech/asr-on-tokens/hparams/train.yaml")
    options = "--data_folder=x", "--tokenizer=lab/units"
    assert parse(asr, *options)[2].count("tokenizer: lab/units\n") == 1


def test_the_limit_of_steps_is_a_number():
    _, options, _ = parse(UNITS, "--data_folder=x", "--optimizer_step_limit=5")
    assert options["optimizer_step_limit"] == 5


def test_changed_presets_do_not_outlive_the_process(tmp_path):
    code = (
        "import sys, tempfile\n"
        "from speechbrain_vq.recipe_arguments import parse_arguments\n"
        f"parse_arguments([{str(CIFAR10)!r}, '--vq={{norm: null}}'])"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not list(tmp_path.iterdir())
