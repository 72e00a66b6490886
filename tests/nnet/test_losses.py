"""The loss against plain autograd, and the counts against numpy."""

import math

import pytest
import torch
from torch.nn import functional as F

from speechbrain_vq.nnet.losses import entropy_loss, quantization_loss


def derivatives(loss, *inputs):
    """Gradients, and gradients of their squared norm."""
    options = {"create_graph": True, "materialize_grads": True}
    first = torch.autograd.grad(loss, inputs, **options)
    norm = sum(gradient.square().sum() for gradient in first)
    return [*first, *torch.autograd.grad(norm, inputs, materialize_grads=True)]


@pytest.mark.parametrize("weights", [(0.25, 1.0), (1.0, 0.0), (0.0, 2.0)])
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_loss_and_gradients_are_those_of_two_squared_errors(weights, share):
    commitment, codebook = weights
    x = torch.randn(30, 2, 4, requires_grad=True)
    table = torch.randn(2, 5, 4, requires_grad=True)
    indices, valid = torch.randint(5, (30, 2)), torch.rand(30) < share
    books = torch.arange(2)
    loss, sq_error = quantization_loss(
        x, table[books, indices], valid.float(), *weights, False
    )
    e = table[books, indices]
    expected = commitment * F.mse_loss(x[valid], e[valid].detach())
    expected = expected + codebook * F.mse_loss(e[valid], x[valid].detach())
    torch.testing.assert_close(loss, expected)
    # Of a function of it: what comes from above has to be passed on.
    found, wanted = (derivatives(y.pow(3), x, table) for y in (loss, expected))
    torch.testing.assert_close(found, wanted)
    wanted = (x[valid] - e[valid]).square().sum((0, 2)).detach()
    torch.testing.assert_close(sq_error, wanted)
    assert not sq_error.requires_grad


def uneven_usage(x, table, valid):
    """The usage loss of all vectors by hand, and the squared errors."""
    distances = torch.cdist(x[valid].transpose(0, 1), table).square()
    nearest = distances.amin(2).sum(1).detach()
    scale = (nearest / valid.sum()).view(-1, 1, 1)
    share = torch.softmax(-distances / scale, 2).mean(1)
    nats = -(share * (share + 1e-12).log()).sum(1)
    return (1 - nats / math.log(table.shape[1])).mean(), nearest


def test_entropy_loss_is_one_minus_the_entropy_of_the_soft_assignment():
    x = torch.randn(40, 2, 3, requires_grad=True)
    table = torch.randn(2, 5, 3, requires_grad=True)
    valid = torch.rand(40) < 0.7
    expected, nearest = uneven_usage(x, table, valid)
    loss = entropy_loss(x, table, valid.float(), nearest)
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, (x, table))
    torch.testing.assert_close(found, torch.autograd.grad(expected, (x, table)))


def test_entropy_loss_falls_with_the_error_where_that_is_small():
    table = torch.randn(1, 5, 3)
    x = table[0, torch.arange(40) % 3].unsqueeze(1) + torch.randn(40, 1, 3) / 99
    valid = torch.rand(40) < 0.7
    whole, nearest = uneven_usage(x, table, valid)
    share = nearest.sum() / x[valid].square().sum()
    assert share < 0.01
    loss = entropy_loss(x, table, valid.float(), nearest)
    torch.testing.assert_close(loss, 20 * share * whole)


def test_entropy_loss_of_a_large_batch_is_that_of_an_even_sample():
    # 256 utterances of 100 frames: a constant stride would choose one frame of
    # each, at the same place.
    x = torch.randn(25600, 1, 3, requires_grad=True)
    table, valid = torch.randn(1, 512, 3), torch.rand(25600) < 0.7

    def used(x, valid, nearest):
        loss = entropy_loss(x, table, valid.float(), nearest)
        (gradient,) = torch.autograd.grad(loss, x)
        return loss, gradient.any(2).squeeze(1).nonzero().squeeze(1)

    _, sample = used(x, valid, torch.full((1,), 2e4))
    assert len(sample) == 256 and valid[sample].all()
    gaps = valid.cumsum(0)[sample].diff() / valid.sum() * 256
    assert 0 < gaps.min() and gaps.max() < 2.1
    assert len((sample % 100).unique()) > 80
    expected, nearest = uneven_usage(x[sample], table, valid[sample])
    nearest *= valid.sum() / 256  # The temperature is that of the batch.
    loss, _ = used(x, valid, nearest)
    weight = 20 * nearest.sum() / x[valid].detach().square().sum()
    torch.testing.assert_close(loss, weight.clamp(max=1) * expected)
    # Padding changes neither.
    more = torch.stack([x, torch.randn_like(x)], 1).flatten(0, 1)
    is_valid = torch.stack([valid, torch.zeros_like(valid)], 1).flatten()
    again, place = used(more, is_valid, nearest)
    torch.testing.assert_close(again, loss)
    assert torch.equal(place, 2 * sample)
    # With few valid vectors, each is used.
    few = valid & (torch.arange(25600) < 200)
    assert torch.equal(used(x, few, nearest)[1], few.nonzero().squeeze(1))
