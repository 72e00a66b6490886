"""Models of every recipe load as data, bit for bit as SpeechBrain loads them."""

import json
import pathlib

import pytest
import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml, resolve_references
from safetensors.torch import save_file
from speechbrain.inference.interfaces import Pretrained

from speechbrain_vq import VoiceConverter, VQTokenizer
from speechbrain_vq.hub import load_pretrained
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.publish.hparams import inference_section, inference_yaml
from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipe_files import recipe_path, write_out

# Exported at revision f2d1b68 (November 2026), when the yaml was run by
# HyperPyYAML; `codes.json` has what that revision made of `encode(...)`.
EXPORTED = sorted(pathlib.Path(__file__).with_name("exported").iterdir())
YAMLS = [
    path
    for path in sorted(recipe_path("").glob("*/*/hparams/*.yaml"))
    if path.name in ("train.yaml", "table.yaml", "wavenet.yaml")
    and "\ninference:" in write_out(path)
]


def export(path, folder):
    """The folder that an export of the recipe's model makes, untrained."""
    base, _, overrides = parse_arguments([str(path), "--data_folder=."])
    with open(base, encoding="utf-8") as file:
        resolved = resolve_references(file, overrides)
    training = ruamel.yaml.YAML().load(resolved)
    keys = inference_section(training)["keys"]
    folder.mkdir()
    text = inference_yaml(training, keys)
    (folder / "hyperparams.yaml").write_text(text)
    torch.manual_seed(0)
    modules = torch.nn.ModuleDict(load_hyperpyyaml(text)["modules"])
    state = {k: v.contiguous() for k, v in modules.state_dict().items()}
    save_file(state, folder / "model.safetensors")
    return modules


@pytest.mark.parametrize("path", YAMLS, ids=lambda x: "/".join(x.parts[-4:]))
def test_a_recipe_s_model_is_as_speechbrain_loads_it(path, tmp_path):
    written = export(path, tmp_path / "model")
    mine = torch.nn.ModuleDict(load_pretrained(tmp_path / "model")["modules"])
    assert str(mine) == str(written)
    copy = {"savedir": tmp_path / "copy", "run_opts": {"device": "cpu"}}
    theirs = Pretrained.from_hparams(tmp_path / "model", **copy)
    expected = dict(theirs.mods.named_buffers())
    assert mine.state_dict().keys() == theirs.mods.state_dict().keys()
    for name, value in theirs.mods.state_dict().items():
        assert torch.equal(mine.state_dict()[name], value), name
    # Those that are saved in no file as well.
    for name, value in mine.named_buffers():
        assert torch.equal(value, expected[name]), name
    for name, parameter in mine.named_parameters():
        given = written.get_parameter(name)
        assert parameter.requires_grad == given.requires_grad
        assert parameter.dtype == given.dtype and not parameter.is_meta


def test_there_is_one_of_each_task():
    tasks = "autoencoder handwriting phone-recognition unit-discovery".split()
    assert {"voice-conversion", *tasks} <= {path.parts[-3] for path in YAMLS}


def latents(kind, modules):
    """Outputs of a model's encoder for some input, the same each time."""
    torch.manual_seed(5)
    if kind == "images":
        return (modules["encoder"](torch.rand(2, 3, 32, 32)),)
    if kind == "handwriting":
        return modules["encoder"](torch.rand(2, 40, 32), torch.ones(2))
    wavs, lengths = torch.randn(2, 16000) / 10, torch.tensor([1.0, 0.5])
    return modules["encoder"](*modules["features"](wavs, lengths))


@pytest.mark.parametrize("folder", EXPORTED, ids=lambda path: path.name)
@torch.no_grad()
def test_a_model_of_an_earlier_release_gives_the_same_codes(folder):
    if not (folder / "codes.json").exists():
        assert folder.name == "unit_vocoder"
        assert load_vocoder(folder).settings["token_rate"] == 50.0
        return
    expected = torch.tensor(json.loads((folder / "codes.json").read_text()))
    modules = torch.nn.ModuleDict(load_pretrained(folder)["modules"]).eval()
    encoded = modules["quantizer"].encode(*latents(folder.name, modules))
    assert torch.equal(encoded, expected)
    if "speaker" in modules:
        table = folder.name == "speaker_table"
        cls = VoiceConverter if table else VQTokenizer
        model = cls.from_hparams(folder, device="cpu")
        tokens, lengths = model.encode_batch(torch.randn(1, 16000))
        wavs = model.decode_batch(tokens[:, :5], None)
        assert wavs.isfinite().all() and wavs.shape[1] >= 5 * 320
        assert not table or model.speakers == ["a", "b", "c"]
