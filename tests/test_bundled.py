"""The model that comes with the package is what its card says."""

import json
import pathlib

import pytest
import soundfile
import torch
from huggingface_hub import ModelCard

from speechbrain_vq import VQTokenizer, bundled

MINI = pathlib.Path(bundled("mini"))


def test_its_tokens_are_those_of_its_example_bit_for_bit():
    tokenizer = VQTokenizer.from_hparams(bundled("mini"))
    example = json.loads((MINI / "example.tokens.json").read_text())
    tokens = tokenizer.encode_file(MINI / example["file"]).tolist()
    assert tokens == example["tokens"]
    _, rate = soundfile.read(MINI / example["file"])
    assert rate == tokenizer.sample_rate == 16000
    # What would be the same for a model that learned nothing.
    assert len(set(tokens)) > len(tokens) / 3


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_the_same_at_another_default_precision(dtype):
    def use():
        tokenizer = VQTokenizer.from_hparams(bundled("mini"))
        tokens = tokenizer.encode_file(MINI / "example.wav")[:40]
        return tokens, tokenizer.decode_batch(tokens.unsqueeze(0))

    tokens, wavs = use()
    torch.set_default_dtype(dtype)
    try:
        again, heard = use()
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(again, tokens) and torch.equal(heard, wavs)


def test_it_is_complete_and_small():
    assert {path.name for path in MINI.iterdir()} == {
        "README.md",
        "codebook_usage.png",
        "config.json",
        "example.tokens.json",
        "example.wav",
        "hyperparams.yaml",
        "model.safetensors",
        "spectrogram.png",
    }
    assert sum(path.stat().st_size for path in MINI.iterdir()) < 5e6


def test_its_card_says_how_it_was_made_and_how_good_it_is():
    card = ModelCard.load(MINI / "README.md")
    assert "recipe `MiniSpeech/unit-discovery`" in card.text
    assert "arm `robust`" in card.text and "1600 steps" in card.text
    assert "synthetic" in card.text and "Exported by force" not in card.text
    told = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert told["used_codes_percent"] > 80 and told["pnmi"] > 0.55
    config = json.loads((MINI / "config.json").read_text())
    assert config["arm"] == "robust" and config["codebook_size"] == 512


def test_another_name_is_told():
    with pytest.raises(ValueError, match="No bundled model 'mni'.*'mini'"):
        bundled("mni")
