"""Dynamic time warping of many pairs at once.

Authors
 * speechbrain_vq authors 2026
"""

import torch
from torch.nn.functional import pad


def dtw(
    costs: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor
) -> torch.Tensor:
    """The cost of the cheapest path over the length of that path, as ABX has
    it (Schatz, ABX-discriminability measures, 2016, section 2.2).

    A path goes from the first pair of frames to the last by steps of one frame
    in either sequence or in both. Of paths of the same cost, the one counts
    that, seen from its end, steps in both, or else in the second.

    Arguments
    ---------
    costs : torch.Tensor
        Distances of frames, [N, I, J].
    rows : torch.Tensor
        Frames of the first of each pair, [N], up to I.
    columns : torch.Tensor
        Frames of the second, [N], up to J; what lies beyond is not read.

    Returns
    -------
    torch.Tensor
        Mean cost of a step, [N].

    Example
    -------
    >>> costs = torch.tensor([[[0.0, 1.0, 9.0], [9.0, 1.0, 0.5]]])
    >>> dtw(costs, torch.tensor([2]), torch.tensor([3]))
    tensor([0.5000])
    """
    diagonals = _skewed(costs)
    last, lengths = diagonals.new_full(diagonals.shape[1:], torch.inf), 0
    before, lengths_before = last, torch.zeros_like(last)
    lengths = lengths_before
    ends, found = rows + columns - 2, costs.new_empty(len(costs))
    for step, diagonal in enumerate(diagonals):
        corner, up = _down(before, torch.inf), _down(last, torch.inf)
        best = torch.minimum(last, up)
        chosen = torch.where(last <= up, lengths, _down(lengths, 0.0))
        chosen = torch.where(corner <= best, _down(lengths_before, 0.0), chosen)
        best = torch.minimum(best, corner)
        if step == 0:
            best = torch.zeros_like(best)
        before, lengths_before = last, lengths
        last, lengths = best + diagonal, chosen + 1
        done = (ends == step).nonzero()[:, 0]
        at = rows[done] - 1, done
        found[done] = last[at] / lengths[at]
    return found


def _skewed(costs):
    """Diagonals, [I + J - 1, I, N]: (d, i) is at frames i and d - i."""
    number, rows, columns = costs.shape
    padded = pad(costs, (0, rows), value=torch.inf).flatten(1)
    wide = padded[:, : rows * (rows + columns - 1)]
    return wide.view(number, rows, -1).permute(2, 1, 0).contiguous()


def _down(values, first):
    return pad(values[:-1], (0, 0, 1, 0), value=first)
