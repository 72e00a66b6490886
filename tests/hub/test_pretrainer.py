"""SpeechBrain's own from_hparams loads what was exported."""

import pytest
import torch
from safetensors.torch import save_file
from speechbrain.inference.interfaces import Pretrained
from speechbrain.utils import fetching

from speechbrain_vq.hub.pretrainer import WeightsPretrainer
from tests.hub.small_model import holds, make_weights, read_files, write_model


@pytest.fixture
def folder(tmp_path):
    return write_model(tmp_path / "model")


def load(source, **kwargs):
    return Pretrained.from_hparams(source, run_opts={"device": "cpu"}, **kwargs)


@pytest.mark.parametrize("strategy", fetching.LocalStrategy)
def test_from_a_folder(folder, tmp_path, strategy):
    savedir = tmp_path / "save"
    model = load(str(folder), savedir=savedir, local_strategy=strategy)
    assert holds(model.mods, make_weights()) and not model.mods.training
    assert holds(load(str(folder)).mods, make_weights())
    source = fetching.FetchSource(fetching.FetchFrom.LOCAL, str(folder))
    assert holds(load(source).mods, make_weights())
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("with_savedir", [True, False])
def test_from_the_hub(hub, folder, tmp_path, with_savedir):
    old = hub.put("lab/model", read_files(folder))
    hub.put("lab/model", read_files(write_model(tmp_path / "new", seed=1)))
    savedir = tmp_path / "save" if with_savedir else None
    assert holds(load("lab/model", savedir=savedir).mods, make_weights(1))
    pinned = load("lab/model", fetch_config=fetching.FetchConfig(revision=old))
    assert holds(pinned.mods, make_weights(0))


def test_is_strict(folder):
    weights = {**make_weights(), "encoder.bias": torch.zeros(7)}
    save_file(weights, folder / "model.safetensors")
    with pytest.raises(ValueError, match="encoder.bias' .*shape"):
        load(str(folder))


def test_the_other_ranks_find_what_the_main_one_collected(folder, tmp_path):
    modules = {"linear": torch.nn.Linear(4, 2)}
    weights = {"linear.weight": torch.ones(2, 4), "linear.bias": torch.ones(2)}
    save_file(weights, folder / "model.safetensors")
    main, other = WeightsPretrainer({}), WeightsPretrainer(modules)
    for pretrainer in (main, other):
        pretrainer.set_collect_in(tmp_path / "save")
    main.collect_files(str(folder))
    other.load_collected()
    assert holds(modules, weights)


def test_misuse_is_reported():
    pretrainer = WeightsPretrainer({})
    with pytest.raises(ValueError, match="collect_files"):
        pretrainer.load_collected()
    with pytest.raises(ValueError, match="Give a default_source"):
        pretrainer.collect_files()
