"""A model's yaml chooses nothing of the reader's machine; the Hub's names."""

import dataclasses

import pytest
import torch
from huggingface_hub import HfApi
from speechbrain.utils.run_opts import RunOptions

from speechbrain_vq import VQTokenizer
from speechbrain_vq.hub import HubError

OPTIONS = [field.name for field in dataclasses.fields(RunOptions)]
# Values that would have an effect, or end in an error.
HARMFUL = {
    "device": "cuda:77",
    "precision": "bf16",
    "eval_precision": "bf16",
    "compile_module_keys": "[encoder]",
    "jit_module_keys": "[encoder]",
    "compile_mode": "max-autotune",
    "distributed_backend": "mpi",
    "overridden_args": "[device]",
    "log_config": "log.yaml",
    "param_file": "x.yaml",
    "tqdm_barcolor": "{train: x}",
    "optimizer_step_limit": 7,
}


def settings(model):
    return {name: getattr(model, name) for name in OPTIONS if name != "device"}


@pytest.fixture
def plain(model):
    return VQTokenizer.from_hparams(model, device="cpu")


@pytest.mark.parametrize("name", OPTIONS)
def test_no_run_option_is_taken_from_a_yaml(model, plain, name):
    default = getattr(RunOptions(), name, None)
    value = HARMFUL.get(name, "true" if default is False else 77)
    yaml = model / "hyperparams.yaml"
    yaml.write_text(f"{name}: {value}\n{yaml.read_text()}")
    other = VQTokenizer.from_hparams(model, run_opts={"device": "cpu"})
    assert settings(other) == settings(plain) and other.device == "cpu"
    assert other.compute_precision == "fp32"
    assert type(other.mods.encoder) is type(plain.mods.encoder)
    wavs = torch.randn(2, 16000)
    assert torch.equal(other.encode_batch(wavs)[0], plain.encode_batch(wavs)[0])
    # Nor where the caller names no option.
    assert VQTokenizer.from_hparams(model).eval_precision == "fp32"


@pytest.mark.parametrize(
    "options",
    [
        {"run_opts": {"device": "cpu", "precision": "bf16"}},
        {"run_opts": RunOptions(device="cpu", eval_precision="bf16")},
        {"device": torch.device("cpu"), "dtype": "bf16"},
        {"device": "cpu", "dtype": torch.bfloat16},
    ],
)
def test_run_options_of_the_caller_count(model, options):
    tokenizer = VQTokenizer.from_pretrained(model, **options)
    assert tokenizer.compute_precision == "bf16" and tokenizer.device == "cpu"
    assert {p.dtype for p in tokenizer.parameters()} == {torch.float32}


def test_overrides(model, build):
    with pytest.raises(ValueError, match="export_pretrained"):
        build().save_pretrained(model.parent / "copy")
    yaml = model / "hyperparams.yaml"
    yaml.write_text(f"note: old\n{yaml.read_text()}")
    changed = VQTokenizer.from_hparams(model, overrides={"note": "new"})
    assert changed.hparams.note == "new"
    with pytest.raises(ValueError, match="overrides"):
        changed.save_pretrained(model.parent / "copy")
    with pytest.raises(ValueError, match="Did you mean 'token_rate'"):
        VQTokenizer.from_hparams(model, overrides={"tokens_rate": 1})


@pytest.mark.parametrize(
    "key, values",
    [
        (
            "sample_rate",
            "0 -1 999 16000.5 1e9 .nan .inf null '16000' true [1] 8000",
        ),
        ("token_rate", "0 -50.0 .nan .inf null 'a' true [1] 25.0 50.001 1e-9"),
    ],
)
def test_rates_that_are_impossible_or_contradict_the_modules(
    model, key, values
):
    yaml = model / "hyperparams.yaml"
    text = yaml.read_text()
    good = next(x for x in text.splitlines() if x.startswith(key))
    for value in values.split():
        yaml.write_text(text.replace(good, f"{key}: {value}"))
        with pytest.raises(ValueError, match=r"s\.yaml: \w+_rate is .*must be"):
            VQTokenizer.from_hparams(model)
    yaml.write_text(text.replace("sample_rate: 16000", "sample_rate: 16000.0"))
    tokenizer = VQTokenizer.from_hparams(model)
    assert isinstance(tokenizer.sample_rate, int)
    with pytest.raises(ValueError, match=f"yaml: {key} is -1"):
        VQTokenizer.from_hparams(model, overrides={key: -1})
    # Models that are built in Python, and modules that state no stride.
    modules = dict(tokenizer.mods.items())
    rates = {"sample_rate": 16000, "token_rate": 50.001}
    with pytest.raises(ValueError, match="token_rate is 50.001, but must be"):
        VQTokenizer(modules, rates)
    modules["encoder"] = torch.nn.Identity()
    assert VQTokenizer(modules, rates).token_rate == 50.001


@pytest.mark.parametrize("text", ["", "[1]", "{", "[" * 9999, "\xff"])
def test_a_broken_config_is_named(model, text):
    (model / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.json is not a JSON object"):
        VQTokenizer.from_hparams(model)


def test_saved_it_loads_as_it_was(model, plain, tmp_path):
    for name in "example.wav example.tokens.json codebook_usage.png".split():
        (model / name).write_text(name)
    plain.save_pretrained(tmp_path / "saved")
    names = {path.name for path in (tmp_path / "saved").iterdir()}
    assert names == {path.name for path in model.iterdir()}
    again = VQTokenizer.from_pretrained(tmp_path / "saved")
    assert again.fingerprint == plain.fingerprint
    assert again.source == str(tmp_path / "saved") and again.revision is None
    # Other weights, without what the card states of the former ones.
    again.mods.encoder.last.bias[0] += 1
    again.save_pretrained(tmp_path / "tuned")
    names = {path.name for path in (tmp_path / "tuned").iterdir()}
    assert names == {"config.json", "hyperparams.yaml", "model.safetensors"}
    third = VQTokenizer.from_pretrained(tmp_path / "tuned")
    assert third.fingerprint == again.fingerprint != plain.fingerprint
    # Over the folder that they are from.
    again.save_pretrained(tmp_path / "saved")
    third = VQTokenizer.from_pretrained(tmp_path / "saved")
    assert third.fingerprint == again.fingerprint != plain.fingerprint


def test_pushed_by_its_method_it_loads(hub, plain):
    assert "lab/mine" in plain.push_to_hub("lab/mine", token="hf_alice")
    loaded = VQTokenizer.from_pretrained("lab/mine")
    assert loaded.fingerprint == plain.fingerprint
    # New weights leave the card and the example where they are.
    names = {"README.md", "example.wav"}
    hub.put("lab/mine", dict.fromkeys(names, b"---\nlicense: mit\n---\n"))
    loaded.mods.encoder.last.bias[0] += 1
    loaded.push_to_hub("lab/mine", token="hf_alice")
    assert names < set(HfApi().list_repo_files("lab/mine"))
    with pytest.raises(HubError, match="lab/mine"):
        plain.push_to_hub("lab/mine", token="hf_bob")
