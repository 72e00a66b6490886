"""Features of self-supervised encoders: those of each family, whatever they
are padded with, and nothing of the encoder in the weights."""

import pytest
import torch

from speechbrain_vq.lobes.ssl import FAMILIES, FrameEncoder, SSLFeatures

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def make(family, layers=1, **options):
    return SSLFeatures(family, "org/name", COMMIT, 16, layers, **options)


@pytest.fixture(scope="module", params=FAMILIES)
def encoder(request, tmp_path_factory):
    pytest.importorskip("transformers")
    from tests.ssl_encoders import make_encoder

    folder = tmp_path_factory.mktemp("ssl")
    return request.param, make_encoder(request.param, folder)


@pytest.fixture
def features(encoder):
    features = make(encoder[0])
    features.load_encoder(encoder[1])
    return features


def test_an_utterance_has_the_same_features_alone_and_in_a_batch(features):
    generator = torch.Generator().manual_seed(0)
    wavs = torch.randn(2, 32000, generator=generator) / 10
    wavs[1, 16100:] = 0
    lengths = torch.tensor([1.0, 16100 / 32000])
    ours, relative = features(wavs, lengths)
    assert ours.shape == (2, 100, 16)
    assert torch.equal(relative, torch.tensor([1.0, 0.5]))
    alone, _ = features(wavs[1:, :16100], torch.ones(1))
    # To the last bit: each is encoded for itself.
    assert torch.equal(ours[1, :50], alone[0]) and not ours[1, 50:].any()
    louder = torch.stack((wavs[0] * 5, wavs[1]))
    assert torch.equal(features(louder, lengths)[0][1], ours[1])


def test_layers_are_those_of_speechbrain_s_wrapper(encoder):
    family, folder = encoder
    chosen = make(family, [0, 2], layer_weights=[1.0, 3.0])
    single = [make(family, layer) for layer in (0, 2)]
    wavs = torch.randn(1, 8000) / 10
    outputs = []
    for one in (chosen, *single):
        one.load_encoder(folder)
        outputs.append(one(wavs, torch.ones(1))[0])
    assert torch.allclose(outputs[0], outputs[1] / 4 + outputs[2] * 3 / 4)
    # A signal of whole hops lacks the end of the last frame.
    padded = torch.nn.functional.pad(wavs, (0, chosen._margin))
    hidden = single[0]._encoder[0](padded)
    assert torch.equal(outputs[2][0], hidden[2, 0, :25])


def test_statistics_are_those_of_the_corpus(features):
    wavs = [torch.randn(1, n) / 10 for n in (16000, 9000)]
    features.fit(iter(wavs))
    both = torch.cat([features(wav, torch.ones(1))[0][0] for wav in wavs])
    assert both.mean(0).abs().max() < 1e-3
    assert (both.std(0, correction=0) - 1).abs().max() < 1e-3
    # The encoder belongs to others.
    assert set(features.state_dict()) == {"mean", "std", "encoder_norms"}
    assert not list(features.parameters())


def test_long_signals_are_encoded_in_windows(features):
    wavs = torch.randn(1, 31 * 16000) / 10
    ours, _ = features(wavs, torch.ones(1))
    assert ours.shape == (1, 31 * 50, 16)
    second, _ = features(wavs[:, 30 * 16000 :], torch.ones(1))
    assert torch.equal(ours[:, 30 * 50 :], second)


def test_another_encoder_than_in_the_training_is_refused(encoder, tmp_path):
    from tests.ssl_encoders import make_encoder

    family, folder = encoder
    trained, loaded = make(family), make(family)
    trained.load_encoder(folder)
    loaded.load_state_dict(trained.state_dict())
    with pytest.raises(ValueError, match=f"org/name at commit {COMMIT}"):
        loaded.load_encoder(make_encoder(family, tmp_path, seed=1))
    loaded.load_encoder(folder)


def test_log_mels_are_appended_and_inverted(encoder):
    features = make(encoder[0], n_mels=20)
    features.load_encoder(encoder[1])
    wavs = torch.randn(1, 16000) / 10
    features.fit([wavs])
    ours, _ = features(wavs, torch.ones(1))
    assert ours.shape == (1, 50, 36)
    assert torch.equal(ours[..., 16:], features.mel(wavs, torch.ones(1))[0])
    assert features.inverse(ours).shape == (1, 16000)


def test_wrong_arguments_name_the_way_out(encoder):
    family, folder = encoder
    with pytest.raises(ValueError, match="choose from WavLM, HuBERT"):
        make("Mockingjay")
    with pytest.raises(ValueError, match="name a commit"):
        SSLFeatures(family, "org/name", "main", 16, 1)
    with pytest.raises(ValueError, match="2 weights"):
        make(family, [1, 2], layer_weights=[1.0])
    with pytest.raises(ValueError, match="hidden states 0 to 2"):
        make(family, 3).load_encoder(folder)
    with pytest.raises(ValueError, match="set feature_dim"):
        SSLFeatures(family, "o/n", COMMIT, 8, 1).load_encoder(folder)
    features = make(family)
    with pytest.raises(ValueError, match='ssl_encoder="org/name"'):
        features(torch.zeros(1, 16000), torch.ones(1))
    with pytest.raises(ValueError, match="mel_bands=80"):
        features.inverse(torch.zeros(1, 5, 16))
    if family != "Whisper":
        with pytest.raises(ValueError, match="every 320 samples"):
            make(family, hop_length=160).load_encoder(folder)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(ImportError, match=r"speechbrain-vq\[ssl\]"):
        make("WavLM").load_encoder(".")


def test_frames_are_encoded_by_a_linear_map_of_the_first_channels():
    encoder = FrameEncoder(4, 3, stride=2)
    features = torch.randn(2, 5, 6)
    latents, relative = encoder(features, torch.tensor([1.0, 0.6]))
    assert latents.shape == (2, 3, 3)
    assert torch.allclose(relative, torch.tensor([1.0, 2 / 3]))
    expected = encoder.linear(features[0, 2:4, :4].flatten())
    assert torch.allclose(latents[0, 1], expected, atol=1e-6)
    assert not latents[1, 2:].any()
