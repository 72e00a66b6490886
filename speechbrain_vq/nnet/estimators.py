"""How gradients pass a quantizer.

Both functions return the codewords in the forward pass; they differ in the
gradient that reaches the encoder.

Authors
 * speechbrain_vq authors 2026
"""

import torch


class _StraightThrough(torch.autograd.Function):
    """The codewords bit for bit, and the latents' gradient as it comes."""

    @staticmethod
    def forward(ctx, latents, codewords):
        return codewords.view_as(codewords)

    @staticmethod
    def backward(ctx, gradient):
        return gradient, None


class _Rotation(torch.autograd.Function):
    """The codewords bit for bit, and the latents' gradient rotated back."""

    @staticmethod
    def forward(ctx, latents, codewords):
        ctx.save_for_backward(latents, codewords)
        return codewords.view_as(codewords)

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


def straight_through(
    latents: torch.Tensor, codewords: torch.Tensor
) -> torch.Tensor:
    """The straight-through estimator (Bengio et al., 2013): the latents get
    the gradient of the codewords unchanged.

    Arguments
    ---------
    latents : torch.Tensor
        Encoder outputs, [..., D].
    codewords : torch.Tensor
        Nearest codewords, [..., D]; no gradient reaches them.

    Returns
    -------
    torch.Tensor
        The codewords, [..., D].

    Example
    -------
    >>> x = torch.tensor([1.0, 2.0], requires_grad=True)
    >>> straight_through(x, torch.tensor([1.5, 1.5])).square().sum().backward()
    >>> x.grad
    tensor([3., 3.])
    """
    return _StraightThrough.apply(latents, codewords.detach())


def rotation_trick(
    latents: torch.Tensor, codewords: torch.Tensor
) -> torch.Tensor:
    """The rotation trick (Fifty et al., ICLR 2025, eq. 4): the latent is
    rotated and scaled onto its codeword, and that linear map, held constant,
    is what the gradient passes.

    Where latent or codeword vanish there is no rotation and the estimator is
    the straight-through one.

    Arguments
    ---------
    latents : torch.Tensor
        Encoder outputs, [..., D].
    codewords : torch.Tensor
        Nearest codewords, [..., D]; no gradient reaches them.

    Returns
    -------
    torch.Tensor
        The codewords, [..., D].
    """
    return _Rotation.apply(latents, codewords.detach())


ESTIMATORS = {
    "straight_through": straight_through,
    "rotation": rotation_trick,
}
