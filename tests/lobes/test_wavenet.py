"""A WaveNet foresees from the past alone, the same at once and sample by
sample, alone and in a padded batch.
"""

import math

import pytest
import soundfile
import torch
from speechbrain.lobes.models.HifiGAN import HifiganGenerator
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.inference.vocoders import HifiGAN
from speechbrain_vq.lobes.wavenet import LEVELS, SILENCE, WaveNetDecoder
from speechbrain_vq.lobes.wavenet_steps import Steps, generate
from tests.publish.runs import YAML, write_run

RATE, HOP = 16000, 20
DECODER = """\
    decoder: !new:speechbrain_vq.lobes.wavenet.WaveNetDecoder
        input_dim: 8
        speaker_dim: 4
        samples_per_token: 320
        channels: 4
        num_layers: 3
        skip_channels: 8
        condition_channels: 4
"""


def make(window=3, **options):
    """A small one: 8 layers, so that two cycles see 31 samples."""
    torch.manual_seed(0)
    sizes = {"channels": 6, "num_layers": 8, "cycle": 4, "skip_channels": 12}
    return WaveNetDecoder(
        *(5, 3, HOP),
        **{"condition_channels": 7, "window": window, **sizes, **options},
    )


def given(batch, tokens):
    """Latents, a speaker and waveforms."""
    torch.manual_seed(1)
    wavs = torch.rand(batch, tokens * HOP) - 0.5
    return torch.randn(batch, tokens, 5), torch.randn(batch, 3), wavs


def logits(decoder, levels, latents, speaker):
    before = torch.nn.functional.pad(levels, (1, -1), value=SILENCE)
    return decoder.logits(before, decoder.conditions(latents, speaker))


def test_what_is_foreseen_depends_on_the_past_alone():
    decoder, (latents, speaker, _) = make(), given(2, 6)
    levels = torch.randint(LEVELS, (2, 6 * HOP))
    there = logits(decoder, levels, latents, speaker)
    for time in (0, 1, 50, 119):
        other = levels.clone()
        other[:, time:] = (other[:, time:] + 100) % LEVELS
        changed = logits(decoder, other, latents, speaker) != there
        assert not changed[:, : time + 1].any()
        if time < 119:
            assert changed[:, time + 1].any()


@pytest.mark.parametrize("layers, cycle, field", [(8, 4, 31), (5, 3, 11)])
def test_the_receptive_field_is_as_computed(layers, cycle, field):
    decoder = make(num_layers=layers, cycle=cycle).double()
    assert decoder.receptive_field == field
    latents, speaker, _ = given(1, 6)
    conditions = decoder.conditions(latents.double(), speaker.double())
    x = torch.randn(1, 6 * HOP, 6, dtype=torch.double, requires_grad=True)
    # In the place of the embedded levels, moved by one as these are.
    decoder.first = torch.nn.Identity()
    decoder.logits(x, conditions)[0, 80].square().sum().backward()
    heard = x.grad[0].abs().sum(1).nonzero().flatten()
    assert heard.max() == 80 and heard.min() == 80 - field + 1


def test_the_size_is_that_of_the_literature():
    decoder = WaveNetDecoder(64, 32, 320)
    assert decoder.receptive_field == 2047
    assert decoder.window * decoder.samples_per_token == 5120


@pytest.mark.parametrize("batch", [1, 3])
def test_sample_by_sample_is_the_same_as_at_once(batch):
    decoder, (latents, speaker, _) = make().eval(), given(batch, 6)
    levels = torch.randint(LEVELS, (batch, 6 * HOP))
    at_once = logits(decoder, levels, latents, speaker)
    found = []
    with torch.inference_mode():
        steps = Steps(decoder, batch)
        conditions = decoder.conditions(latents, speaker)
        before = torch.full((batch,), SILENCE)
        places = steps.ring_positions(torch.arange(6 * HOP))
        for time in range(6 * HOP):
            told = steps.biases(conditions[:, time // HOP])
            found.append(steps.step(before, places[time], told))
            before = levels[:, time]
    torch.testing.assert_close(torch.stack(found, 1), at_once)


def test_what_is_drawn_is_what_was_foreseen():
    """Each sample is where the dice fall in the distribution that the network
    gives for it at once, knowing all samples."""
    decoder, (latents, speaker, _) = make().eval().double(), given(2, 6)
    with torch.no_grad():
        decoder.last.weight.mul_(8)
    latents, speaker = latents.double(), speaker.double()
    dice = torch.rand(6 * HOP)
    conditions = decoder.conditions(latents, speaker)
    levels = generate(decoder, conditions, dice, SILENCE).clone()
    chances = logits(decoder, levels, latents, speaker).softmax(2)
    sums = chances.cumsum(2)
    own = levels.unsqueeze(2)
    upper = sums.gather(2, own).squeeze(2)
    lower = upper - chances.gather(2, own).squeeze(2)
    assert (lower - 1e-9 <= dice).all() and (dice <= upper + 1e-9).all()
    assert len(levels.unique()) > 20


def test_the_seed_decides_and_padding_is_not_heard():
    decoder, (latents, speaker, _) = make().eval(), given(3, 6)
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
def test_an_utterance_has_the_same_errors_alone_and_padded(samples, training):
    # The window of training takes all, for its place is random.
    decoder = make(window=9 if training else 2).train(training)
    latents, speaker, wavs = given(3, 9)
    lengths = torch.tensor([4 / 9, 1.0, 0.0])
    wav_lengths = torch.tensor([samples / wavs.shape[1], 1.0, 0.0])

    def errors(rows, tokens, samples, *lengths):
        found = decoder(
            latents[rows, :tokens],
            speaker[rows],
            lengths[0],
            wavs[rows, :samples],
            lengths[1],
        )
        return (*decoder.errors(found, None, None), found)

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


def test_in_evaluation_windows_have_all_of_their_past():
    latents, speaker, wavs = given(2, 9)
    full = torch.ones(2)
    found = [
        make(window).eval()(latents, speaker, full, wavs, full).nats
        for window in (1, 2, 9, 20)
    ]
    levels = mu_law_encoding(wavs, LEVELS)
    chances = logits(make(), levels, latents, speaker).log_softmax(2)
    nats = -chances.gather(2, levels.unsqueeze(2)).squeeze(2)
    for pieces in found:
        torch.testing.assert_close(pieces, nats)


def test_windows_of_training_are_anywhere_in_an_utterance():
    decoder, (latents, speaker, wavs) = make(window=2), given(64, 9)
    # Each sample tells its place by its error, if no other has it.
    levels = mu_law_encoding(wavs, LEVELS)
    decoder._errors = lambda _, levels, before, valid: (levels, before, valid)
    lengths = torch.full((64,), 5 / 9)
    lengths[0] = 1.0
    taken, before, valid = decoder(
        latents, speaker, lengths, wavs, torch.ones(64)
    )
    assert valid.all() and taken.shape == (64, 2, HOP)
    begins = []
    for row in range(64):
        places = levels[row].unfold(0, 2 * HOP, HOP)
        begin = (places == taken[row].flatten()).all(1).nonzero().item()
        first = levels[row, begin * HOP - 1] if begin else SILENCE
        assert before[row, 0, 0] == first
        begins.append(begin)
    assert set(begins[1:]) == {0, 1, 2, 3}


def test_every_weight_gets_a_gradient_and_so_do_latents_and_speaker():
    decoder, (latents, speaker, wavs) = make(), given(2, 6)
    latents.requires_grad_(), speaker.requires_grad_()
    found = decoder(latents, speaker, torch.ones(2), wavs, torch.ones(2))
    error, size = decoder.errors(found, None, None)
    (error / size).backward()
    for name, parameter in decoder.named_parameters():
        assert parameter.grad is not None, name
    assert latents.grad.any() and speaker.grad.any()


def test_it_learns_what_no_marginal_distribution_knows():
    """A tone has 5 levels as often as each other: 2.3 bits a sample for who
    does not look back, next to none for who does. Which of two tones it is is
    told by the latents, and at the start by them alone."""
    torch.manual_seed(0)
    decoder = make(channels=16, skip_channels=32, window=4, num_layers=4)
    optimizer = torch.optim.Adam(decoder.parameters(), lr=0.01)
    tone = torch.linspace(-0.8, 0.8, 5)
    wavs = torch.stack([tone, tone[[0, 3, 1, 4, 2]]]).repeat(4, 4 * HOP // 5)
    kinds = torch.arange(2).repeat(4)
    latents = torch.eye(5)[kinds].unsqueeze(1).repeat(1, 4, 1)
    speaker, full = torch.zeros(8, 3), torch.ones(8)
    for _ in range(150):
        found = decoder(latents, speaker, full, wavs, full)
        error, size = decoder.errors(found, None, None)
        optimizer.zero_grad()
        (error / size).backward()
        optimizer.step()
    figures = decoder.metrics((error / size).item())
    assert figures.keys() == {"bits_per_sample"}
    assert figures["bits_per_sample"] < 0.1 < math.log2(5)
    wav = decoder.eval().generate(latents[:2], speaker[:2])
    torch.testing.assert_close(wav, wavs[:2], atol=0.02, rtol=0)


@pytest.fixture
def tokenizer(tmp_path):
    """Of an exported model that has a WaveNet for a decoder."""
    begin, end = YAML.index("    decoder: !new:"), YAML.index("optimizer:")
    text = YAML[:begin] + DECODER + YAML[end:]
    folder, _ = write_run(tmp_path / "run", yaml=text)
    folder = export_pretrained(folder, tmp_path / "model")
    return VQTokenizer.from_hparams(folder, run_opts={"device": "cpu"})


def test_an_exported_model_writes_its_own_waveforms(tokenizer, tmp_path):
    time = torch.arange(RATE // 5) / RATE
    wav = torch.sin(2 * torch.pi * 200 * time) / 2
    soundfile.write(tmp_path / "a.wav", wav.numpy(), RATE)
    tokens = tokenizer.reconstruct_file(tmp_path / "a.wav", tmp_path / "b.wav")
    assert len(tokens) == 10
    written, rate = soundfile.read(tmp_path / "b.wav")
    assert rate == RATE and len(written) == len(wav)
    # A mu-law level each, which Griffin-Lim would not keep to.
    levels = mu_law_encoding(torch.tensor(written), LEVELS)
    again = mu_law_decoding(levels, LEVELS)
    assert (again - torch.tensor(written)).abs().max() < 1e-4
    tokens, lengths = tokens.unsqueeze(0), torch.tensor([0.5])
    average = tokenizer.decode_batch(tokens, lengths)
    assert torch.equal(average, tokenizer.decode_batch(tokens, lengths))
    assert average[0, : RATE // 10].any() and not average[0, RATE // 10 :].any()
    voice = torch.full((1, 4), 3.0)
    assert not torch.equal(
        average, tokenizer.decode_batch(tokens, lengths, voice)
    )
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(average, tokenizer.decode_batch(tokens, lengths))


def test_a_vocoder_that_would_never_be_asked_is_refused(tokenizer):
    generator = HifiganGenerator(
        in_channels=20,
        out_channels=1,
        resblock_type="1",
        resblock_dilation_sizes=[[1, 3, 5]],
        resblock_kernel_sizes=[3],
        upsample_kernel_sizes=[20, 32],
        upsample_initial_channel=8,
        upsample_factors=[10, 16],
    )
    with pytest.raises(ValueError, match="writes waveforms itself"):
        tokenizer.use_vocoder(HifiGAN(generator))
