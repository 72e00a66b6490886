"""Autoencoder of speech features: padding changes no output."""

import pytest
import torch

from speechbrain_vq.lobes.autoencoder import (
    ConvDecoder,
    ConvEncoder,
    SpeakerEncoder,
    WindowPredictor,
    utterance_moments,
)
from speechbrain_vq.lobes.features import LogMel

RATE = 16000


@pytest.mark.parametrize("samples", [RATE, RATE + 159, 12345, 400])
@pytest.mark.parametrize("stride", [2, 4])
@pytest.mark.parametrize(
    "norm, linear", [(False, False), (True, False), (True, True)]
)
def test_padding_changes_nothing(samples, stride, norm, linear):
    features = LogMel(n_mels=20, relative_floor=1e-4 if linear else None)
    options = {"stride": stride, "linear": linear}
    encoder = ConvEncoder(20, 8, 16, utterance_norm=norm, **options)
    decoder = ConvDecoder(8, 20, 4, 16, moments=linear, **options)
    speaker = SpeakerEncoder(20, 4, moments=linear).eval()

    def run(wavs, lengths):
        mels, lengths = features(wavs, lengths)
        latents, token_lengths = encoder(mels, lengths)
        voice = speaker(mels, lengths)
        decoded = decoder(latents, voice, token_lengths)
        tokens = torch.round(token_lengths * latents.shape[1]).int()
        return mels, latents, decoded, voice, tokens

    wav = torch.randn(samples)
    batch = torch.zeros(3, 2 * RATE + 77)
    batch[0, :samples] = wav
    batch[1] = torch.randn(batch.shape[1])
    lengths = torch.tensor([samples / batch.shape[1], 1.0, 0.5])
    alone = run(wav.unsqueeze(0), torch.ones(1))
    padded = run(batch, lengths)
    assert alone[4][0] == padded[4][0]
    for one, many in zip(alone[:3], padded[:3], strict=True):
        frames = one.shape[1]
        torch.testing.assert_close(many[0, :frames], one[0])
        assert not many[0, frames:].any()
    torch.testing.assert_close(padded[3][0], alone[3][0])


def test_fit_normalizes_the_training_features():
    features = LogMel(n_mels=20)
    wavs = [torch.randn(1, RATE + 160 * i) * (i + 1) for i in range(3)]
    features.fit(wavs)
    mels = torch.cat([features(w, torch.ones(1))[0][0] for w in wavs])
    assert mels.mean(0).abs().max() < 1e-4
    assert (mels.std(0, correction=0) - 1).abs().max() < 1e-3


def glide(samples):
    """Harmonics of a rising pitch."""
    time = torch.arange(samples) / RATE
    phase = 2 * torch.pi * (120 * time + 40 * time**2)
    return sum(torch.sin(k * phase) / k for k in range(1, 12))


def test_inverse_preserves_speech_like_features():
    """A harmonic glide keeps its time and pitch."""
    wav, features = glide(RATE).unsqueeze(0) / 4, LogMel()
    mels, _ = features(wav, torch.ones(1))
    again, _ = features(features.inverse(mels), torch.ones(1))
    inner = slice(5, -5)
    error = (mels - again)[:, inner].abs().mean()
    assert error < 0.2 * (mels - mels.mean()).abs().mean()
    assert error < (mels[:, 6:-6] - again[:, 8:-4]).abs().mean()


def test_features_of_silence_are_finite():
    features = LogMel()
    features.fit([torch.zeros(1, RATE)])
    mels, _ = features(torch.zeros(1, RATE), torch.ones(1))
    assert torch.isfinite(mels).all()


def test_zero_embedding_is_the_average_speaker():
    speaker = SpeakerEncoder(20, 4)
    mels = torch.randn(64, 50, 20) * torch.rand(64, 1, 20)
    for _ in range(100):
        speaker(mels, torch.ones(64))
    assert speaker.eval()(mels, torch.ones(64)).mean(0).abs().max() < 0.05


def test_utterance_norm_removes_offset_and_scale_of_bands():
    plain = ConvEncoder(20, 8, channels=16)
    normed = ConvEncoder(20, 8, channels=16, utterance_norm=True)
    normed.load_state_dict(plain.state_dict())
    features, lengths = torch.randn(2, 100, 20), torch.ones(2)
    other = features * torch.rand(20).add(0.5) + torch.randn(20)
    results = normed(features, lengths)[0], normed(other, lengths)[0]
    torch.testing.assert_close(*results, atol=1e-3, rtol=1e-3)
    difference = plain(features, lengths)[0] - plain(other, lengths)[0]
    assert difference.abs().max() > 0.1
    assert plain.context is not None and normed.context is None


def test_pieces_get_the_moments_of_their_utterances():
    encoder = ConvEncoder(20, 8, 16, utterance_norm=True, linear=True)
    features, lengths = torch.randn(2, 100, 20), torch.tensor([1.0, 0.9])
    features[1, 90:] = 0
    features[:, 50:] += 1
    whole, _ = encoder(features, lengths)
    moments = utterance_moments(features, lengths)
    piece, _ = encoder(features[:, 40:80], torch.ones(2), moments)
    # Beyond the padding of the piece's ends.
    torch.testing.assert_close(piece[:, 4:-4], whole[:, 24:36])
    alone, _ = encoder(features[:, 40:80], torch.ones(2))
    assert (alone[:, 4:-4] - whole[:, 24:36]).abs().max() > 0.1


def test_the_decoder_gives_the_moments_back():
    decoder = ConvDecoder(8, 20, 4, 16, linear=True, moments=True)
    speaker = SpeakerEncoder(20, 4, moments=True).eval()
    features = torch.randn(2, 50, 20) * 3 + torch.randn(20)
    mean, std = utterance_moments(features, torch.ones(2))
    voice, latents = speaker(features, torch.ones(2)), torch.randn(2, 9, 8)
    assert voice.shape == (2, speaker.output_dim) == (2, 44)
    average = voice.clone()
    average[:, 4:] = 0  # A mean of 0, a deviation of 1.
    wanted = decoder(latents, average) * std[:, None] + mean[:, None]
    torch.testing.assert_close(decoder(latents, voice), wanted)


def test_the_linear_paths_reach_a_token_and_its_own_frames_alone():
    encoder = ConvEncoder(5, 8, 16, stride=3, linear=True)
    decoder = ConvDecoder(8, 5, 4, 16, stride=3, linear=True)
    plain = ConvEncoder(5, 8, 16, stride=3), ConvDecoder(8, 5, 4, 16, stride=3)
    for part, other in zip((encoder, decoder), plain, strict=True):
        other.load_state_dict(part.state_dict(), strict=False)
    features, lengths = torch.randn(1, 9, 5), torch.ones(1)
    added = encoder(features, lengths)[0] - plain[0](features, lengths)[0]
    own = features[0, 3:6].flatten()
    torch.testing.assert_close(added[0, 1], encoder.linear(own))
    latents, voice = torch.randn(1, 3, 8), torch.randn(1, 4)
    added = decoder(latents, voice) - plain[1](latents, voice)
    own = decoder.linear(latents[0, 1]).view(3, 5)
    torch.testing.assert_close(added[0, 3:6], own)


@pytest.mark.parametrize("volume", [0.1, 10.0])
def test_tokens_do_not_depend_on_the_level(volume):
    """Voiced and noisy sounds, with digital silence in between."""
    wav = glide(3 * RATE) / 100
    wav[RATE : 2 * RATE] = torch.randn(RATE) / 1000
    wav[2 * RATE : 2 * RATE + 4000] = 0
    encoder = ConvEncoder(80, 16, 32, utterance_norm=True, linear=True)

    def latents(wav, **options):
        mels = LogMel(**options)(wav.unsqueeze(0), torch.ones(1))
        return encoder(*mels)[0][0]

    def tokens(latents):
        return torch.cdist(latents, codebook).argmin(1)

    codebook = latents(wav, relative_floor=1e-4)[torch.randperm(150)[:64]]
    codebook = codebook + torch.randn_like(codebook) / 10
    before = tokens(latents(wav, relative_floor=1e-4))
    after = tokens(latents(volume * wav, relative_floor=1e-4))
    assert (before == after).float().mean() > 0.99
    # The level must not be lost, as a decoder gives it back.
    loud, quiet = (
        LogMel(relative_floor=1e-4)(w.unsqueeze(0), torch.ones(1))[0]
        for w in (volume * wav, wav)
    )
    shift = torch.full_like(loud, volume).log()
    torch.testing.assert_close(loud - quiet, shift, atol=0.01, rtol=0)


def test_features_ignore_a_constant_offset():
    wavs = torch.stack([glide(RATE) / 100, glide(RATE) / 30])
    wavs, lengths = wavs - wavs.mean(1, keepdim=True), torch.tensor([1.0, 0.5])
    valid = torch.arange(RATE) < RATE * lengths.unsqueeze(1)
    wavs[1, : RATE // 2] -= wavs[1, : RATE // 2].mean()
    for floor in (None, 1e-4):
        ours = LogMel(relative_floor=floor, remove_offset=True)
        expected, _ = LogMel(relative_floor=floor)(wavs * valid, lengths)
        shifted, _ = ours((wavs + 0.2) * valid, lengths)
        torch.testing.assert_close(shifted, expected, atol=0.01, rtol=0)
        plain, _ = LogMel(relative_floor=floor)((wavs + 0.2) * valid, lengths)
        assert (plain - expected).abs().max() > 1
        ours.fit([wavs[:1] + 0.2])
        mean = LogMel(relative_floor=floor)(wavs[:1], torch.ones(1))[0].mean(1)
        torch.testing.assert_close(ours.mean, mean[0], atol=0.01, rtol=0)


def test_decoder_errors_count_valid_frames_only():
    decoder, features = ConvDecoder(8, 5, 4, channels=16), torch.randn(2, 7, 5)
    decoded, lengths = torch.randn(2, 8, 5), torch.tensor([1.0, 3 / 7])
    error, size = decoder.errors(decoded, features, lengths)
    difference = (decoded[:, :7] - features).abs()
    expected = difference[0].sum() + difference[1, :3].sum()
    torch.testing.assert_close(error, expected)
    assert size == (7 + 3) * 5
    assert decoder.metrics(0.25) == {"reconstruction_error": 0.25}


def test_window_predictor_compares_with_the_frames_around_each_token():
    predictor = WindowPredictor(8, 5, stride=2, window=2)
    # The second has 2 tokens, one with a single frame; then padding.
    quantized, features = torch.randn(2, 4, 8), torch.randn(2, 7, 5)
    lengths = torch.tensor([1.0, 3 / 7])
    total = count = 0
    for row, frames in enumerate([7, 3]):
        for token in range(-(-frames // 2)):
            window = predictor.linear(quantized[row, token]).view(10, 5)
            for place, predicted in enumerate(window):
                frame = 2 * (token - 2) + place
                if 0 <= frame < frames:
                    total += (predicted - features[row, frame]).abs().sum()
                    count += 5
    loss = predictor(quantized, features, lengths)
    torch.testing.assert_close(loss, total / count)
