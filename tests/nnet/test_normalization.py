"""Masked batch normalization against torch's own.

Authors
 * speechbrain_vq authors 2026
"""

import pytest
import torch

from speechbrain_vq.nnet.normalization import MaskedBatchNorm


def pair(features=6, **options):
    """Ours and torch's with the same parameters."""
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


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize(
    "options", [{}, {"affine": False}, {"eps": 0.1, "momentum": 0.5}]
)
def test_equals_batch_norm_over_many_steps(options):
    ours, torchs = pair(**options)
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


def test_mask_means_the_selected_rows_alone():
    ours, torchs = pair()
    x, mask = 3 + torch.randn(4, 25, 6), torch.rand(4, 25) < 0.4
    weights = torch.randn_like(x) * mask.unsqueeze(2)
    y, grad_x, *grads = gradients(ours, x, weights, mask)
    expected = gradients(torchs, x[mask], weights[mask])
    assert_close([y[mask], grad_x[mask], *grads], expected)
    assert (grad_x[~mask] == 0).all()
    assert_close(ours.running_mean, torchs.running_mean)
    assert_close(ours.running_var, torchs.running_var)


@pytest.mark.parametrize("fill", [0.0, 1e4])
def test_more_padding_changes_nothing(fill):
    x, mask = torch.randn(3, 10, 6), torch.rand(3, 10) < 0.5
    longer = torch.cat((x, torch.full((3, 7, 6), fill)), dim=1)
    longer_mask = torch.cat((mask, torch.zeros(3, 7, dtype=torch.bool)), dim=1)
    one, two = MaskedBatchNorm(6), MaskedBatchNorm(6)
    assert_close(one(x, mask)[mask], two(longer, longer_mask)[longer_mask])
    assert_close(one.running_mean, two.running_mean)
    assert_close(one.running_var, two.running_var)


@pytest.mark.parametrize("shape", [(60,), (3, 20), (3, 4, 5), (1, 2, 3, 10)])
def test_leading_dimensions_do_not_matter(shape):
    x = torch.randn(60, 6)
    flat, shaped = MaskedBatchNorm(6), MaskedBatchNorm(6)
    y = shaped(x.view(*shape, 6), torch.ones(shape, dtype=torch.bool))
    assert y.shape == (*shape, 6)
    assert_close(y.view(60, 6), flat(x))
    assert_close(shaped.running_var, flat.running_var)


def test_empty_mask_leaves_the_running_statistics():
    norm, _ = pair()
    norm(2 + torch.randn(50, 6))
    before = {k: v.clone() for k, v in norm.state_dict().items()}
    x, nothing = torch.randn(8, 6), torch.zeros(8, dtype=torch.bool)
    y = norm(x, nothing)
    assert all(torch.equal(before[k], v) for k, v in norm.state_dict().items())
    assert_close(y, norm.eval()(x))


def test_single_valid_frame_teaches_the_mean_and_not_the_variance():
    norm = MaskedBatchNorm(6)
    x, mask = torch.randn(5, 6), torch.tensor([0, 0, 1, 0, 0]).bool()
    y = norm(x, mask)
    assert y.isfinite().all() and (y[2] == 0).all()
    assert_close(norm.running_mean, 0.1 * x[2])
    assert torch.equal(norm.running_var, torch.ones(6))


def test_large_offset_costs_no_precision():
    x = torch.randn(500, 6, dtype=torch.float64) + 1000
    x = x.float().double()
    expected = (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt()
    y = MaskedBatchNorm(6)(x.float())
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_input_is_normalized_in_fp32(dtype):
    x = (50 + torch.randn(200, 6)).to(dtype)
    norm, reference = MaskedBatchNorm(6), MaskedBatchNorm(6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = norm(x)
    assert y.dtype == torch.float32
    assert torch.equal(y, reference(x.float()))
    assert torch.equal(norm.running_var, reference.running_var)
