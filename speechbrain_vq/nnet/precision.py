"""Modules that keep their precision when a model around them is converted.

Authors
 * speechbrain_vq authors 2026
"""

from collections.abc import Callable

import torch


def keep_dtype(
    fn: Callable[[torch.Tensor], torch.Tensor],
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Of what ``nn.Module._apply`` does to a tensor, only the moving.

    Arguments
    ---------
    fn : callable
        From a tensor to one on another device, in another precision, or both.

    Returns
    -------
    callable
        From a tensor to one on that device, in the precision it was in.

    Example
    -------
    >>> keep_dtype(torch.Tensor.half)(torch.ones(1)).dtype
    torch.float32
    """

    def moved(tensor):
        changed = fn(tensor)
        if changed.dtype == tensor.dtype:
            return changed
        return tensor.to(changed.device)

    return moved
