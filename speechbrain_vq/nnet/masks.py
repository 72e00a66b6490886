"""Masks of the valid frames of a padded batch."""

import torch
from torch import Tensor

from speechbrain_vq.nnet.utils import is_traced


def frame_mask(
    x: Tensor, lengths: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Compute the mask [B, T, ...] of the valid frames of x [B, T, ..., D].

    Lengths [B] are in frames if integer, and relative to T if floating point.
    Unlike in SpeechBrain, relative lengths are rounded to whole frames; without
    rounding, one in twenty is a frame too long. If a ``mask`` is given instead,
    it is checked and returned. The range of lengths is checked only on the CPU,
    since on a GPU this would require a sync.

    >>> frame_mask(torch.randn(2, 13, 4), torch.tensor([1.0, 7 / 13])).sum(1)
    tensor([13,  7])
    >>> frame_mask(torch.randn(2, 13, 4), torch.tensor([13, 7])).sum(1)
    tensor([13,  7])
    """
    if mask is not None:
        if lengths is not None:
            raise ValueError("Pass lengths or mask, not both.")
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask must be boolean, got {mask.dtype}.")
        if mask.shape != x.shape[:-1]:
            raise ValueError(
                f"mask must be {tuple(x.shape[:-1])} for an input of shape "
                f"{tuple(x.shape)}, got {tuple(mask.shape)}."
            )
        return mask.to(x.device)
    if lengths is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    lengths = torch.as_tensor(lengths)
    if not lengths.is_floating_point():
        lengths = lengths.long()  # The number of frames may not fit int8.
    if x.dim() < 3 or lengths.shape != x.shape[:1]:
        raise ValueError(
            "lengths must be one number for each of [B, T, ..., D]; got "
            f"lengths of shape {tuple(lengths.shape)} with an input of shape "
            f"{tuple(x.shape)}."
        )
    time, relative = x.shape[1], lengths.is_floating_point()
    # Rounding errors must stay below half a frame.
    is_read = not is_traced()
    if relative and is_read and time >= 2 / torch.finfo(lengths.dtype).eps:
        raise ValueError(
            f"lengths in {lengths.dtype} are too coarse for {time} frames: "
            "pass them in float32, or as integers (frames)."
        )
    # Floating-point lengths in frames would all be taken as full length.
    if lengths.device.type == "cpu" and is_read:
        limit = 1 + 1e-4 if relative else time
        if not ((lengths >= 0) & (lengths <= limit)).all():
            unit = f"in frames, in 0..{time}"
            if relative:
                unit = "relative to the longest in the batch, in 0..1"
            raise ValueError(
                f"lengths of {lengths.dtype} are {unit}; got values from "
                f"{float(lengths.min()):g} to {float(lengths.max()):g}."
            )
    frames = lengths
    if relative:
        wide = torch.promote_types(lengths.dtype, torch.float32)
        frames = torch.round(lengths.to(wide) * time).long()
    frames = frames.to(x.device).unsqueeze(1)
    mask = torch.arange(time, device=x.device) < frames
    mask = mask.view(mask.shape + (1,) * (x.dim() - 3))
    return mask.expand(x.shape[:-1])
