"""How gradients pass, against the formulas of the papers."""

import pytest
import torch

from speechbrain_vq.nnet.estimators import (
    ESTIMATORS,
    diveq,
    rotation_trick,
)

every_estimator = pytest.mark.parametrize("estimator", ESTIMATORS.values())


def rotation(x, q):
    """R of Fifty et al. (eq. 4) for one pair of vectors, as a matrix."""
    e, q = x / x.norm(), q / q.norm()
    r = (e + q) / (e + q).norm()
    identity = torch.eye(len(x), dtype=x.dtype)
    return identity - 2 * torch.outer(r, r) + 2 * torch.outer(q, e)


def passed(estimator, x, q, gradient):
    """Output, and what reaches latents and codewords of a gradient."""
    x, q = x.clone().requires_grad_(), q.clone().requires_grad_()
    y = estimator(x, q)
    y.backward(gradient)
    return y.detach(), x.grad, q.grad


@every_estimator
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_is_the_codewords_bit_for_bit(estimator, dtype):
    x, q = torch.randn(2, 7, 50, 8).to(dtype)
    y, _, to_codewords = passed(estimator, x, q, torch.ones_like(x))
    assert torch.equal(y, q)
    assert (to_codewords is None) == (estimator is not diveq)


def test_diveq_is_the_latent_plus_a_fixed_direction_times_the_length():
    x, q, gradient = torch.randn(3, 40, 5, dtype=torch.float64)
    _, to_x, to_q = passed(diveq, x, q, gradient)
    unit = (q - x) / (q - x).norm(dim=1, keepdim=True)
    along = (gradient * unit).sum(1, keepdim=True) * unit
    torch.testing.assert_close(to_q, along)
    torch.testing.assert_close(to_x, gradient - along)


def test_rotation_passes_the_gradient_turned_back():
    x, q, gradient = torch.randn(3, 40, 5, dtype=torch.float64)
    _, grad, _ = passed(rotation_trick, x, q, gradient)
    for row in range(40):
        turn = rotation(x[row], q[row])
        scale = q[row].norm() / x[row].norm()
        # The map is a rotation, and takes the latent to its codeword.
        torch.testing.assert_close(turn @ turn.T, torch.eye(5).double())
        torch.testing.assert_close(scale * turn @ x[row], q[row])
        torch.testing.assert_close(grad[row], scale * turn.T @ gradient[row])


# Zero, of an ordinary length, opposed to it, nearly so, tiny and huge.
DEGENERATE = torch.tensor(
    [[0, 0], [3, 4], [-3, -4], [-3, -4.000001], [1e-30, 0], [1e19, 1e19]]
)


@every_estimator
def test_degenerate_vectors_stay_finite(estimator):
    x, q = DEGENERATE.repeat(6, 1), DEGENERATE.repeat_interleave(6, 0)
    gradient = torch.tensor([[1.0, -0.5]]).expand(36, 2)
    y, grad, _ = passed(estimator, x, q, gradient)
    assert torch.equal(y, q) and grad.isfinite().all()
    if estimator is rotation_trick:  # Straight through without a direction
        is_zero = (x == 0).all(1) | (q == 0).all(1)
        assert torch.equal(grad[is_zero], gradient[is_zero])


@pytest.mark.parametrize("apart", [0.0, 1e-7, 1e-5, 1e-3])
def test_rotation_of_opposed_vectors_keeps_the_length_of_the_gradient(apart):
    x, gradient, step = torch.randn(3, 200, 5)
    q = apart * step - x
    _, grad, _ = passed(rotation_trick, x, q, gradient)
    scale = q.norm(dim=1) / x.norm(dim=1)
    torch.testing.assert_close(
        grad.norm(dim=1), scale * gradient.norm(dim=1), rtol=2e-3, atol=0
    )
