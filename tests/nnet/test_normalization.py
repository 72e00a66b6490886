"""Masked batch normalization against torch's own."""

import copy
import itertools

import pytest
import torch

from speechbrain_vq.nnet.normalization import MaskedBatchNorm


def pair(features=6, **options):
    """Ours and torch's with the same parameters."""
    options = {"eps": 1e-5, **options}
    ours = MaskedBatchNorm(features, **options)
    torchs = torch.nn.BatchNorm1d(features, **options)
    if ours.weight is not None:
        with torch.no_grad():
            ours.weight.copy_(torch.rand(features) + 0.5)
            ours.bias.copy_(torch.randn(features))
        torchs.load_state_dict(ours.state_dict(), strict=False)
    return ours, torchs


def gradients(norm, x, weights, *mask):
    """Output, and the gradients of a weighted sum of it."""
    x = x.clone().requires_grad_()
    y = norm(x, *mask)
    wanted = [x, *norm.parameters()]
    return [y, *torch.autograd.grad((y * weights).sum(), wanted)]


def assert_close(actual, expected, rtol=2e-5, atol=2e-5):
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol)


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"eps": 0.1, "momentum": 0.5}]
)
def test_equals_batch_norm_over_many_steps(options):
    ours, torchs = pair(**options)
    # As one that goes on from statistics that were loaded.
    ours.num_batches.fill_(2**31)
    for step in range(30):
        x = (1 + step / 10) * torch.randn(40, 6) + step
        weights = torch.randn_like(x)
        assert_close(gradients(ours, x, weights), gradients(torchs, x, weights))
        assert_close(ours.running_mean, torchs.running_mean)
        assert_close(ours.running_var, torchs.running_var)
    ours.eval(), torchs.eval()
    x = torch.randn(9, 6)
    assert_close(ours(x), torchs(x))
    assert_close(ours.running_var, torchs.running_var)


def test_statistics_are_means_until_momentum_takes_over():
    norm = MaskedBatchNorm(6, momentum=0.25)
    mean = variance = torch.zeros(6)
    for number in range(1, 13):
        x = number * torch.randn(40, 6) + number
        y, share = norm(x), max(1 / number, 0.25)
        mean = mean.lerp(x.mean(0), share)
        variance = variance.lerp(x.var(0), share)
        assert_close(norm.running_mean, mean)
        assert_close(norm.running_var, variance)
        if number == 1:  # What is evaluated is what was trained on.
            assert_close(norm.eval()(x), y, atol=0.05, rtol=0.05)
            norm.train()


@pytest.mark.parametrize("affine", [True, False])
def test_inverse_undoes_the_evaluation(affine):
    norm = pair(affine=affine)[0]
    for _ in range(3):
        norm(5 + 3 * torch.randn(50, 6))
    x = 5 + 3 * torch.randn(20, 6)
    assert_close(norm.inverse(norm.eval()(x)), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("power", [1, 3])
def test_second_derivatives_are_those_of_torch(power):
    x, weights = torch.randn(12, 3, requires_grad=True), torch.randn(3)
    results = []
    for norm in (MaskedBatchNorm(3), torch.nn.BatchNorm1d(3, 1e-12)):
        loss = (norm(x).pow(power) @ weights).sum()
        slopes = torch.autograd.grad(loss, [x, norm.weight], create_graph=True)
        penalty = sum(slope.square().sum() for slope in slopes)
        results.append(torch.autograd.grad(penalty, [x, norm.weight]))
    assert_close(*results)


def test_mask_means_the_selected_rows_alone():
    ours, torchs = pair()
    ours.num_batches.fill_(2**31)
    x, mask = 3 + torch.randn(4, 25, 6), torch.rand(4, 25) < 0.4
    weights = torch.randn_like(x) * mask.unsqueeze(2)
    y, grad_x, *grads = gradients(ours, x, weights, mask)
    expected = gradients(torchs, x[mask], weights[mask])
    assert_close([y[mask], grad_x[mask], *grads], expected)
    assert (grad_x[~mask] == 0).all()
    assert_close(ours.running_mean, torchs.running_mean)
    assert_close(ours.running_var, torchs.running_var)


def test_single_valid_frame_teaches_the_mean_and_not_the_variance():
    norm = MaskedBatchNorm(6)
    x, mask = torch.randn(5, 6), torch.tensor([0, 0, 1, 0, 0]).bool()
    y = norm(x, mask)
    assert y.isfinite().all() and (y[2] == 0).all()
    assert_close(norm.running_mean, x[2])
    assert torch.equal(norm.running_var, torch.ones(6))


def test_large_offset_costs_no_precision():
    x = torch.randn(500, 6, dtype=torch.float64) + 1000
    x = x.float().double()
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    y = MaskedBatchNorm(6)(x.float())
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-3)


def test_running_norm_trains_on_what_evaluation_sees():
    norm = MaskedBatchNorm(6, momentum=0.25, statistics="running")
    for step in range(8):
        mask = torch.rand(4, 25) < 0.4
        x = (3 + 2 * torch.randn(4, 25, 6) + step).requires_grad_()
        trained = norm.train()(x, mask)
        assert_close(trained, norm.eval()(x))
        # No gradient passes through the statistics: a scale, as there.
        slope = torch.autograd.grad(trained.sum(), x)[0]
        assert_close(slope, norm.running_var.rsqrt().expand_as(slope))


def test_running_variance_holds_the_spread_of_the_batches():
    # Batches alike within and far apart, as pieces of few utterances are.
    x = 0.1 * torch.randn(20, 50, 6) + torch.randn(20, 1, 6)
    norm = MaskedBatchNorm(6, momentum=0.01, statistics="running")
    for batch in x:
        norm(batch)
    every = x.flatten(0, 1)
    assert_close(norm.running_mean, every.mean(0))
    assert_close(norm.running_var, every.var(0), rtol=0.02)


@pytest.mark.parametrize("order", [*itertools.permutations((0, 1, 2))])
def test_initial_statistics_are_those_of_the_middle_of_three_batches(order):
    norm, other = (MaskedBatchNorm(6, statistics="initial") for _ in range(2))
    batches = 3 + torch.randn(3, 200, 6) * torch.arange(1.0, 7)
    batches *= torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    mask, later = torch.rand(200) < 0.5, torch.randn(40, 6)
    for scale, one in ((1, norm), (1000, other)):
        # A batch without a frame is none of the three.
        one(batches[1], torch.zeros_like(mask))
        for batch in (*batches[list(order)], 9 * batches[2]):
            one(scale * batch, mask)
    middle = batches[1][mask]
    scale = middle.var(0, correction=0).mean().sqrt()
    assert_close(norm(later), (later - middle.mean(0)) / scale)
    assert_close(norm(later), norm.eval()(later))
    # What comes after it does not see the scale of the data.
    assert_close(other(1000 * later), norm(later))


@pytest.mark.parametrize("number", [1, 200])
def test_batches_without_variance_set_no_initial_statistics(number):
    norm = MaskedBatchNorm(6, statistics="initial")
    layer, before = torch.nn.Linear(6, 6), copy.deepcopy(norm.state_dict())
    for value in (0.0, 1.0, 1e4):
        norm(layer(torch.full((number, 6), value)).detach())
    assert_close(norm.state_dict(), before)
    batch = 5 + 3 * torch.randn(200, 6)
    assert abs(float(norm(batch).detach().std()) - 1) < 0.1
    assert_close(norm.running_mean, batch.mean(0))


@pytest.mark.parametrize("warmup", [True, False])
def test_initial_statistics_are_set_anew_where_a_warmup_outgrows_them(warmup):
    norm = MaskedBatchNorm(6, statistics="initial")
    small, large = torch.randn(4, 500, 6), 5 + 30 * torch.randn(6, 500, 6)
    for batch in (*small[:3], large[0], small[3]):
        norm(batch, warmup=warmup)
    # One wild batch, or less than twice the deviation, does not count.
    first = norm.running_var.clone()
    for batch in small * 1.5:
        norm(batch, warmup=warmup)
    assert_close(norm.running_var, first)
    for batch in large:
        norm(batch, warmup=warmup)
    assert (norm.running_var[0] > 100) == warmup
    if warmup:  # The lower of the first two that are large
        lower = min(large[:2], key=lambda batch: batch.var(0).mean())
        assert_close(norm.running_mean, lower.mean(0))
        variance = lower.var(0, correction=0).mean()
        assert_close(norm.running_var, variance.expand(6))
    # After the warm-up they stay.
    after = norm.running_var.clone()
    for batch in 1000 * large:
        norm(batch)
    assert_close(norm.running_var, after)


@pytest.mark.parametrize("warmup", [True, False])
def test_a_wild_batch_among_the_first_is_not_amplified(warmup):
    norm = MaskedBatchNorm(6, statistics="initial")
    quiet, wild = 3 + 1e-3 * torch.randn(4, 500, 6), 5 + torch.randn(500, 6)
    for number, batch in enumerate(quiet, start=1):
        norm(batch, warmup=warmup)
        kept = copy.deepcopy(norm)
        y = norm(wild, warmup=warmup)
        if number < 3:
            assert_close(y.mean(0), torch.zeros(6), atol=1e-4)
            assert abs(float(y.square().mean()) - 1) < 1e-3
        else:
            assert_close(y, kept.eval()(wild))
        norm = kept.train()  # Without the wild one


@pytest.mark.parametrize("shift, follows", [(2.5, False), (4, True)])
def test_a_mean_that_moves_in_a_warmup_is_followed(shift, follows):
    norm, kept = (MaskedBatchNorm(6, statistics="initial") for _ in range(2))
    for number, batch in enumerate(3 * torch.randn(9, 500, 6)):
        # One batch that is far away, as one of silence may be, moves nothing.
        is_away = number == 4 or number > 5
        batch = batch + 3 * shift * is_away
        norm(batch, warmup=True)
        kept(batch)
    moved = (norm.running_mean / 3 - shift).abs().max() < 0.2
    assert moved == follows and kept.running_mean.abs().max() < 1
    assert_close(norm.running_var, 9 * torch.ones(6), rtol=0.2)


def test_loaded_initial_statistics_stay_until_three_batches_disagree():
    trained = MaskedBatchNorm(6, statistics="initial")
    for _ in range(3):
        trained(9 + torch.randn(500, 6))
    norm = MaskedBatchNorm(6, statistics="initial")
    norm.load_state_dict(trained.state_dict())
    norm(torch.zeros(500, 6), torch.zeros(500, dtype=torch.bool), warmup=True)
    for number in range(1, 4):
        assert_close(norm.running_var, trained.running_var)
        norm(20 + torch.randn(500, 6), warmup=True)
        moved = (norm.running_mean > 15).all()
        assert moved == (number == 3)
