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


class _Rotation(_StraightThrough):
    """The codewords bit for bit; the gradient rotated back."""

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, gradient):
        latents, codewords = (saved.detach() for saved in ctx.saved_tensors)
        return _rotated_back(gradient, latents, codewords), None


def _rotated_back(gradient, latents, codewords):
    """The transpose of "rotate and scale latents onto codewords"."""
    norm = latents.norm(dim=-1, keepdim=True)
    target = codewords.norm(dim=-1, keepdim=True)
    limits = torch.finfo(latents.dtype)
    tiny = limits.tiny**0.5
    source_unit = latents / norm.clamp(min=tiny)
    target_unit = codewords / target.clamp(min=tiny)
    # R = I - 2 r r' + 2 q e', r the unit bisector; it maps e to q. Vectors
    # nearly opposed have none but rounding: there R is a reflection, r = 0.
    bisector = source_unit + target_unit
    length = bisector.norm(dim=-1, keepdim=True)
    bisector = torch.where(length > limits.eps**0.5, bisector / length, 0.0)
    along = (gradient * bisector).sum(-1, keepdim=True)
    onto = (gradient * target_unit).sum(-1, keepdim=True)
    rotated = gradient - 2 * bisector * along + 2 * source_unit * onto
    defined = (norm > tiny) & (target > tiny)
    return torch.where(defined, rotated * (target / norm), gradient)


def straight_through(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply the straight-through estimator (Bengio et al., 2013): the latents
    get the gradient of the codewords unchanged.

    Arguments
    ---------
    latents : torch.Tensor
        Encoder outputs, [..., D].
    codewords : torch.Tensor
        Nearest codewords, [..., D]; no gradient reaches them.

    Returns
    -------
    torch.Tensor
        Codewords, [..., D].

    Example
    -------
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> straight_through(x, torch.tensor([1.5, 1.5])).square().sum().backward()
    >>> x.grad
    tensor([3., 3.])
    """
    return _StraightThrough.apply(latents, codewords.detach())


def rotation_trick(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply the rotation trick (Fifty et al., ICLR 2025, eq. 4): the latent is
    rotated and scaled onto its codeword by a linear map that the gradient
    passes as a constant.

    Where latent or codeword vanish there is no rotation and the gradient
    passes straight through. Arguments and output are those of
    ``straight_through``.
    """
    return _Rotation.apply(latents, codewords.detach())


def diveq(latents: Tensor, codewords: Tensor) -> Tensor:
    """Apply DiVeQ (Vali et al., ICLR 2026, arXiv 2509.26469): the codeword is
    the latent plus the length of the error times its direction, of which the
    gradient passes the length alone.

    Latents and codewords both get gradients, so no codebook or commitment
    loss is needed. Arguments and output are those of ``straight_through``;
    here a gradient reaches the codewords.

    Example
    -------
    >>> codeword = torch.tensor([3.0, 4.0], requires_grad=True)
    >>> diveq(torch.zeros(2), codeword)[0].backward()
    >>> codeword.grad
    tensor([0.3600, 0.4800])
    """
    error = codewords - latents
    length = torch.linalg.vector_norm(error, dim=-1, keepdim=True)
    tiny = torch.finfo(length.dtype).tiny
    direction = (error / length.clamp(min=tiny)).detach()
    moved = latents + length * direction
    return straight_through(moved, codewords)


ESTIMATORS = {
    "diveq": diveq,
    "straight_through": straight_through,
    "rotation": rotation_trick,
}
