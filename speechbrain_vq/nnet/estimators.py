"""Gradient estimators for the quantization of latents."""

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    """Return the codewords exactly; pass the gradient on unchanged."""

    generate_vmap_rule = True

    @staticmethod
    def forward(latents, codewords):
        """Return the codewords."""
        return codewords.view_as(codewords)

    @staticmethod
    def setup_context(ctx, inputs, output):
        """Save nothing."""
        pass

    @staticmethod
    def backward(ctx, gradient):
        """Pass the gradient to the latents."""
        return gradient, None


def straight_through(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply the straight-through estimator (Bengio et al., 2013): return the
    codewords [..., D], and pass the gradient unchanged to the latents [..., D].

    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> straight_through(x, torch.tensor([1.5, 1.5])).square().sum().backward()
    >>> x.grad
    tensor([3., 3.])
    """
    return _StraightThrough.apply(latents, codewords.detach())


def rotation_trick(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply the rotation trick (Fifty et al., ICLR 2025, eq. 4): rotate and
    scale each latent onto its codeword, with rotation and scale constant in the
    backward pass. Straight-through if the latent or the codeword is zero. Takes
    and returns the same as ``straight_through``.
    """
    codewords = codewords.detach()
    limits = torch.finfo(latents.dtype)
    tiny = limits.tiny**0.5
    latent_length, codeword_length = map(_length, (latents.detach(), codewords))
    e = latents.detach() / latent_length.clamp(min=tiny)
    q = codewords / codeword_length.clamp(min=tiny)
    # R = I - 2 r r' + 2 q e' maps e to q, with r the unit bisector of the two.
    # If they are nearly opposite, r is rounding noise: r = 0 makes R reflect e.
    width = _length(e + q)
    r = torch.where(width > limits.eps**0.5, (e + q) / width, 0.0)
    along = (latents * e).sum(-1, keepdim=True)
    across = (latents * r).sum(-1, keepdim=True)
    rotated = latents - 2 * across * r + 2 * along * q
    is_defined = (latent_length > tiny) & (codeword_length > tiny)
    ratio = codeword_length / latent_length.clamp(min=tiny)
    moved = torch.where(is_defined, rotated * ratio, latents)
    return straight_through(moved, codewords)


def diveq(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply DiVeQ (Vali et al., ICLR 2026, arXiv 2509.26469): add the error to
    the latent, with gradients through the error's length but not through its
    direction. Latents and codewords both get gradients, so no codebook or
    commitment loss is needed. Takes and returns the same as
    ``straight_through``.

    >>> codeword = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> diveq(torch.zeros(2), codeword)[0].backward()
    >>> codeword.grad
    tensor([0.3600, 0.4800])
    """
    error = codewords - latents
    length = _length(error)
    tiny = torch.finfo(length.dtype).tiny
    direction = (error / length.clamp(min=tiny)).detach()
    return straight_through(latents + length * direction, codewords)


def _length(vectors: Tensor) -> Tensor:
    return torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)


ESTIMATORS = {
    "diveq": diveq,
    "straight_through": straight_through,
    "rotation": rotation_trick,
}
