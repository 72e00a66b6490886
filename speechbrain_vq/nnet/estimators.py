"""Gradient estimators: the codewords in the forward pass, and different
gradients for the encoder in the backward pass."""

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """The codewords bit for bit; the gradient as it comes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(latents, codewords):
        return codewords.view_as(codewords)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


def straight_through(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply the straight-through estimator (Bengio et al., 2013): the output
    is the codewords [..., D], and latents [..., D] get its gradient unchanged.

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> straight_through(x, torch.tensor([1.5, 1.5])).square().sum().backward()
    >>> x.grad
    tensor([3., 3.])
    """
    return _StraightThrough.apply(latents, codewords.detach())


def rotation_trick(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply the rotation trick (Fifty et al., ICLR 2025, eq. 4): the latent is
    rotated and scaled onto its codeword by a linear map that the gradient
    passes as a constant; straight through where latent or codeword vanish.
    Arguments and output are those of ``straight_through``.
    """
    codewords = codewords.detach()
    lengths, units = [], []
    limits = torch.finfo(latents.dtype)
    tiny = limits.tiny**0.5
    for vectors in (latents.detach(), codewords):
        lengths.append(torch.linalg.vector_norm(vectors, dim=-1, keepdim=True))
        units.append(vectors / lengths[-1].clamp(min=tiny))
    # R = I - 2 r r' + 2 q e', r the unit bisector; it maps e to q. Vectors
    # nearly opposed have none but rounding: there R is a reflection, r = 0.
    bisector = sum(units)
    width = torch.linalg.vector_norm(bisector, dim=-1, keepdim=True)
    bisector = torch.where(width > limits.eps**0.5, bisector / width, 0.0)
    along = (latents * units[0]).sum(-1, keepdim=True)
    across = (latents * bisector).sum(-1, keepdim=True)
    rotated = latents - 2 * across * bisector + 2 * along * units[1]
    defined = (lengths[0] > tiny) & (lengths[1] > tiny)
    ratio = lengths[1] / lengths[0].clamp(min=tiny)
    moved = torch.where(defined, rotated * ratio, latents)
    return straight_through(moved, codewords)


def diveq(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply DiVeQ (Vali et al., ICLR 2026, arXiv 2509.26469): the codeword is
    the latent plus the length of the error times its direction, of which the
    gradient passes the length alone. Latents and codewords both get gradients,
    so no codebook or commitment loss is needed. Arguments and output are those
    of ``straight_through``.

    >>> codeword = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> diveq(torch.zeros(2), codeword)[0].backward()
    >>> codeword.grad
    tensor([0.3600, 0.4800])
    """
    error = codewords - latents
    length = torch.linalg.vector_norm(error, dim=-1, keepdim=True)
    tiny = torch.finfo(length.dtype).tiny
    direction = (error / length.clamp(min=tiny)).detach()
    return straight_through(latents + length * direction, codewords)


ESTIMATORS = {
    "diveq": diveq,
    "straight_through": straight_through,
    "rotation": rotation_trick,
}
