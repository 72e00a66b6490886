"""A preset differs from robust.yaml in what it says; an unknown name is met with
the closest.
"""

import inspect
import re

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from speechbrain_vq import CodebookTrainer, VectorQuantizer
from speechbrain_vq.presets import (
    bundled,
    preset_names,
    preset_path,
    quantizer_options,
)
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


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_one_line_and_its_trainer_does_what_it_says(name):
    other = VectorQuantizer.from_preset(name, 8, 32, norm=None, affine=False)
    assert other.norm is None
    preset = load_hyperpyyaml(preset_path(name).read_text("utf-8"))
    schedule, options = preset["reinit_schedule"], quantizer_options(preset)
    reinitializes = schedule is not None and schedule.resolve(9).reinitializes
    assert reinitializes == (preset["reservoir_size"] != 0)
    made = []
    for make in (
        lambda: VectorQuantizer.from_preset(name, 8, 32),
        lambda: VectorQuantizer(8, 32, **options),
    ):
        torch.manual_seed(0)
        made.append(make())
    for x in torch.randn(2, 20, 8):
        out, wanted = (quantizer(x) for quantizer in made)
        assert torch.equal(out.indices, wanted.indices)
        assert torch.equal(out.loss, wanted.loss)
    assert len(made[0].reservoir) in (0, 40)
    # "robust" is the default.
    for quantizer in (made[0], VectorQuantizer(8, 32))[
        : 1 + (name == "robust")
    ]:
        model = torch.nn.ModuleList([torch.nn.Linear(8, 8), quantizer])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0001)
        trainer = CodebookTrainer(model, optimizer, total_steps=1000)
        assert trainer.plan == (schedule and schedule.resolve(None, 1000))
        if quantizer.codebook.requires_grad:
            assert trainer.lr_multiplier == preset["codebook_lr_multiplier"]
        assert trainer.max_lr == preset["codebook_max_lr"]


@pytest.mark.parametrize(
    "find, name, message",
    [
        (preset_path, "robst", "Did you mean 'robust'"),
        # Names are no paths.
        *(
            (preset_path, name, "No preset.*" + ".*".join(preset_names()))
            for name in ("../hparams/robust", "robust.yaml", "")
        ),
        (recipe_path, "MiniSpech", "No recipe 'MiniSpech'"),
        (recipe_path, "MiniSpeech/train.py", "mean 'MiniSpeech/unit-discovery"),
        (recipe_path, "MiniSpeech/unit-vocodr/x", "mean 'MiniSpeech/unit-voco"),
        (bundled, "mni", "No bundled model 'mni'.*'mini'"),
    ],
)
def test_an_unknown_name_is_met_with_the_closest(find, name, message):
    with pytest.raises(ValueError, match=message):
        find(name)
