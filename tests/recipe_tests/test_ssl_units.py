"""Units of an encoder of each family: trained, exported, and loaded with the
encoder that the caller names."""

import pytest
import torch

from speechbrain_vq import VQTokenizer
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import read_manifest
from speechbrain_vq.hub import download
from tests.commands import MINI
from tests.recipe_tests.phone_corpora import make_librispeech
from tests.recipe_tests.processes import finish
from tests.ssl_encoders import FAMILIES, make_encoder

RECIPE = "LibriSpeech/ssl-units"
OPTIONS = {
    "data_folder": "librispeech/data",
    "manifest_folder": "manifests",
    "output_folder": "out",
    "ssl_folder": "encoder",
    "ssl_layers": "[1, 2]",
    "number_of_steps": 40,
    "lr": 0.01,
}
NAME = "microsoft/wavlm-base-plus"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("family", FAMILIES)
def test_from_an_encoder_to_tokens(family, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    make_librispeech(tmp_path / "librispeech")
    encoder = make_encoder(family, tmp_path / "encoder")
    results, _ = finish(tmp_path, RECIPE, **OPTIONS, ssl_family=family)
    assert results["used_codes_percent"] > 30
    model = tmp_path / "out/model"
    # Our weights alone, and their size does not depend on the encoder's.
    assert (model / "model.safetensors").stat().st_size < 200_000
    card = (model / "README.md").read_text()
    assert f'tokenizer.use_ssl_encoder("{NAME}")' in card
    wavs = [
        read_audio(item["wav"], 16000)
        for item in read_manifest(tmp_path / "manifests/test.json").values()
    ]

    # Another repository is the caller's to name, and then fetched as pinned.
    tokenizer = VQTokenizer.from_hparams(model)
    with pytest.raises(ValueError, match=f'ssl_encoder="{NAME}"'):
        tokenizer.encode_batch(wavs[0])
    with pytest.raises(ValueError, match=f"trained with '{NAME}'"):
        tokenizer.use_ssl_encoder("org/name")
    fetched = []

    def snapshot(*args):
        fetched.append((args[0], args[5]))
        return encoder

    monkeypatch.setattr(download, "_snapshot", snapshot)
    tokenizer.use_ssl_encoder(NAME)
    revision = tokenizer.mods.features.revision
    assert fetched == [(NAME, revision)] and len(revision) == 40

    # Loaded again, and in a padded batch, an utterance has the same tokens.
    again = VQTokenizer.from_hparams(model, ssl_encoder=encoder)
    alone = [tokenizer.encode_batch(wav)[0][0] for wav in wavs]
    batch = torch.nn.utils.rnn.pad_sequence(wavs, batch_first=True)
    lengths = torch.tensor([len(wav) for wav in wavs]) / batch.shape[1]
    tokens, _ = again.encode_batch(batch, lengths)
    for row, one in zip(tokens, alone, strict=True):
        assert torch.equal(row[: len(one)], one) and not row[len(one) :].any()
    one = again.sig_to_tokens(batch, lengths)
    assert one.shape == (*tokens.shape, 1) and torch.equal(one[..., 0], tokens)
    assert again.tokens_to_sig(one, lengths).shape[0] == len(wavs)

    # The mean of the normalized features is 0.
    error = size = 0.0
    for wav, units in zip(wavs, alone, strict=True):
        wav = wav.unsqueeze(0)
        features, _ = again.mods.features(wav, torch.ones(1))
        voice = again.speaker_batch(wav)
        vectors = again.mods.quantizer.decode(units.unsqueeze(0))
        decoded = again.mods.decoder(vectors, voice)
        error += (decoded - features)[..., :16].square().sum()
        size += features[..., :16].square().sum()
    assert error < 0.9 * size


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_model_without_log_mels_decodes_to_no_speech(tmp_path):
    pytest.importorskip("transformers")
    make_librispeech(tmp_path / "librispeech")
    make_encoder("WavLM", tmp_path / "encoder")
    finish(tmp_path, RECIPE, **OPTIONS, mel_bands=0, ssl_weights="[1, 3]")
    tokenizer = VQTokenizer.from_hparams(
        tmp_path / "out/model", ssl_encoder=tmp_path / "encoder"
    )
    tokens, _ = tokenizer.encode_batch(torch.randn(1, 16000) / 10)
    assert tokens.shape == (1, 50)
    with pytest.raises(ValueError, match="mel_bands=80"):
        tokenizer.decode_batch(tokens)


def test_the_weights_that_there_are_are_fetched(monkeypatch, tmp_path):
    asked = []

    def snapshot(*args):
        asked.append(args[-1][-1])
        return tmp_path

    monkeypatch.setattr(download, "_snapshot", snapshot)
    (tmp_path / "pytorch_model.bin").touch()
    assert download.download_encoder("org/name", "0" * 40) == tmp_path
    assert asked == ["model.safetensors", "pytorch_model.bin"]
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(RuntimeError, match="has no model.safetensors or"):
        download.download_encoder("org/name", "0" * 40)


def test_models_without_an_encoder_take_none():
    with pytest.raises(ValueError, match="leave ssl_encoder out"):
        VQTokenizer.from_hparams(MINI, ssl_encoder="org/name")
