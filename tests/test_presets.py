"""A preset differs in what it says; an unknown name is met with the closest."""

import inspect
import re

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml import YAML

from speechbrain_vq import CodebookTrainer, VectorQuantizer, presets
from speechbrain_vq.presets import bundled, preset_names, preset_path
from speechbrain_vq.recipe_files import recipe_path
from speechbrain_vq.training import ReinitSchedule


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"robust"}))
def test_a_preset_states_first_what_differs(name):
    text = preset_path(name).read_text("utf-8")
    base = "paper" if "# As in paper.yaml" in text else "robust"
    robust = YAML().load(preset_path(base))
    pattern = r"# As in \w+\.yaml[,;].* explains every key\.\n"
    own, rest = map(YAML().load, re.split(pattern, text))
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
    schedule = preset["reinit_schedule"]
    options = presets.quantizer_options(preset)
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
    default = [VectorQuantizer(8, 32)] * (name == "robust")
    for quantizer in (made[0], *default):
        model = torch.nn.ModuleList([torch.nn.Linear(8, 8), quantizer])
        optimizer = torch.optim.Adam(model.parameters(), lr=0.0001)
        trainer = CodebookTrainer(model, optimizer, total_steps=1000)
        (settings,) = trainer.settings.values()
        assert settings.plan == (schedule and schedule.resolve(None, 1000))
        assert settings.lr_multiplier == preset["codebook_lr_multiplier"]
        assert settings.max_lr == preset["codebook_max_lr"]


@pytest.mark.parametrize("trainers", [1, 2])
def test_presets_share_a_model_or_an_optimizer(trainers):
    def make(name, **changes):
        return VectorQuantizer.from_preset(name, 8, 16, **changes)

    own = {"reinit_schedule": ReinitSchedule(2, "never")}
    quantizers = {name: make(name) for name in ("robust", "vanilla", "ema")}
    quantizers["own"] = make("paper", codebook_lr_multiplier=5, **own)
    quantizers = torch.nn.ModuleDict(quantizers)
    model = torch.nn.ModuleList([torch.nn.Linear(8, 8), quantizers])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0001)
    parts = [model] if trainers == 1 else list(quantizers.values())
    kept = [CodebookTrainer(p, optimizer, total_steps=10) for p in parts]
    begins = dict.fromkeys(quantizers)
    for step in range(6):
        loss = 0
        for name, quantizer in quantizers.items():
            out = quantizer(model[0](torch.randn(64, 8)))
            loss = loss + out.loss + out.quantized.square().mean()
            if begins[name] is None and (out.indices >= 0).all():
                begins[name] = step
        loss.backward()
        optimizer.step()
    assert begins == {"robust": 4, "vanilla": 0, "ema": 0, "own": 2}
    rates = {
        name: group["lr"]
        for group in optimizer.param_groups
        for name, quantizer in quantizers.items()
        if group["params"][0] is quantizer.codebook
    }
    wanted = {"robust": 0.001, "vanilla": 0.0001, "own": 0.0005}
    assert rates == pytest.approx(wanted) and len(kept) == len(parts)


def test_what_is_no_key_of_a_preset_is_told():
    with pytest.raises(ValueError, match="mean 'entropy_weight'"):
        VectorQuantizer.from_preset({"entropy_wieght": 3}, 8, 16)


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
        (recipe_path, "MiniSpeech/unit-vocodr/x", "mean 'MiniSpeech/unit-voco"),
        (bundled, "unit", "No bundled model 'unit'.*'units'"),
    ],
)
def test_an_unknown_name_is_met_with_the_closest(find, name, message):
    with pytest.raises(ValueError, match=message):
        find(name)
