"""Time-jitter: probability, bounds, and no effect in evaluation."""

import pytest
import torch

from speechbrain_vq.lobes.autoencoder import ConvDecoder
from speechbrain_vq.lobes.jitter import TimeJitter


def sources(jitter, batch, time, lengths=None):
    """Compute the offset of each latent's source, [B, T], from a tensor that
    holds times and items."""
    places = torch.arange(time).expand(batch, time)
    items = torch.arange(batch).unsqueeze(1).expand(batch, time)
    labels = torch.stack([places, items, places * 7], 2).float()
    jittered = jitter(labels, lengths)
    assert torch.equal(jittered[..., 1], labels[..., 1])
    assert torch.equal(jittered[..., 2], 7 * jittered[..., 0])
    return (jittered[..., 0] - places).long()


@pytest.mark.parametrize("probability", [0.12, 0.5])
def test_neighbors_are_equally_frequent_and_time_steps_independent(probability):
    """A chi-square test of pairs of adjacent latents."""
    moved = sources(TimeJitter(probability), 200, 502)[:, 1:-1] + 1
    pairs = 3 * moved[:, :-1].flatten() + moved[:, 1:].flatten()
    observed = pairs.bincount(minlength=9).double()
    chance = [probability / 2, 1 - probability, probability / 2]
    chance = torch.tensor(chance, dtype=torch.double)
    expected = observed.sum() * torch.outer(chance, chance).flatten()
    chi_square = ((observed - expected).square() / expected).sum()
    # Eight degrees of freedom: beyond 35 in 3 of 100 000 draws.
    assert chi_square < 35


def test_sources_stay_within_the_utterance():
    lengths = torch.tensor([1.0, 0.6, 0.1, 0.0]).repeat(100)
    moved = sources(TimeJitter(1.0), 400, 10, lengths).view(100, 4, 10)
    for item, number in enumerate([10, 6, 1, 0]):
        own = moved[:, item]
        assert not own[:, number:].any()
        if number:
            source = own[:, :number] + torch.arange(number)
            assert source.min() == 0 and source.max() == number - 1
        if number > 2:
            assert own[:, 1 : number - 1].all()


@pytest.mark.parametrize(
    "jitter", [TimeJitter(0.5).eval(), TimeJitter(0.0)], ids=["eval", "zero"]
)
def test_inactive_jitter_keeps_latents_and_random_state(jitter):
    x, state = torch.randn(3, 50, 4), torch.get_rng_state()
    assert jitter(x) is x and torch.equal(torch.get_rng_state(), state)


def test_gradients_reach_the_source_latents():
    x = torch.randn(2, 40, 3, requires_grad=True)
    state = torch.get_rng_state()
    TimeJitter(0.8)(x).sum().backward()
    torch.set_rng_state(state)
    source = sources(TimeJitter(0.8), 2, 40) + torch.arange(40)
    for item in range(2):
        uses = source[item].bincount(minlength=40).float()
        assert torch.equal(x.grad[item], uses.unsqueeze(1).expand(40, 3))


def test_decoder_jitters_in_training_only_without_weights():
    plain = ConvDecoder(8, 20, 4, channels=16)
    jittered = ConvDecoder(8, 20, 4, channels=16, jitter=0.5)
    jittered.load_state_dict(plain.state_dict())
    latents, speaker = torch.randn(2, 30, 8), torch.randn(2, 4)
    expected = plain(latents, speaker)
    assert not torch.equal(jittered(latents, speaker), expected)
    assert torch.equal(jittered.eval()(latents, speaker), expected)
