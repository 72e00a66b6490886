"""WaveNet: causality, equal logits in parallel and incrementally, and padding
that changes nothing."""

import math
import pathlib

import pytest
import soundfile
import torch
from speechbrain.lobes.models.HifiGAN import HifiganGenerator
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from speechbrain_vq import VQTokenizer
from speechbrain_vq.inference.vocoders import HifiGAN
from speechbrain_vq.lobes import wavenet
from speechbrain_vq.lobes.wavenet import LEVELS, SILENCE, WaveNetDecoder

RATE, HOP = 16000, 20
EXPORTED = pathlib.Path(__file__).parents[1] / "hub/exported/wavenet"


def small_decoder(window=3, **options):
    """Build a small decoder: two cycles of four layers cover 31 samples."""
    torch.manual_seed(0)
    sizes = {"channels": 6, "num_layers": 8, "cycle": 4, "skip_channels": 12}
    options = {"condition_channels": 7, **sizes, **options}
    return WaveNetDecoder(5, 3, HOP, window=window, **options)


def random_inputs(batch, tokens):
    """Draw latents, speaker embeddings and waveforms."""
    torch.manual_seed(1)
    wavs = torch.rand(batch, tokens * HOP) - 0.5
    return torch.randn(batch, tokens, 5), torch.randn(batch, 3), wavs


def logits(decoder, levels, latents, speaker):
    previous = torch.nn.functional.pad(levels, (1, -1), value=SILENCE)
    return decoder.logits(previous, decoder.conditions(latents, speaker))


def test_logits_depend_on_past_samples_only():
    decoder, (latents, speaker, _) = small_decoder(), random_inputs(2, 6)
    levels = torch.randint(LEVELS, (2, 6 * HOP))
    expected = logits(decoder, levels, latents, speaker)
    for time in (0, 1, 50, 119):
        other = levels.clone()
        other[:, time:] = (other[:, time:] + 100) % LEVELS
        changed = logits(decoder, other, latents, speaker) != expected
        assert not changed[:, : time + 1].any()
        if time < 119:
            assert changed[:, time + 1].any()


@pytest.mark.parametrize("layers, cycle, field", [(8, 4, 31), (5, 3, 11)])
def test_the_receptive_field_is_as_computed(layers, cycle, field):
    decoder = small_decoder(num_layers=layers, cycle=cycle).double()
    assert decoder.receptive_field == field
    latents, speaker, _ = random_inputs(1, 6)
    conditions = decoder.conditions(latents.double(), speaker.double())
    x = torch.randn(1, 6 * HOP, 6, dtype=torch.double, requires_grad=True)
    # Replaces the embedded levels, which are shifted by one sample.
    decoder.first = torch.nn.Identity()
    decoder.logits(x, conditions)[0, 80].square().sum().backward()
    receptive = x.grad[0].abs().sum(1).nonzero().flatten()
    assert receptive.max() == 80 and receptive.min() == 80 - field + 1


def test_default_size_is_that_of_the_paper():
    decoder = WaveNetDecoder(64, 32, 320)
    assert decoder.receptive_field == 2047
    assert decoder.window * decoder.samples_per_token == 5120


def test_generated_samples_follow_the_distribution():
    """Each random number lies within its level's interval of the cumulative
    distribution, computed in parallel."""
    decoder = small_decoder().eval().double()
    with torch.no_grad():
        decoder.last.weight.mul_(8)
    latents, speaker, _ = (x.double() for x in random_inputs(2, 6))
    draws = torch.rand(6 * HOP)
    conditions = decoder.conditions(latents, speaker)
    levels = wavenet.generate(decoder, conditions, draws).clone()
    probabilities = logits(decoder, levels, latents, speaker).softmax(2)
    sums = probabilities.cumsum(2)
    own = levels.unsqueeze(2)
    upper = sums.gather(2, own).squeeze(2)
    lower = upper - probabilities.gather(2, own).squeeze(2)
    assert (lower - 1e-9 <= draws).all() and (draws <= upper + 1e-9).all()
    assert len(levels.unique()) > 20


def test_the_seed_determines_waveforms_and_padding_does_not():
    decoder, (latents, speaker, _) = small_decoder().eval(), random_inputs(3, 6)
    lengths = torch.tensor([1.0, 0.5, 0.0])
    state = torch.get_rng_state()
    wavs = decoder.generate(latents, speaker, lengths, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert wavs.shape == (3, 6 * HOP) and wavs.abs().max() <= 1
    again = decoder.generate(latents, speaker, lengths, seed=3)
    assert torch.equal(wavs, again)
    other = decoder.generate(latents, speaker, lengths, seed=4)
    assert not torch.equal(wavs, other)
    latents[1, 3:] = 9
    alone = decoder.generate(latents[1:2, :3], speaker[1:2], seed=3)
    assert torch.equal(wavs[1, : 3 * HOP], alone[0])
    assert not wavs[1, 3 * HOP :].any() and not wavs[2].any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("samples", [4 * HOP, 4 * HOP - 7, 4 * HOP + 3])
def test_padding_changes_no_errors(samples, training):
    # In training the window covers all latents, since its start is random.
    decoder = small_decoder(window=9 if training else 2).train(training)
    latents, speaker, wavs = random_inputs(3, 9)
    lengths = torch.tensor([4 / 9, 1.0, 0.0])
    wav_lengths = torch.tensor([samples / wavs.shape[1], 1.0, 0.0])

    def errors(rows, tokens, samples, *lengths):
        inputs = latents[rows, :tokens], speaker[rows], lengths[0]
        predictions = decoder(*inputs, wavs[rows, :samples], lengths[1])
        return (*decoder.errors(predictions, None, None), predictions)

    whole = torch.ones(1)
    alone = errors(slice(0, 1), 4, samples, whole, whole)
    second = errors(slice(1, 2), 9, 9 * HOP, whole, whole)
    padded = errors(slice(0, 3), 9, 9 * HOP, lengths, wav_lengths)
    assert alone[1] == min(samples, 4 * HOP)
    assert padded[1] == alone[1] + second[1]
    torch.testing.assert_close(padded[0], alone[0] + second[0])
    assert not padded[2].nats[~padded[2].valid].any()
    latents[0, 4:] = 3
    again = errors(slice(0, 3), 9, 9 * HOP, lengths, wav_lengths)
    torch.testing.assert_close(again[0], padded[0])


def test_evaluation_windows_have_full_context():
    latents, speaker, wavs = random_inputs(2, 9)
    full = torch.ones(2)
    predictions = [
        small_decoder(window).eval()(latents, speaker, full, wavs, full).nats
        for window in (1, 2, 9, 20)
    ]
    levels = mu_law_encoding(wavs, LEVELS)
    scores = logits(small_decoder(), levels, latents, speaker)
    nats = -scores.log_softmax(2).gather(2, levels.unsqueeze(2)).squeeze(2)
    for pieces in predictions:
        torch.testing.assert_close(pieces, nats)


def test_training_windows_start_anywhere():
    decoder = small_decoder(window=2)
    latents, speaker, wavs = random_inputs(64, 9)
    # Levels in place of errors identify the window.
    levels = mu_law_encoding(wavs, LEVELS)
    decoder._errors = lambda _, *others: others
    lengths = torch.full((64,), 5 / 9)
    lengths[0] = 1.0
    window_levels, previous, valid = decoder(
        latents, speaker, lengths, wavs, torch.ones(64)
    )
    assert valid.all() and window_levels.shape == (64, 2, HOP)
    starts = []
    for row in range(64):
        places = levels[row].unfold(0, 2 * HOP, HOP)
        start = (places == window_levels[row].flatten()).all(1).nonzero().item()
        first = levels[row, start * HOP - 1] if start else SILENCE
        assert previous[row, 0, 0] == first
        starts.append(start)
    assert set(starts[1:]) == {0, 1, 2, 3}


def test_all_weights_and_inputs_get_gradients():
    decoder, (latents, speaker, wavs) = small_decoder(), random_inputs(2, 6)
    latents.requires_grad_(), speaker.requires_grad_()
    predictions = decoder(latents, speaker, torch.ones(2), wavs, torch.ones(2))
    error, size = decoder.errors(predictions, None, None)
    (error / size).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
    assert latents.grad.any() and speaker.grad.any()


def test_decoder_learns_from_context_and_latents():
    """Each tone has five equally frequent levels: 2.3 bits a sample without
    context, almost none with it. Only the latents identify the tone."""
    sizes = {"channels": 16, "skip_channels": 32, "num_layers": 4}
    decoder = small_decoder(window=4, **sizes)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    tone = torch.linspace(-0.8, 0.8, 5)
    wavs = torch.stack([tone, tone[[0, 3, 1, 4, 2]]]).repeat(4, 4 * HOP // 5)
    tones = torch.arange(2).repeat(4)
    latents = torch.eye(5)[tones].unsqueeze(1).repeat(1, 4, 1)
    speaker, full = torch.zeros(8, 3), torch.ones(8)
    for _ in range(150):
        predictions = decoder(latents, speaker, full, wavs, full)
        error, size = decoder.errors(predictions, None, None)
        optimizer.zero_grad()
        (error / size).backward()
        optimizer.step()
    metrics = decoder.metrics((error / size).item())
    assert metrics.keys() == {"bits_per_sample"}
    assert metrics["bits_per_sample"] < 0.1 < math.log2(5)
    wav = decoder.eval().generate(latents[:2], speaker[:2])
    torch.testing.assert_close(wav, wavs[:2], atol=0.02, rtol=0)


@pytest.fixture
def tokenizer():
    """Load an exported model with a WaveNet decoder."""
    return VQTokenizer.from_hparams(EXPORTED, run_opts={"device": "cpu"})


def test_exported_models_generate_waveforms(tokenizer, tmp_path):
    time = torch.arange(RATE // 5) / RATE
    wav = torch.sin(2 * torch.pi * 200 * time) / 2
    soundfile.write(tmp_path / "a.wav", wav.numpy(), RATE)
    tokens = tokenizer.reconstruct_file(tmp_path / "a.wav", tmp_path / "b.wav")
    assert len(tokens) == 10
    written, rate = soundfile.read(tmp_path / "b.wav")
    assert rate == RATE and len(written) == len(wav)
    tokens, lengths = tokens.unsqueeze(0), torch.tensor([0.5])
    average = tokenizer.decode_batch(tokens, lengths)
    # Every sample is a mu-law level, unlike Griffin-Lim's.
    spoken = average[:, : RATE // 10]
    levels = mu_law_encoding(spoken, LEVELS)
    torch.testing.assert_close(mu_law_decoding(levels, LEVELS), spoken)
    assert torch.equal(average, tokenizer.decode_batch(tokens, lengths))
    assert average[0, : RATE // 10].any() and not average[0, RATE // 10 :].any()
    other = tokenizer.decode_batch(tokens, lengths, torch.full((1, 4), 3.0))
    assert not torch.equal(average, other)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(average, tokenizer.decode_batch(tokens, lengths))


def test_unused_vocoders_are_rejected(tokenizer):
    sizes = [[1, 3, 5]], [3], [20, 32], 8, [10, 16]
    generator = HifiganGenerator(20, 1, "1", *sizes)
    with pytest.raises(ValueError, match="outputs waveforms itself"):
        tokenizer.use_vocoder(HifiGAN(generator))
