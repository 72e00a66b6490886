"""Export and load: whole, strict, and the same tokens.

Authors
 * speechbrain_vq authors 2026
"""

import json
import math

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.inference.tokenizer import read_config

RATE = 16000


@pytest.fixture
def model(make_run, tmp_path):
    folder, modules = make_run()
    return export_pretrained(folder, tmp_path / "model"), modules


def reference_tokens(modules, wavs):
    """Tokens of the modules that were exported, step by step."""
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        mels, lengths = modules["features"](wavs, torch.ones(len(wavs)))
        latents, lengths = modules["encoder"](mels, lengths)
        return modules["quantizer"](latents, lengths).indices


def test_tokens_are_those_of_the_run(model):
    folder, modules = model
    wavs = torch.randn(3, RATE)
    tokens, lengths = VQTokenizer.from_hparams(folder).encode_batch(wavs)
    assert torch.equal(tokens, reference_tokens(modules, wavs))
    assert lengths.tolist() == [1, 1, 1]


def test_a_file_alone_and_in_a_padded_batch_has_the_same_tokens(model):
    tokenizer = VQTokenizer.from_hparams(model[0])
    wavs = torch.zeros(2, 2 * RATE)
    wavs[0, :12345] = torch.randn(12345)
    wavs[1] = torch.randn(2 * RATE)
    lens = torch.tensor([12345 / (2 * RATE), 1.0])
    tokens, lengths = tokenizer.encode_batch(wavs, lens)
    alone, _ = tokenizer.encode_batch(wavs[:1, :12345])
    number = round(float(lengths[0]) * tokens.shape[1])
    assert number == alone.shape[1]
    assert torch.equal(tokens[0, :number], alone[0])
    assert not tokens[0, number:].any()


def test_files_in_and_out(model, tmp_path):
    tokenizer = VQTokenizer.from_hparams(model[0])
    samples = np.random.default_rng(0).normal(size=(8000, 2)) / 10
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    tokens = tokenizer.reconstruct_file(tmp_path / "a.wav", tmp_path / "b.wav")
    assert torch.equal(tokens, tokenizer.encode_file(tmp_path / "a.wav"))
    assert len(tokens) == tokenizer.token_rate
    wav, rate = soundfile.read(tmp_path / "b.wav")
    assert rate == RATE and len(wav) == RATE and np.abs(wav).max() > 0


def test_decoding_hears_the_speaker_given(model):
    tokenizer = VQTokenizer.from_hparams(model[0])
    tokens = torch.arange(20).unsqueeze(0)
    average = tokenizer.decode_batch(tokens)
    zeros = tokenizer.decode_batch(tokens, speaker=torch.zeros(1, 4))
    other = tokenizer.decode_batch(tokens, speaker=torch.ones(1, 4))
    assert torch.equal(average, zeros)
    assert not torch.equal(average, other)


def test_nothing_of_the_training_is_exported(model):
    folder, _ = model
    names = {path.name for path in folder.iterdir()}
    assert names == {"hyperparams.yaml", "config.json", "model.safetensors"}
    text = (folder / "hyperparams.yaml").read_text()
    assert "lr" not in text and "save" not in text and "Adam" not in text
    weights = load_file(folder / "model.safetensors")
    assert not [name for name in weights if "reservoir" in name]
    config = read_config(folder)
    assert config["codebook_size"] == 32 and config["arm"] == "robust"
    assert config["checkpoint"]["loss"] == 1.0


def spoil_weights(folder, change):
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop("encoder.first.weight"), "encoder.first.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "extra"),
        (
            lambda w: w.update(
                {"quantizer.codewords.weight": torch.ones(1, 64, 8)}
            ),
            r"quantizer.codewords.weight.*\[1, 64, 8\].*\[1, 32, 8\]",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(model, change, message):
    spoil_weights(model[0], change)
    with pytest.raises(ValueError, match=message):
        VQTokenizer.from_hparams(model[0])


def test_damaged_weights_are_named(model):
    path = model[0] / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(ValueError, match="model.safetensors is damaged"):
        VQTokenizer.from_hparams(model[0])


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no hyperparams.yaml"):
        VQTokenizer.from_hparams(tmp_path)


def test_warm_up_cannot_be_exported(make_run, tmp_path):
    def warm_up(modules):
        modules["quantizer"].bypass = True

    folder, _ = make_run(warm_up)
    with pytest.raises(ValueError, match="still in its warm-up"):
        export_pretrained(folder, tmp_path / "model", force=True)
    folder, _ = make_run(vq_warmup=True)
    assert not (tmp_path / "model").exists()


def test_only_warm_up_checkpoints_are_no_checkpoint(make_run, tmp_path):
    folder, _ = make_run(vq_warmup=True)
    with pytest.raises(FileNotFoundError, match="after the warm-up"):
        export_pretrained(folder, tmp_path / "model")


def test_weights_that_are_not_finite_need_force(make_run, tmp_path):
    def poison(modules):
        with torch.no_grad():
            modules["encoder"].last.bias[0] = math.nan

    folder, _ = make_run(poison)
    with pytest.raises(ValueError, match="'last.bias'.*not finite"):
        export_pretrained(folder, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    assert export_pretrained(folder, tmp_path / "model", force=True).exists()


def test_the_best_checkpoint_is_taken(make_run, tmp_path):
    make_run(lambda m: m["encoder"].last.bias.data.fill_(1.0), loss=0.5)
    folder, _ = make_run(lambda m: m["encoder"].last.bias.data.fill_(2.0))
    model = export_pretrained(folder, tmp_path / "a", min_key="loss")
    weights = load_file(model / "model.safetensors")
    assert weights["encoder.last.bias"][0] == 1.0
    model = export_pretrained(folder, tmp_path / "a")
    weights = load_file(model / "model.safetensors")
    assert weights["encoder.last.bias"][0] == 2.0


def test_a_run_that_moved_takes_its_own_checkpoints(make_run, tmp_path):
    folder, _ = make_run(lambda m: m["encoder"].last.bias.data.fill_(1.0))
    moved = folder.rename(tmp_path / "moved")
    make_run(lambda m: m["encoder"].last.bias.data.fill_(2.0))
    model = export_pretrained(moved, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    assert weights["encoder.last.bias"][0] == 1.0


def test_a_failed_export_leaves_nothing(make_run, tmp_path, monkeypatch):
    folder, _ = make_run()
    before = sorted(tmp_path.iterdir())

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("speechbrain_vq.hub.export.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        export_pretrained(folder, tmp_path / "model")
    assert sorted(tmp_path.iterdir()) == before


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="not the folder of a run"):
        export_pretrained(tmp_path, tmp_path / "model")


def test_config_is_plain_json(model):
    json.loads((model[0] / "config.json").read_text())
