"""Properties of k-means."""

import logging
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_vq.nnet.kmeans import kmeans

MODULE = sys.modules[kmeans.__module__]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def gaussian(num_rows=2000, dim=8):
    return torch.randn(num_rows, dim, generator=generator())


def mixture(num_rows=3000, dim=16, modes=150):
    modes = torch.randn(modes, dim, generator=generator())
    weights = 1 / torch.arange(1.0, len(modes) + 1)
    picks = torch.multinomial(weights, num_rows, True, generator=generator())
    return modes[picks] + 0.2 * gaussian(num_rows, dim)


def low_rank(num_rows=3000):
    plane = torch.randn(3, 16, generator=generator(1))
    return 30 + gaussian(num_rows, 3) @ plane + 0.05 * gaussian(num_rows, 16)


def with_copies(num_rows=3000):
    return mixture()[torch.randint(600, (num_rows,), generator=generator())]


@pytest.mark.parametrize("make", [gaussian, mixture, low_rank, with_copies])
@pytest.mark.parametrize("num_clusters", [8, 64])
def test_as_good_as_scikit_learn(make, num_clusters):
    cluster = pytest.importorskip("sklearn.cluster")
    x = make()
    ours, theirs = [], []
    for seed in range(8):
        ours.append(kmeans(x, num_clusters, generator=seed).inertia)
        options = {"n_init": 1, "random_state": seed}
        theirs.append(cluster.k_means(x.numpy(), num_clusters, **options)[2])
    ours, theirs = torch.stack(ours), torch.tensor(theirs)
    # Single fits of problems as small as these differ by several percent:
    # averages are compared, and the best of as many.
    assert ours.mean() <= 1.01 * theirs.mean()
    assert ours.amin() <= 1.02 * theirs.amin()


@given(
    number=st.integers(1, 40),
    kinds=st.integers(1, 40),
    dim=st.integers(1, 5),
    clusters=st.integers(1, 12),
    offset=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_kmeans_of_anything(number, kinds, dim, clusters, offset, seed):
    """Also of fewer distinct vectors than clusters, and far from 0."""
    generator = torch.Generator().manual_seed(seed)
    distinct = offset + torch.randn(kinds, dim, generator=generator)
    x = distinct[torch.randint(kinds, (number,), generator=generator)]
    centroids, inertia, counts = kmeans(x, clusters, generator=seed)
    assert centroids.shape == (clusters, dim) and centroids.isfinite().all()
    given = x.double(), centroids.double()
    distances = torch.cdist(*given, 2, "donot_use_mm_for_euclid_dist")
    least = distances.min(1).values.square().sum()
    slack = 1e-5 * (1 + offset) * number
    assert abs(inertia - least) <= 1e-3 * least + slack
    assert int(counts.sum()) == number
    if len(x.unique(dim=0)) >= clusters:
        assert (counts > 0).all()
    # No worse than one cluster, and exact where each vector may have its own.
    one = (x.double() - x.double().mean(0)).square().sum()
    assert inertia <= one * (1 + 1e-3) + slack
    if len(x.unique(dim=0)) <= clusters:
        assert least <= slack
        assert len(centroids.unique(dim=0)) >= len(x.unique(dim=0))


@pytest.mark.parametrize("number", [1, 20])
def test_iterations_lower_the_inertia_until_centroids_are_means(number):
    x, inertias = mixture(), []
    for n in (0, 1, 3, 10, 200):
        budget = {"max_iterations": n, "tolerance": 0.0}
        centroids, inertia, _ = kmeans(x, number, **budget, generator=0)
        inertias.append(inertia)
    assert inertias == sorted(inertias, reverse=True)
    labels = torch.cdist(x, centroids).argmin(1)
    means = torch.stack([x[labels == k].mean(0) for k in range(number)])
    torch.testing.assert_close(centroids, means, rtol=1e-3, atol=1e-3)
    again = kmeans(x, number, init=centroids)
    torch.testing.assert_close(again.centroids, centroids)


def test_seeds_are_distinct_vectors():
    far = torch.full((1, 16), 1e4)
    x = torch.cat([mixture(), far])
    seeds = kmeans(x, 100, max_iterations=0, generator=0).centroids
    assert len(seeds.unique(dim=0)) == 100
    assert torch.cdist(seeds.double(), x.double()).amin(1).max() < 1e-5
    assert ((seeds - far).abs().amax(1) < 1).sum() == 1


def test_the_generator_is_the_only_source_of_randomness():
    x, state = mixture(), torch.get_rng_state()
    same, again, other = (
        kmeans(x, 50, generator=seed).centroids for seed in (3, generator(3), 4)
    )
    assert torch.equal(same, again) and not torch.equal(same, other)
    kmeans(x[:5], 20, generator=0)
    assert torch.equal(torch.get_rng_state(), state)
    kmeans(x, 20)
    assert not torch.equal(torch.get_rng_state(), state)


def test_centroids_follow_the_data():
    # Entries on a coarse grid, so that a translation is exact.
    x = (mixture() * 64).round() / 64
    centroids = kmeans(x, 30, generator=0).centroids
    order = torch.randperm(len(x), generator=generator(5))
    assert torch.equal(kmeans(x[order], 30, generator=0).centroids, centroids)
    for scale in (2.0**-60, 2.0**-10, 2.0**40):
        scaled = kmeans(x * scale, 30, generator=0).centroids
        assert torch.equal(scaled, centroids * scale)
    moved = kmeans(x + 128, 30, generator=0).centroids
    torch.testing.assert_close(moved - 128, centroids, rtol=0, atol=1e-3)


def test_rows_of_init_without_vectors_become_seeds():
    x = mixture()
    init = kmeans(x, 40, generator=1).centroids
    init[25:] += 1e3
    result = kmeans(x, 40, max_iterations=0, generator=0, init=init)
    torch.testing.assert_close(result.centroids[:25], init[:25])
    seeds = result.centroids[25:].double()
    assert torch.cdist(seeds, x.double()).amin(1).max() < 1e-5
    # Seeds are drawn given the rows that stay.
    assert result.inertia < torch.cdist(x, init[:25]).amin(1).square().sum()
    whole = kmeans(x, 40, generator=0, init=init)
    assert (whole.counts > 0).all() and whole.inertia < result.inertia
    assert len(whole.centroids.unique(dim=0)) == 40


def assert_whole(result, number):
    assert result.centroids.shape[0] == number
    assert result.centroids.isfinite().all()
    assert len(result.centroids.unique(dim=0)) == number


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize("has_init", [False, True])
def test_fewer_distinct_vectors_than_clusters(has_init, offset, dim, caplog):
    vectors = gaussian(5, dim) + offset
    x = vectors.repeat(20, 1)
    init = vectors.repeat(13, 1)[:64] + 0.03 if has_init else None
    with caplog.at_level(logging.WARNING):
        result = kmeans(x, 64, init=init, generator=0)
    assert "5 distinct" in caplog.text and "64 clusters" in caplog.text
    assert_whole(result, 64)
    assert result.inertia < 1e-4 * x.var() * len(x)
    # Spread evenly, and near what they are copies of.
    near = torch.cdist(result.centroids.double(), vectors.double())
    assert near[:5].amin(1).max() < 1e-3  # These are their means.
    assert near.amin(1).max() < 0.1 and near.argmin(1).bincount().min() >= 12


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4, 1e-20])
@pytest.mark.parametrize("has_init", [False, True])
def test_all_vectors_alike(value, has_init):
    x = torch.full((50, 3), value)
    result = kmeans(x, 16, init=x[:16] if has_init else None, generator=0)
    assert_whole(result, 16)
    limit = 0.1 * (abs(value) or 1)
    assert (result.centroids - value).abs().max() < limit
    assert (result.centroids == x[0]).all(1).any()


@pytest.mark.parametrize("make", [gaussian, mixture, low_rank, with_copies])
@pytest.mark.parametrize("iterations", [0, 1, 20])
def test_init_only_gets_better(make, iterations):
    x = make()
    for init in (x[:40], 3 * x[:40], x[:1].expand(40, -1)):
        before = torch.cdist(x.double(), init.double()).amin(1).square().sum()
        result = kmeans(x, 40, max_iterations=iterations, init=init)
        assert result.inertia <= (1 + 1e-5) * before
        assert (result.counts > 0).all()


@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**40])
@pytest.mark.parametrize("offset", [0.0, 128.0])
def test_init_names_the_clusters_it_grows(scale, offset):
    modes = torch.randn(12, 8, generator=generator(2)) * 20 + offset
    labels = torch.arange(600) % 12
    x = modes[labels] + gaussian(600, 8)
    init = modes + torch.randn(12, 8, generator=generator(3))
    result = kmeans(x * scale, 12, init=init * scale)
    means = torch.stack([x[labels == k].mean(0) for k in range(12)])
    found = result.centroids / scale
    torch.testing.assert_close(found, means, rtol=1e-5, atol=1e-4)
    assert (result.counts == 50).all()


def test_init_draws_nothing_and_is_left_alone():
    x = mixture()
    init, state = x[:20].clone(), torch.get_rng_state()
    one, other = (kmeans(x, 20, init=init, generator=g) for g in (None, 7))
    assert torch.equal(one.centroids, other.centroids)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(init, x[:20])
    same = kmeans(x, 20, init=init.double().requires_grad_())
    assert torch.equal(same.centroids, one.centroids)
    assert not same.centroids.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_and_autocast(dtype):
    x = mixture(1000).to(dtype).requires_grad_()
    expected = kmeans(x.float(), 20, generator=0).centroids
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = kmeans(x, 20, generator=0)
    assert torch.equal(result.centroids, expected)
    assert not any(value.requires_grad for value in result)


X = gaussian(20, 3)


@pytest.mark.parametrize(
    "x, number, init, error, message",
    [
        (X, 0, None, ValueError, "num_clusters.*0"),
        (X[:0], 2, None, ValueError, r"\(0, 3\)"),
        (X.long(), 2, None, TypeError, "int64"),
        (X.log(), 2, None, ValueError, "x has.*not finite"),
        (X, 4, X[:4, :2], ValueError, r"init \(4, 2\)"),
        (X, 4, X[:3], ValueError, r"init \[4, D\]; got init \(3, 3\)"),
        (X, 4, X[:4] * torch.nan, ValueError, "init has"),
        (X, 4, X[:4].long(), TypeError, "init.*int64"),
    ],
)
def test_errors_name_what_is_wrong(x, number, init, error, message):
    with pytest.raises(error, match=message):
        kmeans(x, number, init=init)


@pytest.mark.parametrize("make", [mixture, with_copies])
def test_many_clusters_are_seeded_by_parts(make, monkeypatch):
    x = make()
    whole = kmeans(x, 256, generator=0)
    monkeypatch.setattr(MODULE, "_MAX_EXACT", 100)
    parts = kmeans(x, 256, generator=0)
    drawn = x.unique(dim=0)
    drawn = drawn[torch.randperm(len(drawn), generator=generator(2))[:256]]
    assert parts.inertia <= 1.2 * whole.inertia
    assert parts.inertia < kmeans(x, 256, init=drawn).inertia
    assert (parts.counts > 0).all()
    seeds = kmeans(x, 256, max_iterations=0, generator=0).centroids
    assert len(seeds.unique(dim=0)) == 256
    assert (seeds.unsqueeze(1) == x).all(2).any(1).all()
    shuffled = x[torch.randperm(len(x), generator=generator(1))]
    again = kmeans(shuffled, 256, max_iterations=0, generator=0).centroids
    assert torch.equal(seeds, again)
    # Where nearly every vector is a seed.
    found = kmeans(x, len(x.unique(dim=0)) - 1, generator=0)
    assert found.inertia <= 1e-2 * parts.inertia
    assert (found.counts > 0).all()


def test_init_in_parts_keeps_its_rows_and_replaces_the_dead(monkeypatch):
    x = mixture(6000)
    init = kmeans(x, 256, generator=0).centroids
    init[200:] += 1e3
    whole = kmeans(x, 256, generator=1, init=init)
    monkeypatch.setattr(MODULE, "_MAX_EXACT", 100)
    seeds = kmeans(x, 256, max_iterations=0, generator=1, init=init).centroids
    torch.testing.assert_close(seeds[:200], init[:200])
    new = seeds[200:]
    assert (new.unsqueeze(1) == x).all(2).any(1).all()
    assert torch.cdist(new, init[:200]).amin() > 0
    parts = kmeans(x, 256, generator=1, init=init)
    assert parts.inertia <= 1.05 * whole.inertia
    assert (parts.counts > 0).all() and parts.counts.sum() == len(x)
