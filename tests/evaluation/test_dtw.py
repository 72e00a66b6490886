"""Dynamic time warping, against a search through all paths."""

import itertools

import pytest
import torch

from speechbrain_vq.evaluation.dtw import dtw


def all_paths(rows, columns):
    """Every path from the first to the last pair of frames."""
    if (rows, columns) == (1, 1):
        yield [(0, 0)]
        return
    for up, across in ((1, 1), (1, 0), (0, 1)):
        if rows > up and columns > across or (rows, columns) == (up, across):
            if rows - up and columns - across:
                for path in all_paths(rows - up, columns - across):
                    yield [*path, (rows - 1, columns - 1)]


def one(costs, rows=None, columns=None):
    sizes = rows or costs.shape[0], columns or costs.shape[1]
    return float(dtw(costs[None], *(torch.tensor([s]) for s in sizes)))


def test_it_is_the_cheapest_of_all_paths_over_its_length():
    for rows, columns in itertools.product(range(1, 5), range(1, 6)):
        costs = torch.rand(rows, columns, dtype=torch.float64)
        sums = [
            (sum(costs[i, j] for i, j in path), len(path))
            for path in all_paths(rows, columns)
        ]
        cost, length = min(sums)
        assert one(costs) == pytest.approx(float(cost / length))


def test_of_equal_paths_the_one_with_steps_in_both_counts():
    # Along the diagonal it is 4 / 4; around, 4 / 7 would be less.
    costs = torch.ones(4, 4)
    costs[1:, 0] = costs[3, 1:3] = 0.5
    costs[0, 0] = costs[3, 3] = 1.0
    costs[3, 0] = 0.0
    assert one(costs) == pytest.approx(1.0) and one(torch.ones(3, 5)) == 1.0


def test_padding_is_not_read():
    costs = torch.full((3, 6, 7), torch.nan)
    sizes = torch.tensor([[2, 3], [6, 7], [5, 1]])
    alone = []
    for one_of, (rows, columns) in zip(costs, sizes.tolist(), strict=True):
        one_of[:rows, :columns] = torch.rand(rows, columns)
        alone.append(one(one_of[:rows, :columns]))
    together = dtw(costs.nan_to_num(0.0), sizes[:, 0], sizes[:, 1])
    assert together.tolist() == pytest.approx(alone)
    assert dtw(costs, sizes[:, 0], sizes[:, 1])[1] == pytest.approx(alone[1])
