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


def sum_over_ranks(x: torch.Tensor) -> torch.Tensor:
    """Sums a tensor over all ranks; gradients are summed the same way."""
    if world_size() == 1:
        return x
    from torch.distributed.nn.functional import all_reduce

    return all_reduce(x)
