"""Which frames of a padded batch are valid.

Authors
 * speechbrain_vq authors 2026
"""

import torch


def frame_mask(x: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
    """The valid frames of a batch.

    Relative lengths are rounded to whole frames: a plain comparison makes one
    length in twenty a frame too long.

    Arguments
    ---------
    x : torch.Tensor
        A batch, [B, T, ..., D]; time is the second dimension.
    lengths : torch.Tensor, optional
        Lengths relative to T, [B]; absent: all of it.

    Returns
    -------
    torch.Tensor
        Booleans in the shape of ``x`` less its last dimension.

    Raises
    ------
    ValueError
        If there is not one length for each item of the batch, or, where that
        can be seen without waiting for a device, one is not in 0..1.

    Example
    -------
    >>> frame_mask(torch.randn(2, 13, 4), torch.tensor([1.0, 7 / 13])).sum(1)
    tensor([13,  7])
    """
    if lengths is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    if x.dim() < 3 or lengths.shape != x.shape[:1]:
        raise ValueError(
            "lengths must be one number for each of [B, T, ..., D]; got "
            f"lengths of shape {tuple(lengths.shape)} with an input of shape "
            f"{tuple(x.shape)}."
        )
    time = x.shape[1]
    lengths = lengths.float()
    # Where a look costs no host sync: absolute lengths are a common mistake,
    # and would pass for "all of it".
    if lengths.device.type == "cpu" and not torch.compiler.is_compiling():
        if not ((lengths >= 0) & (lengths <= 1 + 1e-4)).all():
            raise ValueError(
                "lengths are relative to the longest of the batch, in 0..1; "
                f"got values from {float(lengths.min()):g} to "
                f"{float(lengths.max()):g}."
            )
    frames = torch.round(lengths.to(x.device) * time)
    mask = torch.arange(time, device=x.device) < frames.unsqueeze(1)
    mask = mask.view(mask.shape + (1,) * (x.dim() - 3))
    return mask.expand(x.shape[:-1])


class _Clear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, keep):
        keep = keep.to(x.dtype).unsqueeze(1)
        ctx.save_for_backward(keep)
        return torch.nan_to_num(x, 0.0, 0.0, 0.0).mul_(keep)

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None


def clear(x: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """Sets rows to zero, whatever they hold, NaN included.

    Several times as fast as ``torch.where`` on a CPU, forward and backward.

    Arguments
    ---------
    x : torch.Tensor
        Rows, [N, D].
    keep : torch.Tensor
        Which to keep, booleans [N]; these are finite.

    Returns
    -------
    torch.Tensor
        The rows, [N, D].

    Example
    -------
    >>> clear(torch.tensor([[1.0], [torch.nan]]), torch.tensor([True, False]))
    tensor([[1.],
            [0.]])
    """
    return _Clear.apply(x, keep)
