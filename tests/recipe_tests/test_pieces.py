"""Training on pieces of utterances, whose features are those of the whole."""

from importlib import import_module
from types import SimpleNamespace

import torch

units = import_module("speechbrain_vq.recipes.MiniSpeech.unit-discovery.train")
HOP = 160


def pieces(epoch, frames=(300, 120, 250), longest=305):
    """Pieces of features and samples that both hold their frame's number."""
    times = torch.arange(longest).float()
    features = torch.stack([times * (times < number) for number in frames])
    samples = features.repeat_interleave(HOP, 1)
    sizes = {"hop_length": HOP, "sample_rate": 100 * HOP, "segment": 2.0}
    counter = SimpleNamespace(current=epoch)
    hparams = SimpleNamespace(**sizes, epoch_counter=counter)
    lengths = torch.tensor(frames) / longest
    batch = SimpleNamespace(id=["a", "b", "c"])
    given = batch, features.unsqueeze(2), lengths, samples
    return units.UnitBrain.pieces(SimpleNamespace(hparams=hparams), *given)


def test_features_and_samples_are_of_one_piece():
    (features, lengths), (samples, sample_lengths) = pieces(1)
    assert features.shape == (3, 200, 1) and samples.shape == (3, 200 * HOP)
    assert torch.equal(features.repeat_interleave(HOP, 1)[..., 0], samples)
    assert torch.equal(lengths, sample_lengths)
    # One that is shorter is whole.
    assert (lengths * 200).round().tolist() == [200, 120, 200]
    assert torch.equal(features[1, :120, 0], torch.arange(120.0))
    for row in (0, 2):
        piece = features[row, :, 0]
        assert torch.equal(piece, piece[0] + torch.arange(200.0))


def test_pieces_are_functions_of_the_name_and_the_epoch():
    starts, again = (
        [pieces(epoch)[0][0][:, 0, 0].tolist() for epoch in range(30)]
        for _ in range(2)
    )
    assert starts == again
    longest, short, other = zip(*starts, strict=True)
    assert set(short) == {0} and max(longest) > 80 and min(longest) < 20
    assert len(set(other)) > 20 and max(other) <= 50


def test_a_batch_of_short_utterances_is_whole():
    (features, lengths), _ = pieces(1, (90, 50, 10), longest=90)
    assert features.shape == (3, 90, 1)
    assert lengths.mul(90).round().tolist() == [90, 50, 10]
