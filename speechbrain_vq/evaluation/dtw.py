"""Batched dynamic time warping."""

import torch


def dtw(
    costs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute the mean cost [N] along the cheapest path of each pair of
    sequences, as in ABX (Schatz, ABX-discriminability measures, 2016, section
    2.2).

    ``costs`` [N, I, J] are distances between frames. ``rows`` and ``columns``
    [N] are the numbers of frames of both sequences; costs beyond them are
    ignored. A path leads from the first pair of frames to the last. Each step
    advances one or both sequences by a frame. Ties are broken from the end of
    the path: steps in both sequences are preferred, then steps in the second.

    Example
    -------
    >>> costs = torch.tensor([[[0.0, 1.0, 9.0], [9.0, 1.0, 0.5]]])
    >>> dtw(costs, torch.tensor([2]), torch.tensor([3]))
    tensor([0.5000])
    """
    number, height, width = costs.shape
    # With pairs as the last dimension, an anti-diagonal is a view, not a copy.
    cells = costs.permute(1, 2, 0).reshape(height * width, number)
    # Costs and lengths of paths on three anti-diagonals. Row 0 is padding that
    # no path enters.
    sums = list(costs.new_full((3, height + 1, number), torch.inf))
    sizes = list(torch.zeros(3, height + 1, number, dtype=torch.int32))
    ends, means = rows + columns - 2, costs.new_empty(number)
    for step in range(height + width - 1):
        low, high = max(0, step - width + 1), min(step + 1, height)
        at, above = slice(low + 1, high + 1), slice(low, high)
        first = low * (width - 1) + step
        diagonal = cells[first :: max(width - 1, 1)][: high - low]
        (before, last, now), (size_before, size_last, size) = sums, sizes
        left, up, corner = last[at], last[above], before[above]
        best = torch.minimum(left, up)
        size[at] = torch.where(left <= up, size_last[at], size_last[above])
        size[at] = torch.where(corner <= best, size_before[above], size[at])
        size[at] += 1
        best = torch.minimum(best, corner) if step else best.zero_()
        torch.add(best, diagonal, out=now[at])
        now[high + 1 :] = torch.inf
        ending = (ends == step).nonzero()[:, 0]
        means[ending] = now[rows[ending], ending] / size[rows[ending], ending]
        sums, sizes = sums[1:] + sums[:1], sizes[1:] + sizes[:1]
    return means
