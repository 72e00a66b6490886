"""Dynamic time warping of a batch of pairs."""

import torch


def dtw(
    costs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """Compute the mean cost along the cheapest path, as ABX needs it (Schatz,
    ABX-discriminability measures, 2016, section 2.2), [N].

    ``costs`` are distances of frames, [N, I, J]; ``rows`` and ``columns`` the
    numbers of frames of both sequences of each pair, [N], beyond which costs
    are ignored. A path goes from the first pair of frames to the last by steps
    of one frame in either sequence or in both. Of paths of the same cost, the
    last steps decide: one in both sequences comes before one in the second
    alone.

    Example
    -------
    >>> costs = torch.tensor([[[0.0, 1.0, 9.0], [9.0, 1.0, 0.5]]])
    >>> dtw(costs, torch.tensor([2]), torch.tensor([3]))
    tensor([0.5000])
    """
    number, height, width = costs.shape
    # Pairs last: a diagonal is then a slice, of which nothing is copied.
    cells = costs.permute(1, 2, 0).reshape(height * width, number)
    # Sums of costs, and lengths, on three diagonals; with a row before the
    # first, where no path is.
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
