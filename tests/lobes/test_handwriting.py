"""Handwriting encoder and CTC probe."""

import torch

from speechbrain_vq.lobes.handwriting import CTCProbe, LineEncoder


def test_default_sizes_are_those_of_the_paper():
    encoder = LineEncoder()
    latents, _ = encoder(torch.rand(1, 8, 32), torch.ones(1))
    assert latents.shape == (1, 4, 32)
    assert encoder.convolutions[-1].conv.out_channels == 512
    assert encoder.second.lstm.hidden_size == 32


def one_hot_path(path, probe):
    table = {None: 0, **{c: i + 1 for i, c in enumerate(probe.characters)}}
    indices = torch.tensor([table[c] for c in path])
    return torch.eye(1 + len(probe.characters))[indices].add(1e-6).log()


def test_greedy_decoding_merges_repetitions_and_drops_blanks():
    probe = CTCProbe(4, "abo ")
    path = ["b", "b", None, "o", "o", None, "o", "a", None, "b", "b"]
    log_probs = one_hot_path(path, probe).repeat(2, 1, 1)
    assert probe.read(log_probs, torch.tensor([1.0, 4 / 11])) == ["booab", "bo"]


def test_loss_is_that_of_the_text_over_valid_frames():
    probe = CTCProbe(4, "abo ")
    path = ["b", None, "o", None, "o", "a"]
    log_probs = one_hot_path(path, probe).repeat(2, 1, 1)
    lengths = torch.ones(2)
    right = probe.loss(log_probs, lengths, ["booa", "booa"])
    assert right < 1e-3 and probe.loss(log_probs, lengths, ["booa", "bobo"]) > 1
    # Characters outside the alphabet do not count.
    other = probe.loss(log_probs, lengths, ["boo#a", "booa"])
    torch.testing.assert_close(other, right)
    padded = torch.nn.functional.pad(log_probs, (0, 0, 0, 5), value=-1.0)
    other = probe.loss(padded, lengths * 6 / 11, ["booa", "booa"])
    torch.testing.assert_close(other, right)
    # Empty texts, and texts longer than the frames, give no NaN.
    assert torch.isfinite(probe.loss(log_probs, lengths, ["", "ab" * 9]))


def test_padding_changes_no_probe_output():
    probe = CTCProbe(4, "ab")
    latents = torch.randn(1, 6, 4)
    padded = torch.nn.functional.pad(latents, (0, 0, 0, 3))
    torch.testing.assert_close(probe(padded)[:, :6], probe(latents))
