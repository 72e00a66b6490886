"""The reservoir: a uniform sample, whatever the batches and the masks."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from speechbrain_vq.nnet.reservoir import Reservoir


def numbered(start, stop):
    """Vectors that tell their position in the stream, [N, 1]."""
    return torch.arange(float(start), float(stop)).unsqueeze(1)


def test_every_subset_is_equally_likely():
    seen = Counter()
    for _ in range(700):
        reservoir = Reservoir(3, 1)
        for batch in numbered(0, 7).split([2, 4, 1]):
            reservoir.add(batch)
        seen[tuple(sorted(reservoir.contents().flatten().tolist()))] += 1
    assert len(seen) == math.comb(7, 3)
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


@given(
    capacity=st.integers(0, 12),
    parts=st.lists(st.lists(st.booleans(), max_size=9), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_a_reservoir_of_any_stream(capacity, parts, cut, seed):
    """It holds valid vectors, each once, all while they fit and in order;
    neither padding nor a stop on the way changes it."""

    def sample(with_padding, stop):
        reservoir, first = Reservoir(capacity, 1), 0
        # A reset starts a new stream.
        reservoir.add(numbered(1000, 2000))
        reservoir.reset()
        for number, mask in enumerate(parts):
            mask = torch.tensor(mask, dtype=torch.bool)
            vectors = torch.arange(first, first + len(mask)).view(-1, 1)
            first += len(mask)
            if number == stop:
                state = reservoir.state_dict()
                reservoir = Reservoir(capacity, 1)
                reservoir.load_state_dict(state)
            torch.manual_seed(seed + number)
            if with_padding:
                reservoir.add(vectors.float(), mask)
            else:
                reservoir.add(vectors[mask].float())
        return reservoir

    valid = torch.tensor([m for mask in parts for m in mask]).nonzero()
    reservoir = sample(True, None)
    rows = reservoir.contents()
    if len(valid) <= capacity:
        assert torch.equal(rows, valid.float())
    assert int(reservoir.count) == len(valid) * bool(capacity)
    assert len(rows) == min(len(valid), capacity) == len(rows.unique())
    assert torch.isin(rows, valid.float()).all()
    assert torch.equal(sample(True, cut).contents(), rows)
    assert torch.equal(sample(False, cut).contents(), rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.half])
def test_it_shares_neither_memory_nor_type_with_what_it_meets(dtype):
    reservoir, other = Reservoir(4, 1), Reservoir(4, 1)
    batch = numbered(0, 4).to(dtype).requires_grad_()
    reservoir.add(batch)
    state = reservoir.state_dict()
    other.load_state_dict(state)
    batch.data.fill_(-1)
    reservoir.contents().fill_(-1)
    state["rows"].fill_(-1)
    state["count"].fill_(0)
    for each in (reservoir, other):
        assert torch.equal(each.contents(), numbered(0, 4))
        assert not each.contents().requires_grad
        assert int(each.count) == 4


@pytest.mark.parametrize("sizes", [(-1, 2), (2, 0), (2.5, 2)])
def test_wrong_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="must be an integer >= [01]"):
        Reservoir(*sizes)


@pytest.mark.parametrize("rows, count", [(8, 20), (4, 20), (6, 6)])
def test_what_does_not_fit_is_refused(rows, count):
    state = {"rows": torch.ones(rows, 1), "count": torch.tensor(count)}
    with pytest.raises(ValueError, match="does not fit .*5 and dim"):
        Reservoir(5, 1).load_state_dict(state)
    with pytest.raises(ValueError, match=r"3, .*\(5, 2\)"):
        Reservoir(4, 3).add(torch.randn(5, 2))
