"""The reservoir: a uniform sample, whatever the batches and the masks."""

import io
import math
from collections import Counter

import pytest
import torch
from scipy import stats

from speechbrain_vq.nnet.reservoir import Reservoir


def numbered(start, stop):
    """Vectors that tell their position in the stream, [N, 1]."""
    return torch.arange(float(start), float(stop)).unsqueeze(1)


def masked(vectors):
    """The same stream with frames between that do not count."""
    noise = torch.full((len(vectors), 2, 1), -1.0)
    frames = torch.cat((noise, vectors.unsqueeze(1)), dim=1)
    return frames, torch.tensor([False, False, True]).expand(len(vectors), 3)


def feed(reservoir, sizes, with_mask=False):
    """Adds 0, 1, 2, ... in batches of these sizes."""
    start = 0
    for size in sizes:
        batch = numbered(start, start + size)
        reservoir.add(*(masked(batch) if with_mask else (batch,)))
        start += size


def same_draws(reservoir_contents, count, batch, mask, capacity):
    """Algorithm R one vector at a time, from the generator as it stands."""
    rows = [row.clone() for row in reservoir_contents]
    draws = iter(torch.randint(2**62, (len(batch),)).tolist())
    for vector, valid in zip(batch, mask, strict=True):
        if not valid:
            continue
        slot, count = next(draws) % (count + 1), count + 1
        if len(rows) < capacity:
            rows.append(vector)
        elif slot < capacity:
            rows[slot] = vector
    return torch.stack(rows), count


@pytest.mark.parametrize("with_mask", [False, True])
@pytest.mark.parametrize("sizes", [(7,), (1,) * 7, (2, 4, 1), (3, 0, 4)])
def test_every_subset_is_equally_likely(sizes, with_mask):
    capacity, trials = 3, 1500
    seen = Counter()
    for _ in range(trials):
        reservoir = Reservoir(capacity, 1)
        feed(reservoir, sizes, with_mask)
        seen[tuple(sorted(reservoir.contents().flatten().tolist()))] += 1
    subsets = math.comb(sum(sizes), capacity)
    assert len(seen) == subsets
    assert stats.chisquare(list(seen.values())).pvalue > 1e-3


def test_position_in_a_long_stream_does_not_matter():
    bins, positions = 10, []
    for _ in range(100):
        reservoir = Reservoir(50, 1)
        feed(reservoir, [137] * 20)
        positions.append(reservoir.contents())
    share = torch.cat(positions).flatten() / (137 * 20)
    assert stats.chisquare(torch.histc(share, bins, 0, 1)).pvalue > 1e-3


def test_everything_is_kept_in_order_until_full():
    reservoir = Reservoir(10, 1)
    feed(reservoir, (3, 0, 5, 2))
    assert torch.equal(reservoir.contents(), numbered(0, 10))
    assert len(reservoir) == 10


@pytest.mark.parametrize("capacity", [1, 4, 30])
def test_equals_one_vector_at_a_time(capacity):
    reservoir = Reservoir(capacity, 2)
    rows, count = torch.empty(0, 2), 0
    for seed, size in enumerate((5, 40, 1, 17)):
        batch, mask = torch.randn(size, 2), torch.rand(size) < 0.7
        mask[0] = True
        torch.manual_seed(seed)
        rows, count = same_draws(rows, count, batch, mask, capacity)
        torch.manual_seed(seed)
        reservoir.add(batch, mask)
        assert torch.equal(reservoir.contents(), rows)
        assert int(reservoir.count) == count


def test_reset_starts_a_new_stream():
    reservoir = Reservoir(5, 1)
    feed(reservoir, (1000,))
    reservoir.reset()
    assert len(reservoir.contents()) == 0
    feed(reservoir, (3,))
    assert torch.equal(reservoir.contents(), numbered(0, 3))


@pytest.mark.parametrize("size", [3, 50])
def test_saved_and_loaded_it_goes_on_the_same(size):
    reservoir, other = Reservoir(8, 1), Reservoir(8, 1)
    feed(other, (100,))
    feed(reservoir, (size,))
    file = io.BytesIO()
    torch.save(reservoir.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    results = []
    for each in (reservoir, other):
        torch.manual_seed(7)
        each.add(numbered(1000, 1020))
        results.append(each.state_dict())
    assert torch.equal(results[0]["rows"], results[1]["rows"])
    assert results[0]["count"] == results[1]["count"] == size + 20


@pytest.mark.parametrize("number, capacity", [(20, 4), (20, 10), (6, 5)])
def test_loading_into_another_capacity_says_so(number, capacity):
    reservoir = Reservoir(8, 1)
    feed(reservoir, (number,))
    with pytest.raises(ValueError, match=f"does not fit .*{capacity} and dim"):
        Reservoir(capacity, 1).load_state_dict(reservoir.state_dict())


def test_nothing_is_shared_with_states_contents_or_inputs():
    reservoir, other = Reservoir(4, 1), Reservoir(4, 1)
    batch = numbered(0, 4)
    reservoir.add(batch)
    state = reservoir.state_dict()
    other.load_state_dict(state)
    batch.fill_(-1)
    reservoir.contents().fill_(-1)
    state["rows"].fill_(-1)
    state["count"].fill_(0)
    for each in (reservoir, other):
        assert torch.equal(each.contents(), numbered(0, 4))
        assert int(each.count) == 4


def test_it_stays_in_fp32_whatever_is_added():
    reservoir = Reservoir(4, 1)
    for dtype in (torch.float64, torch.bfloat16, torch.half):
        reservoir.add(torch.full((1, 1), 0.25, dtype=dtype))
        assert reservoir.contents().dtype == torch.float32
    assert (reservoir.contents() == 0.25).all()


def test_it_takes_no_memory_before_there_is_something_to_keep():
    with torch.device("meta"):
        reservoir = Reservoir(10**9, 1000)
    assert len(reservoir.contents()) == 0


def test_no_gradient_is_kept():
    reservoir = Reservoir(4, 1)
    reservoir.add(numbered(0, 3).requires_grad_())
    assert not reservoir.contents().requires_grad


def test_vectors_of_another_dimension_are_refused():
    with pytest.raises(ValueError, match=r"dimension 3, .*\(5, 2\)"):
        Reservoir(4, 3).add(torch.randn(5, 2))


@pytest.mark.parametrize("sizes", [(-1, 2), (2, 0), (2.5, 2)])
def test_impossible_sizes_are_refused(sizes):
    with pytest.raises(ValueError, match="must be an integer >= [01]"):
        Reservoir(*sizes)
