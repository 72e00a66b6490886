"""Sums over the ranks of a distributed run; no-ops in a single process.

Authors
 * speechbrain_vq authors 2026
"""

import torch
from torch import distributed


def world_size() -> int:
    """The number of ranks, 1 where nothing is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


class _Sum(torch.autograd.Function):
    """A sum over ranks whose gradient is the sum of theirs: every rank's
    result depends on every rank's input."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        return _Sum.apply(gradient)


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Sums a tensor over all ranks; gradients are summed the same way."""
    return x if world_size() == 1 else _Sum.apply(x)
