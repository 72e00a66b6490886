"""A tokenizer: the tokens of the model, whatever lies around a signal."""

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.dataio.audio import AudioError
from speechbrain_vq.inference import tokenize_to

RATE = 16000


def test_tokens_are_those_of_the_run(make_run, tmp_path):
    folder, modules = make_run()
    folder = export_pretrained(folder, tmp_path / "model")
    wavs = torch.randn(3, RATE)
    tokens, lengths = VQTokenizer.from_hparams(folder).encode_batch(wavs)
    assert lengths.tolist() == [1, 1, 1]
    # By the modules that were exported, step by step.
    for module in modules.values():
        module.eval()
    with torch.no_grad():
        mels = modules["features"](wavs, torch.ones(3))
        out = modules["quantizer"](*modules["encoder"](*mels))
    assert torch.equal(tokens, out.indices)


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


@pytest.mark.parametrize("seconds", [0.3, 1.0, 3.7, 60.0])
def test_tokens_of_pieces_are_those_of_the_whole(tokenizer, seconds):
    wav = torch.randn(10 * RATE + 123)
    whole = tokenizer.encode_batch(wav[None])[0][0]
    assert len(whole.unique()) > 5
    assert torch.equal(tokenizer.tokenize(wav, seconds), whole)
    assert torch.equal(tokenizer.tokenize(wav.split(1234), seconds), whole)


def test_tokens_of_more_samples_than_fp32_counts(tokenizer):
    # Beyond 2^24, where relative lengths in fp32 are too coarse for samples.
    wavs = torch.randn(2, 30 * RATE).repeat(1, 36)[:, : 2**24 + 12345]
    tokens, lengths = tokenizer.encode_batch(wavs, torch.tensor([1.0, 0.3]))
    for wav, row, length in zip(wavs, tokens, lengths, strict=True):
        number = round(float(length) * len(row))
        assert not row[number:].any()
        pieces = tokenizer.tokenize(wav[: number * RATE // 50])
        # Of two codewords equally near, either may be taken.
        assert (row[: number - 1] != pieces[:-1]).sum() < 5
    assert lengths.tolist() == pytest.approx([1.0, 0.3], abs=1e-5)


@pytest.mark.parametrize("seconds", [0, -1.0, float("inf"), float("nan")])
def test_impossible_lengths_of_chunks(tokenizer, tmp_path, seconds):
    audio = tmp_path / "a.wav"
    soundfile.write(audio, torch.randn(RATE).numpy() / 10, RATE)
    for encode, source in (
        (tokenizer.encode_file, audio),
        (tokenizer.tokenize, torch.randn(RATE)),
        (tokenizer.latents, torch.randn(RATE)),
    ):
        with pytest.raises(ValueError, match=r"^chunk_seconds is .* above 0"):
            encode(source, seconds)
    for name in ("out.jsonl", "shards"):
        options = {"format": "parquet"} if name == "shards" else {}
        with pytest.raises(ValueError, match=r"^batch_seconds is .* above 0"):
            tokenize_to(
                tmp_path / name,
                [audio],
                tokenizer,
                batch_seconds=seconds,
                **options,
            )
    assert list(tmp_path.glob("*.*")) == [audio]


def test_no_piece_is_longer_than_asked_for(tokenizer):
    sizes = []
    tokenizer.mods.features.register_forward_pre_hook(
        lambda module, inputs: sizes.append(inputs[0].shape[1])
    )
    tokenizer.tokenize(torch.randn(20 * RATE), 1.0)
    # The last one has what is left, less than one more.
    assert max(sizes) < 2 * RATE + 8 * 320


def test_a_model_that_sees_everything_is_given_everything(tokenizer):
    class Attentive(torch.nn.Module):
        def __init__(self, encoder):
            super().__init__()
            self.encoder = encoder

        def forward(self, features, lengths):
            latents, lengths = self.encoder(features, lengths)
            return latents - latents.mean(1, keepdim=True), lengths

    tokenizer.mods["encoder"] = Attentive(tokenizer.mods["encoder"])
    assert tokenizer.span is None
    wav = torch.randn(3 * RATE)
    whole = tokenizer.encode_batch(wav[None])[0][0]
    assert torch.equal(tokenizer.tokenize(wav.split(777), 1.0), whole)


def test_waveforms_of_any_shape_and_scale(tokenizer):
    wavs = (torch.randn(1, RATE) / 8).clamp(-1, 1)
    wavs = (wavs * 2**15).round() / 2**15
    tokens, _ = tokenizer.encode_batch(wavs)
    integers = (wavs * 2**15).to(torch.int16)
    others = wavs[0], wavs[:, None], wavs.double(), wavs.numpy()
    for other in (*others, integers, integers.numpy()):
        assert torch.equal(tokenizer.encode_batch(other)[0], tokens)
        assert torch.equal(tokenizer.tokenize(other), tokens[0])
        assert torch.equal(tokenizer.sig_to_tokens(other)[..., 0], tokens)
        speaker = tokenizer.speaker_batch(other)
        assert torch.equal(speaker, tokenizer.speaker_batch(wavs))
    for wrong in (wavs[..., None], wavs.expand(2, 2, -1), wavs[:0]):
        with pytest.raises(ValueError, match=r"Waveforms are \[B, samples\]"):
            tokenizer.encode_batch(wrong)
    for wrong in (integers.long(), wavs.bool(), [[0.5]]):
        with pytest.raises(TypeError, match="Waveforms are"):
            tokenizer.encode_batch(wrong)
    with pytest.raises(ValueError, match="Divide 16-bit integers by 32768"):
        tokenizer.encode_batch(integers.float())
    with pytest.raises(ValueError, match="waveforms hold NaN"):
        tokenizer.encode_batch(wavs.log())
    with pytest.raises(ValueError, match="one waveform"):
        tokenizer.tokenize(wavs.expand(2, -1))


@pytest.mark.parametrize("lens", [torch.tensor([RATE]), [50]])
def test_lengths_that_are_not_relative_are_refused(tokenizer, lens):
    with pytest.raises(TypeError, match="relative to the longest"):
        tokenizer.encode_batch(torch.randn(1, RATE), lens)
    with pytest.raises(TypeError, match="relative to the longest"):
        tokenizer.decode_batch(torch.zeros(1, 50, dtype=torch.long), lens)


@pytest.mark.parametrize("convert", [list, np.float64])
def test_lengths_and_speakers_of_other_types(tokenizer, convert):
    wavs, lens = torch.randn(2, RATE), np.array([1.0, 0.5], "float32")
    wavs[1, RATE // 2 :] = 0
    tokens, lengths = tokenizer.encode_batch(wavs, torch.tensor(lens))
    speakers = tokenizer.speaker_batch(wavs, torch.tensor(lens))
    sound = tokenizer.decode_batch(tokens, lengths, speakers)
    others = convert(lens)
    assert torch.equal(tokenizer.encode_batch(wavs, others)[0], tokens)
    assert torch.equal(tokenizer.speaker_batch(wavs, others), speakers)
    speakers = speakers.double().numpy()
    assert torch.equal(tokenizer.decode_batch(tokens, others, speakers), sound)


def test_a_file_that_cannot_be_encoded_is_named(tokenizer, tmp_path):
    path = tmp_path / "a.wav"
    for wav in (np.ones(100) / 9, np.full(RATE, np.nan)):
        soundfile.write(path, wav, RATE, subtype="FLOAT")
        with pytest.raises(AudioError, match="a.wav: .*(shorter|NaN)"):
            tokenizer.encode_file(path)
    path.unlink()
    with pytest.raises(AudioError, match="a.wav: there is no such file"):
        tokenizer.reconstruct_file(path, tmp_path / "b.wav")
    assert not list(tmp_path.glob("*.wav*"))


def test_latents_are_those_that_are_quantized(tokenizer):
    wav = torch.randn(3 * RATE)
    latents, lengths = tokenizer.latents_batch(wav)
    tokens = tokenizer.mods.quantizer.encode(latents, lengths)
    assert torch.equal(tokens, tokenizer.encode_batch(wav)[0])
    pieces = tokenizer.latents(wav.split(777), 1.0)
    torch.testing.assert_close(pieces, latents[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("number", [1, 4, 20])
def test_tokens_in_and_a_file_out(tokenizer, tmp_path, number):
    tokens = torch.randint(32, (number,))
    wavs = tokenizer.decode_batch(tokens[None])
    assert wavs.abs().amax() > 1  # An untrained model is loud.
    wavs = wavs / wavs.abs().amax()
    output = tmp_path / "a.wav"
    others = tokens.tolist(), tokens.numpy().astype(np.uint16)
    for given in (tokens, tokens[None], *others):
        wav = tokenizer.decode_file(given, output)
        assert torch.equal(wav, wavs[0])
        samples, rate = soundfile.read(output, dtype="float32")
        assert rate == RATE and len(samples) == number * 320
        np.testing.assert_allclose(samples, wav.numpy(), atol=1e-4)
    average = tokenizer.decode_file(tokens, output, torch.zeros(1, 4))
    assert torch.equal(average, wavs[0])
    voice = torch.ones(1, 4)
    other = tokenizer.decode_file(tokens, output, voice)
    assert not torch.equal(other, wavs[0])
    with pytest.raises(ValueError, match=r"embeddings must be \[B, 4\]"):
        tokenizer.decode_file(tokens, output, voice[0])
    several = tokens.expand(3, -1)
    alike = tokenizer.decode_batch(several, speaker=voice)
    wanted = tokenizer.decode_batch(several, speaker=voice.expand(3, -1))
    assert torch.equal(alike, wanted)
    for wrong in (0, 2):
        with pytest.raises(ValueError, match=r"\) for 3 utterances"):
            tokenizer.decode_batch(several, speaker=voice.expand(wrong, -1))
    with pytest.raises(ValueError, match=r"Tokens must be \[B, T\]"):
        tokenizer.decode_file(tokens[None, :, None], output)
    with pytest.raises(TypeError, match="Tokens must be integers"):
        tokenizer.decode_file(tokens.float(), output)
    with pytest.raises(ValueError, match="there are 2: decode them one by"):
        tokenizer.decode_file(tokens.expand(2, -1), output)
    for decode, empty in (
        (tokenizer.decode_batch, several[:0]),
        (tokenizer.decode_vectors, torch.zeros(0, number, 8)),
    ):
        with pytest.raises(ValueError, match="The batch is empty"):
            decode(empty)
    for seconds in (1.0, None):
        with pytest.raises(ValueError, match="There is no audio"):
            tokenizer.tokenize([], seconds)


@pytest.mark.parametrize("rate, channels", [(RATE, 1), (8000, 2)])
@pytest.mark.parametrize("samples", [16122, 16000, 15998])
def test_output_keeps_the_length(tokenizer, tmp_path, samples, rate, channels):
    one, other = tmp_path / "a.wav", tmp_path / "b.wav"
    size = samples * rate // RATE, channels
    soundfile.write(one, np.random.default_rng(0).normal(size=size) / 10, rate)
    tokens = tokenizer.reconstruct_file(one, other)
    assert torch.equal(tokens, tokenizer.encode_file(one))
    wav, rate = soundfile.read(other)
    assert rate == RATE and len(wav) == samples and np.abs(wav).max() > 0
