"""A source-filter vocoder learns to speak from log-mels of a tokenizer that does
not learn."""

import importlib.util
import json

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.inference.vocoder_loading import load_vocoder
from speechbrain_vq.recipe_files import recipe_path
from tests.inference.conftest import build, make_run
from tests.recipe_tests import processes

__all__ = ["build", "make_run"]

RECIPE = recipe_path("DebianSpeech/vocoder")
RATE, HOP = 16000, 160
SMALL = {
    "n_mels": 20,
    "channels": 32,
    "num_layers": 2,
    "segment": 0.4,
    "shortest": 0.2,
    "batch_size": 2,
    "number_of_steps": 48,
    "lr_warmup": 2,
    "anneal": 0.0,
    "lr": 0.01,
    "pitch_weight": 1.0,
    "resolutions": [[512, 120, 400]],
}

_spec = importlib.util.spec_from_file_location("vocoder", RECIPE / "train.py")
recipe = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(recipe)


def buzz(pitch, seconds):
    """Pulses of a pitch, through two formants."""
    time = np.arange(round(seconds * RATE)) / RATE
    waves = [
        np.cos(2 * np.pi * pitch * k * time) / (1 + abs(pitch * k - 700) / 200)
        for k in range(1, int(4000 / pitch))
    ]
    return np.sum(waves, 0) / 20


@pytest.fixture
def data(tmp_path):
    """Manifests of a few buzzing sounds, one shorter than a segment, one too
    short."""
    folder = tmp_path / "data"
    folder.mkdir()
    noise, items = np.random.default_rng(0), {}
    for number, seconds in enumerate((0.6, 0.8, 0.7, 0.5, 0.3, 0.1)):
        wav = buzz(110 + 25 * number, seconds)
        wav += noise.normal(size=len(wav)) / 1000
        soundfile.write(folder / f"{number}.wav", wav, RATE)
        items[f"utt{number}"] = {
            "wav": f"{{data_root}}/{number}.wav",
            "length": seconds,
            "spk_id": "buzz",
            "words": "",
        }
    for split in ("train", "valid", "test"):
        (folder / f"{split}.json").write_text(json.dumps(items))
    return folder


def run(data, tokenizer, output, **changes):
    return processes.run(
        None,
        RECIPE,
        device="cpu",
        data_folder=data,
        tokenizer=tokenizer,
        output_folder=output,
        **{**SMALL, **changes},
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_learns_goes_on_and_speaks(data, make_run, tmp_path):
    tokenizer = export_pretrained(make_run()[0], tmp_path / "tokenizer")
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    result = run(data, tokenizer, whole)
    assert result.returncode == 0, result.stdout + result.stderr
    results = json.loads((whole / "results.json").read_text())
    log = (whole / "train_log.txt").read_text().splitlines()
    errors = [
        float(line.split("valid spectral_error: ")[1].split(",")[0])
        for line in log
        if "valid spectral_error" in line
    ]
    assert results["step"] == 48 and errors[-1] < 0.2 * errors[0], errors
    assert results["griffin_lim_spectral_error"] > 0

    # What was trained is what speaks.
    spoken = VQTokenizer.from_hparams(
        tokenizer, vocoder=whole / "model", run_opts={"device": "cpu"}
    )
    wav = torch.from_numpy(soundfile.read(data / "0.wav")[0]).float()[None]
    tokens, lengths = spoken.encode_batch(wav)
    mels = recipe.decoded_features(spoken, wav, 1)
    mels = spoken.mods.features.denormalize(mels)
    expected = load_vocoder(whole / "model").generator(mels)
    speaker = spoken.speaker_batch(wav)
    wavs = spoken.decode_batch(tokens, lengths, speaker)
    torch.testing.assert_close(wavs, expected, rtol=0, atol=1e-5)

    # A run in two parts ends with the same bits.
    assert run(data, tokenizer, halves, number_of_steps=24).returncode == 0
    assert run(data, tokenizer, halves).returncode == 0
    one, other = (
        load_vocoder(folder / "model").state_dict()
        for folder in (whole, halves)
    )
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("pitch", [80.0, 123.0, 310.0])
def test_f0_is_tracked_at_the_middle_of_each_hop(pitch):
    wav = torch.from_numpy(buzz(pitch, 0.5)).float()
    wav = torch.cat([torch.zeros(8000), wav, torch.zeros(8000)])
    track = recipe.track_f0(wav, RATE, HOP)
    assert len(track) == len(wav) // HOP
    inner = track[55:95]
    assert (1200 * torch.log2(inner / pitch)).abs().max() < 20
    assert (track[:45] == 0).all() and (track[105:] == 0).all()


def test_the_contour_goes_on_through_what_has_no_voice():
    track = torch.tensor([[0.0, 100.0, 0.0, 400.0, 0.0], [0.0] * 5])
    contour = [recipe.filled(row) for row in track]
    torch.testing.assert_close(
        contour[0], torch.tensor([100.0, 100.0, 200.0, 400.0, 400.0])
    )
    assert (contour[1] == 150).all()


def test_the_spectral_error_does_not_depend_on_the_level():
    torch.manual_seed(0)
    wavs, target = torch.randn(2, 2, 4000)
    resolutions = [[512, 120, 400], [256, 60, 200]]
    error = recipe.spectral_error(wavs, target, resolutions)
    quiet = recipe.spectral_error(wavs / 50, target / 50, resolutions)
    torch.testing.assert_close(quiet, error, rtol=1e-3, atol=0)
    assert recipe.spectral_error(target, target, resolutions) == 0
    nearer = recipe.spectral_error((wavs + target) / 2, target, resolutions)
    assert nearer < error
