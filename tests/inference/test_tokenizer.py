"""A tokenizer: the tokens of the model, whatever lies around a signal.

Authors
 * speechbrain_vq authors 2026
"""

import math

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_vq import VQTokenizer, export_pretrained

RATE = 16000


def reference_tokens(modules, wavs):
    """Tokens of the modules that were exported, step by step."""
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        mels, lengths = modules["features"](wavs, torch.ones(len(wavs)))
        latents, lengths = modules["encoder"](mels, lengths)
        return modules["quantizer"](latents, lengths).indices


def test_tokens_are_those_of_the_run(make_run, tmp_path):
    folder, modules = make_run()
    folder = export_pretrained(folder, tmp_path / "model")
    wavs = torch.randn(3, RATE)
    tokens, lengths = VQTokenizer.from_hparams(folder).encode_batch(wavs)
    assert torch.equal(tokens, reference_tokens(modules, wavs))
    assert lengths.tolist() == [1, 1, 1]


def test_a_file_alone_and_in_a_padded_batch_has_the_same_tokens(tokenizer):
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


def test_files_in_and_out(tokenizer, tmp_path):
    samples = np.random.default_rng(0).normal(size=(8000, 2)) / 10
    soundfile.write(tmp_path / "a.wav", samples, 8000)
    tokens = tokenizer.reconstruct_file(tmp_path / "a.wav", tmp_path / "b.wav")
    assert torch.equal(tokens, tokenizer.encode_file(tmp_path / "a.wav"))
    assert len(tokens) == tokenizer.token_rate
    wav, rate = soundfile.read(tmp_path / "b.wav")
    assert rate == RATE and len(wav) == RATE and np.abs(wav).max() > 0


def test_decoding_hears_the_speaker_given(tokenizer):
    tokens = torch.arange(20).unsqueeze(0)
    average = tokenizer.decode_batch(tokens)
    zeros = tokenizer.decode_batch(tokens, speaker=torch.zeros(1, 4))
    other = tokenizer.decode_batch(tokens, speaker=torch.ones(1, 4))
    assert torch.equal(average, zeros)
    assert not torch.equal(average, other)


def test_what_is_beyond_the_lengths_is_not_heard(tokenizer):
    wavs = torch.randn(2, RATE)
    lens = torch.tensor([1.0, 0.6])
    tokens, lengths = tokenizer.encode_batch(wavs, lens)
    wavs[1, round(0.6 * RATE) :] = math.nan
    again, _ = tokenizer.encode_batch(wavs, lens)
    assert torch.equal(tokens, again)
    assert lengths.tolist() == pytest.approx([1.0, 0.6])


def test_tokens_alone_and_in_a_padded_batch_sound_the_same(tokenizer):
    tokens = torch.randint(32, (3, 20))
    lengths = torch.tensor([0.35, 1.0, 0.0])
    speaker = torch.randn(3, 4)
    features = []
    tokenizer.mods.decoder.register_forward_hook(
        lambda module, inputs, output: features.append(output)
    )
    wavs = tokenizer.decode_batch(tokens, lengths, speaker)
    hop = RATE // 50
    assert wavs.shape == (3, 20 * hop)
    tokenizer.decode_batch(tokens[:1, :7], speaker=speaker[:1])
    # Of the last bits Griffin-Lim makes another phase, hence in two steps.
    padded = features[0][:1, :14]
    torch.testing.assert_close(padded, features[1], rtol=0, atol=1e-5)
    alone = tokenizer.mods.features.inverse(padded)
    assert torch.equal(wavs[0, : 7 * hop], alone[0])
    assert not wavs[0, 7 * hop :].any() and not wavs[2].any()
    tokens[0, 7:] = 5
    again = tokenizer.decode_batch(tokens, lengths, speaker)
    assert torch.equal(again[0], wavs[0])


def test_a_failed_reconstruction_leaves_no_file(tokenizer, tmp_path):
    with pytest.raises(ValueError, match="no.wav: there is no such file"):
        tokenizer.reconstruct_file(tmp_path / "no.wav", tmp_path / "b.wav")
    assert not list(tmp_path.glob("*.wav*"))
