"""Handwriting encoder and CTC probe: padding changes no output."""

import pytest
import torch

from speechbrain_vq.lobes.handwriting import CTCProbe, LineEncoder

CHANNELS = [3, 4, 4, 4, 5, 5, 6]


def batch_of(columns, width):
    """Build a padded batch whose first line has some columns."""
    ink = torch.zeros(3, width, 32)
    ink[0, :columns] = torch.rand(columns, 32)
    ink[1] = torch.rand(width, 32)
    ink[2, : width // 2] = torch.rand(width // 2, 32)
    return ink, torch.tensor([columns / width, 1.0, (width // 2) / width])


@pytest.mark.parametrize("columns", [1, 2, 37, 38, 61])
@pytest.mark.parametrize("extra", [0, 1, 30])
def test_padding_changes_nothing(columns, extra):
    encoder = LineEncoder(8, CHANNELS, hidden_size=5).eval()
    ink, lengths = batch_of(columns, 61 + extra)
    alone, own = encoder(ink[:1, :columns], torch.ones(1))
    padded, relative = encoder(ink, lengths)
    number = round(float(relative[0]) * padded.shape[1])
    assert number == alone.shape[1] == (columns + 1) // 2 and own == 1
    torch.testing.assert_close(padded[0, :number], alone[0])
    assert not padded[0, number:].any()


def test_padding_changes_no_training_statistics():
    """Outputs, statistics and gradients are those of a batch with less
    padding."""

    def run(extra):
        torch.manual_seed(0)
        encoder = LineEncoder(8, CHANNELS, hidden_size=5)
        ink, lengths = batch_of(37, 61)
        wide = torch.nn.functional.pad(ink, (0, 0, 0, extra))
        latents, relative = encoder(wide, lengths * 61 / (61 + extra))
        weights = torch.randn(3, 31, 8)
        (latents[:, :31] * weights).sum().backward()
        frames = torch.round(relative * latents.shape[1])
        gradients = [p.grad for p in encoder.parameters()]
        return [frames, latents[:, :31], *encoder.buffers(), *gradients]

    for one, other in zip(run(0), run(24), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_latents_have_bidirectional_context():
    encoder = LineEncoder(8, CHANNELS, hidden_size=5).eval()
    ink = torch.rand(1, 80, 32, requires_grad=True)
    latents, _ = encoder(ink, torch.ones(1))
    (gradient,) = torch.autograd.grad(latents[0, 20].sum(), ink)
    receptive = gradient[0].abs().sum(1) > 0
    assert receptive[:30].any() and receptive[50:].any()


def test_default_sizes_are_those_of_the_paper():
    encoder = LineEncoder()
    latents, _ = encoder(torch.rand(1, 8, 32), torch.ones(1))
    assert latents.shape == (1, 4, 32)
    assert encoder.convolutions[-1].conv.out_channels == 512
    assert encoder.second.lstm.hidden_size == 32


def test_wrong_shapes_are_rejected():
    with pytest.raises(ValueError, match="7 convolutions"):
        LineEncoder(8, [1, 2])
    with pytest.raises(ValueError, match=r"\[B, T, 32\]"):
        LineEncoder(8, CHANNELS)(torch.rand(1, 9, 28), torch.ones(1))


def one_hot_path(path, probe):
    table = {None: 0, **{c: i + 1 for i, c in enumerate(probe.characters)}}
    indices = torch.tensor([table[c] for c in path])
    return torch.eye(1 + len(probe.characters))[indices].add(1e-6).log()


def test_greedy_decoding_merges_repetitions_and_drops_blanks():
    probe = CTCProbe(4, "abo ")
    path = ["b", "b", None, "o", "o", None, "o", "a", None, "b", "b"]
    log_probs = one_hot_path(path, probe).repeat(2, 1, 1)
    texts = probe.read(log_probs, torch.tensor([1.0, 4 / 11]))
    assert texts == ["booab", "bo"]


def test_loss_is_that_of_the_text_over_valid_frames():
    probe = CTCProbe(4, "abo ")
    path = ["b", None, "o", None, "o", "a"]
    log_probs = one_hot_path(path, probe).repeat(2, 1, 1)
    lengths = torch.ones(2)
    right = probe.loss(log_probs, lengths, ["booa", "booa"])
    assert right < 1e-3
    assert probe.loss(log_probs, lengths, ["booa", "bobo"]) > 1
    # Characters outside the alphabet do not count.
    torch.testing.assert_close(
        probe.loss(log_probs, lengths, ["boo#a", "booa"]), right
    )
    padded = torch.nn.functional.pad(log_probs, (0, 0, 0, 5), value=-1.0)
    torch.testing.assert_close(
        probe.loss(padded, lengths * 6 / 11, ["booa", "booa"]), right
    )
    # Empty texts, and texts longer than the frames, give no NaN.
    assert torch.isfinite(probe.loss(log_probs, lengths, ["", "ab" * 9]))


def test_padding_changes_no_probe_output():
    probe = CTCProbe(4, "ab")
    latents = torch.randn(1, 6, 4)
    padded = torch.nn.functional.pad(latents, (0, 0, 0, 3))
    torch.testing.assert_close(probe(padded)[:, :6], probe(latents))
