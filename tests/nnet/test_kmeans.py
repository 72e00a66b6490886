"""Properties of k-means."""

import logging
import sys

import pytest
import torch

from speechbrain_vq.nnet.kmeans import kmeans


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
    picks = torch.randint(600, (num_rows,), generator=generator())
    return mixture()[picks]


@pytest.mark.parametrize("make", [gaussian, mixture, low_rank, with_copies])
@pytest.mark.parametrize("num_clusters", [8, 64])
def test_as_good_as_scikit_learn(make, num_clusters):
    cluster = pytest.importorskip("sklearn.cluster")
    x = make()
    ours = torch.stack(
        [kmeans(x, num_clusters, generator=seed).inertia for seed in range(8)]
    )
    theirs = torch.tensor(
        [
            cluster.k_means(
                x.numpy(), num_clusters, n_init=1, random_state=seed
            )[2]
            for seed in range(8)
        ]
    )
    # Single fits of problems as small as these differ by several percent:
    # averages are compared, and the best of as many.
    assert ours.mean() <= 1.01 * theirs.mean()
    assert ours.amin() <= 1.02 * theirs.amin()


def test_result_describes_the_centroids():
    x = with_copies()
    result = kmeans(x, 40, generator=0)
    distances = torch.cdist(x.double(), result.centroids.double()).square()
    torch.testing.assert_close(result.inertia.double(), distances.amin(1).sum())
    counts = torch.bincount(distances.argmin(1), minlength=40)
    assert torch.equal(result.counts, counts)


def test_converged_centroids_are_the_means_of_their_vectors():
    x = mixture()
    result = kmeans(x, 20, max_iterations=200, tolerance=0.0, generator=0)
    labels = torch.cdist(x, result.centroids).argmin(1)
    means = torch.stack([x[labels == k].mean(0) for k in range(20)])
    torch.testing.assert_close(result.centroids, means, rtol=1e-3, atol=1e-3)


def test_more_iterations_never_raise_the_inertia():
    x = mixture()
    inertias = [
        kmeans(x, 64, max_iterations=n, tolerance=0.0, generator=0).inertia
        for n in (0, 1, 3, 10)
    ]
    assert inertias == sorted(inertias, reverse=True)


def test_seeds_are_distinct_vectors():
    x = mixture()
    seeds = kmeans(x, 100, max_iterations=0, generator=0).centroids
    assert len(seeds.unique(dim=0)) == 100
    assert torch.cdist(seeds.double(), x.double()).amin(1).max() < 1e-5


def test_one_far_vector_among_many_gets_one_seed():
    x = torch.cat([gaussian(500, 2), torch.tensor([[1e4, 1e4]])])
    seeds = kmeans(x, 100, max_iterations=0, generator=0).centroids
    assert ((seeds - 1e4).abs().amax(1) < 1).sum() == 1
    assert len(seeds.unique(dim=0)) == 100


def test_same_seed_same_bits():
    x = mixture()
    results = [kmeans(x, 50, generator=seed) for seed in (3, generator(3), 4)]
    assert torch.equal(results[0].centroids, results[1].centroids)
    assert not torch.equal(results[0].centroids, results[2].centroids)


def test_order_of_the_vectors_does_not_matter():
    x = mixture()
    order = torch.randperm(len(x), generator=generator(5))
    one, other = kmeans(x, 50, generator=0), kmeans(x[order], 50, generator=0)
    torch.testing.assert_close(one.inertia, other.inertia, rtol=0.01, atol=0)


def test_global_random_state_is_left_alone():
    x = mixture()
    state = torch.get_rng_state()
    kmeans(x, 20, generator=0)
    kmeans(x, 20, generator=generator())
    kmeans(x[:5], 20, generator=0)
    assert torch.equal(torch.get_rng_state(), state)
    kmeans(x, 20)
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-10, 2.0**40])
def test_scaling_the_data_scales_the_centroids(scale):
    x = mixture()
    centroids = kmeans(x, 30, generator=0).centroids
    scaled = kmeans(x * scale, 30, generator=0).centroids
    assert torch.equal(scaled, centroids * scale)


def test_translating_the_data_translates_the_centroids():
    # Entries on a coarse grid, so that the translation itself is exact.
    x = (mixture() * 64).round() / 64
    result = kmeans(x, 30, generator=0)
    moved = kmeans(x + 128, 30, generator=0)
    torch.testing.assert_close(
        moved.centroids - 128, result.centroids, rtol=0, atol=1e-3
    )


def test_no_cluster_is_empty():
    x = torch.cat([gaussian(100, 2), 50 + gaussian(5, 2)])
    for seed in range(5):
        for num_clusters in (10, 60, 105):
            result = kmeans(x, num_clusters, generator=seed)
            assert (result.counts > 0).all()
            assert result.counts.sum() == len(x)


def test_rows_of_init_without_vectors_become_seeds():
    x = mixture()
    init = kmeans(x, 40, generator=1).centroids
    init[25:] += 1e3
    result = kmeans(x, 40, max_iterations=0, generator=0, init=init)
    torch.testing.assert_close(result.centroids[:25], init[:25])
    seeds = result.centroids[25:].double()
    assert torch.cdist(seeds, x.double()).amin(1).max() < 1e-5
    # Seeds are drawn given the rows that stay.
    alone = torch.cdist(x, init[:25]).amin(1).square().sum()
    assert result.inertia < alone
    whole = kmeans(x, 40, generator=0, init=init)
    assert (whole.counts > 0).all() and whole.inertia < result.inertia
    assert len(whole.centroids.unique(dim=0)) == 40


def assert_whole(result, num_clusters):
    assert result.centroids.shape[0] == num_clusters
    assert result.centroids.isfinite().all()
    assert len(result.centroids.unique(dim=0)) == num_clusters


@pytest.mark.parametrize("offset", [0.0, 1e3])
@pytest.mark.parametrize("dim", [1, 4])
def test_fewer_distinct_vectors_than_clusters(offset, dim, caplog):
    vectors = gaussian(5, dim) + offset
    x = vectors.repeat(20, 1)
    with caplog.at_level(logging.WARNING):
        result = kmeans(x, 64, generator=0)
    assert "5 distinct" in caplog.text and "64 clusters" in caplog.text
    assert_whole(result, 64)
    assert result.inertia < 1e-4 * x.var() * len(x)
    # Spread evenly, and near what they are copies of.
    near = torch.cdist(result.centroids.double(), vectors.double())
    assert near.amin(1).max() < 0.1
    assert near.argmin(1).bincount().min() >= 12


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4, 1e-20])
def test_all_vectors_alike(value):
    result = kmeans(torch.full((50, 3), value), 16, generator=0)
    assert_whole(result, 16)
    limit = 0.1 * (abs(value) or 1)
    assert (result.centroids - value).abs().max() < limit


def test_as_many_clusters_as_distinct_vectors(caplog):
    x = gaussian(40, 3)
    result = kmeans(x, 40, generator=0)
    assert not caplog.records
    torch.testing.assert_close(
        result.centroids.unique(dim=0), x.unique(dim=0), rtol=0, atol=1e-6
    )


def test_one_cluster_is_the_mean():
    x = gaussian()
    result = kmeans(x, 1)
    torch.testing.assert_close(result.centroids[0], x.mean(0))


def test_vectors_too_close_for_their_squares():
    x = 1 + torch.arange(200.0).unsqueeze(1) * 2.0**-23
    x = torch.cat([x, torch.full((1, 1), 1e6)])
    result = kmeans(x, 150, max_iterations=0, generator=0)
    assert result.centroids.isfinite().all()


def labels_of(x, centroids):
    return torch.cdist(x.double(), centroids.double()).argmin(1)


def test_init_that_has_converged_stays():
    x = mixture()
    done = kmeans(x, 20, max_iterations=200, tolerance=0.0, generator=0)
    again = kmeans(x, 20, init=done.centroids)
    torch.testing.assert_close(again.centroids, done.centroids)
    torch.testing.assert_close(again.inertia, done.inertia)
    labels = labels_of(x, done.centroids)
    assert torch.equal(labels_of(x, again.centroids), labels)


def test_permuting_init_permutes_the_centroids():
    x, order = mixture(), torch.randperm(30, generator=generator(1))
    result = kmeans(x, 30, init=x[:30])
    permuted = kmeans(x, 30, init=x[:30][order])
    torch.testing.assert_close(
        permuted.centroids, result.centroids[order], rtol=0, atol=1e-4
    )
    assert torch.equal(permuted.counts, result.counts[order])


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
    torch.testing.assert_close(
        result.centroids / scale, means, rtol=1e-5, atol=1e-4
    )
    assert (result.counts == 50).all()


def test_init_without_vectors_is_moved_and_the_rest_keep_their_rows():
    x = torch.cat([gaussian(100, 2), gaussian(100, 2) + 40])
    x = torch.cat([x, gaussian(100, 2) - 40])
    init = torch.tensor([[40.0, 40.0], [9e3, -9e3], [0.0, 0.0]])
    centroids = kmeans(x, 3, init=init).centroids
    expected = torch.stack(
        [x[100:200].mean(0), x[200:].mean(0), x[:100].mean(0)]
    )
    torch.testing.assert_close(centroids, expected, rtol=0, atol=1e-4)


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


@pytest.mark.parametrize("scale", [2.0**-60, 1.0, 2.0**40])
def test_init_and_too_few_vectors(scale, caplog):
    x = torch.tensor([[0.0], [2.0], [2.0], [2.0], [10.0]]) * scale
    init = torch.tensor([[30.1], [1.2], [-7.3], [9.0], [5.7]]) * scale
    result = kmeans(x, 5, init=init, generator=0)
    assert "3 distinct" in caplog.text and "5 clusters" in caplog.text
    assert_whole(result, 5)
    # Rows near some vectors are their means, the others near a vector.
    wanted = torch.tensor([[1.5], [10.0]]) * scale
    torch.testing.assert_close(result.centroids[[1, 3]], wanted)
    others = result.centroids[[0, 2, 4]]
    assert ((others - x.t()).abs().amin(1) < 0.3 * scale).all()


@pytest.mark.parametrize("value", [0.0, 1.0, -3e4])
def test_copies_in_init_part_where_vectors_are_too_few(value):
    x = torch.full((50, 3), value)
    result = kmeans(x, 16, init=x[:16], generator=0)
    assert_whole(result, 16)
    assert (result.centroids == x[0]).all(1).any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_and_autocast(dtype):
    x = mixture(1000).to(dtype)
    expected = kmeans(x.float(), 20, generator=0).centroids
    with torch.autocast("cpu", dtype=torch.bfloat16):
        centroids = kmeans(x, 20, generator=0).centroids
    assert torch.equal(centroids, expected)


def test_outside_autograd():
    x = mixture(500).requires_grad_()
    result = kmeans(x, 10, generator=0)
    assert not result.centroids.requires_grad
    assert not result.inertia.requires_grad


def test_errors_name_what_is_wrong():
    x = gaussian(20, 3)
    with pytest.raises(ValueError, match="num_clusters.*0"):
        kmeans(x, 0)
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        kmeans(x[:0], 2)
    with pytest.raises(ValueError, match=r"\(20,\)"):
        kmeans(x[:, 0], 2)
    with pytest.raises(TypeError, match="int64"):
        kmeans(x.long(), 2)
    with pytest.raises(ValueError, match="x holds.*not finite"):
        kmeans(x.log(), 2)
    with pytest.raises(ValueError, match=r"init \(4, 2\)"):
        kmeans(x, 4, init=x[:4, :2])
    with pytest.raises(ValueError, match=r"init \[4, D\]; got init \(3, 3\)"):
        kmeans(x, 4, init=x[:3])
    with pytest.raises(ValueError, match="init holds"):
        kmeans(x, 4, init=x[:4] * float("nan"))
    with pytest.raises(ValueError, match="init holds"):
        kmeans(x, 4, init=x[:4].double() * 1e300)
    with pytest.raises(TypeError, match="init.*int64"):
        kmeans(x, 4, init=x[:4].long())


@pytest.mark.parametrize("make", [gaussian, mixture, low_rank, with_copies])
def test_many_clusters_are_seeded_by_parts(make, monkeypatch):
    x = make()
    whole = kmeans(x, 256, generator=0)
    number = len(x.unique(dim=0)) - 1
    all_but_one = kmeans(x, number, generator=0).inertia
    monkeypatch.setattr(
        sys.modules["speechbrain_vq.nnet.kmeans"], "_MOST_SEEDS", 100
    )
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
    found = kmeans(x, number, generator=0)
    assert found.inertia <= 1e-2 * parts.inertia and all_but_one >= 0
    assert (found.counts > 0).all()


def test_init_in_parts_keeps_its_rows_and_replaces_the_dead(monkeypatch):
    x = mixture(6000)
    init = kmeans(x, 256, generator=0).centroids
    init[200:] += 1e3
    whole = kmeans(x, 256, generator=1, init=init)
    module = sys.modules["speechbrain_vq.nnet.kmeans"]
    monkeypatch.setattr(module, "_MOST_SEEDS", 100)
    seeds = kmeans(x, 256, max_iterations=0, generator=1, init=init).centroids
    torch.testing.assert_close(seeds[:200], init[:200])
    new = seeds[200:]
    assert (new.unsqueeze(1) == x).all(2).any(1).all()
    assert torch.cdist(new, init[:200]).amin() > 0
    parts = kmeans(x, 256, generator=1, init=init)
    assert parts.inertia <= 1.05 * whole.inertia
    assert (parts.counts > 0).all() and parts.counts.sum() == len(x)
