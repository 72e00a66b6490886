"""Properties of the nearest-codeword search."""

import pytest
import torch

from speechbrain_vq.nnet import search
from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.nnet.search import InvertedLists, nearest

EPS = torch.finfo(torch.float32).eps


def draw(num_rows, num_codes, dim, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num_rows, dim, generator=generator)
    return x, torch.randn(num_codes, dim, generator=generator)


def assert_nearest(x, codebook):
    """The chosen codeword is the nearest, or within fp32 rounding of it.

    Bound: the score |c|^2 / 2 - x.c of centred vectors sums D + 1 products,
    each below |x||c| or |c|^2, so it is off by at most (D + 3) eps
    (|x||c| + |c|^2), centring included; squared distances are twice the
    scores, and two of them are compared."""
    indices = nearest(x, codebook)
    x, codebook = x.double(), codebook.double()
    distances = (x.unsqueeze(1) - codebook).square().sum(2)
    gap = distances.gather(1, indices.unsqueeze(1)).squeeze(1)
    gap = gap - distances.amin(1)
    centre = codebook.mean(0)
    size = (codebook - centre).norm(dim=1).amax()
    products = (x - centre).norm(dim=1) * size + size**2
    # Centring itself rounds each entry by eps/2 of the deviation.
    assert (gap <= 4 * (x.shape[1] + 3) * EPS * products).all()
    return (indices != distances.argmin(1)).float().mean()


# Around the size of a group of columns, and around that of a block.
NARROW, WIDE = (1, 2, 7, 63, 64, 65, 300, 1000), (4095, 4096, 4100, 9000)


@pytest.mark.parametrize(
    "num_codes, dim, offset",
    [
        *((n, d, 0) for n in NARROW for d in (1, 3, 100)),
        *((n, 64, offset) for n in NARROW for offset in (3, 100)),
        *((n, 8, 0) for n in WIDE),
    ],
)
def test_agrees_with_float64(num_codes, dim, offset):
    x, codebook = draw(150, num_codes, dim)
    assert assert_nearest(x + offset, codebook + offset) <= 0.01


@pytest.mark.parametrize("num_codes", [100, 9000])
def test_of_equal_codes_the_lowest_index_is_given(num_codes):
    x, codebook = draw(4, num_codes, 8)
    assert torch.equal(nearest(codebook, codebook), torch.arange(num_codes))
    assert (nearest(x, torch.cat([codebook, codebook])) < num_codes).all()
    equidistant = torch.cat([torch.eye(100), -torch.eye(100)])
    assert (nearest(torch.zeros(4, 100), equidistant) == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_inputs_and_autocast_are_searched_in_fp32(dtype):
    x, codebook = draw(500, 300, 64)
    expected = nearest(x, codebook)
    halves = x.to(dtype), codebook.to(dtype)
    expected_of_halves = nearest(*map(torch.Tensor.float, halves))
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(nearest(x, codebook), expected)
        assert torch.equal(nearest(*halves), expected_of_halves)
    mixed = nearest(halves[0], halves[1].float())
    assert torch.equal(mixed, expected_of_halves)


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_reduced_matmul_precision_changes_nothing(precision, monkeypatch):
    x, codebook = draw(500, 300, 64)
    expected = nearest(x, codebook)
    seen = []
    addmm = torch.addmm

    def spy(*args, **kwargs):
        seen.append(torch.get_float32_matmul_precision())
        return addmm(*args, **kwargs)

    monkeypatch.setattr(torch, "addmm", spy)
    torch.set_float32_matmul_precision(precision)
    assert torch.equal(nearest(x, codebook), expected)
    assert torch.get_float32_matmul_precision() == precision
    assert set(seen) == {"highest"}


@pytest.mark.parametrize("shape", [(5000,), (2, 25, 100), (50, 2, 10, 5)])
def test_a_row_is_coded_alone_whatever_is_around_it(shape):
    """Also of more rows than a block has, in any order and memory layout."""
    x, codebook = draw(5000, 2000, 8)
    expected = nearest(x, codebook)
    assert torch.equal(nearest(x.view(*shape, 8), codebook).flatten(), expected)
    order = torch.randperm(5000, generator=torch.Generator().manual_seed(2))
    assert torch.equal(nearest(x[order], codebook), expected[order])
    strided = x.t().contiguous().t(), codebook.t().contiguous().t()
    assert torch.equal(nearest(*strided), expected)
    parts = torch.cat([nearest(part, codebook) for part in x.split(700)])
    assert (parts == expected).float().mean() > 0.999
    assert nearest(x[:0], codebook).shape == (0,)
    assert nearest(x[0], codebook).shape == ()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("num_codes", [1, 5, 64, 100])
def test_rows_that_are_not_finite_harm_no_other(value, num_codes):
    x, codebook = draw(50, num_codes, 8)
    broken = x.clone()
    broken[::3, 2] = value
    broken[1] = value
    indices = nearest(broken, codebook)
    assert (indices >= 0).all() and (indices < num_codes).all()
    fine = broken.isfinite().all(1)
    assert torch.equal(indices[fine], nearest(x, codebook)[fine])


def test_no_matrix_of_all_distances_exists():
    x, codebook = draw(8192, 4096, 16)
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        nearest(x, codebook)
    allocations = [event.self_cpu_memory_usage for event in profile.events()]
    whole = x.shape[0] * codebook.shape[0] * 4
    assert sum(size for size in allocations if size > 0) < whole / 4
    assert max(allocations) <= 2**23


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    torch._dynamo.reset()
    options = {"backend": "aot_eager", "fullgraph": True, "dynamic": dynamic}
    compiled = torch.compile(nearest, **options)
    for rows in (40, 70):
        x, codebook = draw(rows, 30, 8, seed=rows)
        x.requires_grad_()
        assert torch.equal(compiled(x, codebook), nearest(x, codebook))


def test_operator_is_well_formed():
    operator = torch.ops.speechbrain_vq.nearest.default
    torch.library.opcheck(operator, draw(20, 10, 4))


@pytest.mark.parametrize(
    "dims",
    [(0, None), (1, None), (-1, None), (None, 0), (None, 1), (0, 0), (1, 2)],
)
def test_vmap_equals_a_loop(dims):
    x, codebooks = (tensor.view(6, -1, 8) for tensor in draw(6 * 20, 6 * 70, 8))
    given, each = [], []
    for tensor, dim in zip((x, codebooks), dims, strict=True):
        each.append([tensor[0]] * 6 if dim is None else tensor)
        given.append(tensor[0] if dim is None else tensor.movedim(0, dim))
    expected = torch.stack(list(map(nearest, *each)))
    assert torch.equal(torch.func.vmap(nearest, dims)(*given), expected)
    if dims == (0, 0):  # Nested
        inner = torch.func.vmap(nearest, (0, None))
        found = torch.func.vmap(inner)(x.view(6, 4, 5, 8), codebooks)
        assert torch.equal(found.view(6, 20), expected)


def test_distances_are_those_of_the_chosen_and_zero_where_equal():
    x, codebook = draw(200, 300, 16)
    found = search.nearest_with_distances(x, codebook)[1].double()
    expected = torch.cdist(x.double(), codebook.double()).amin(1).square()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-5)
    assert not search.nearest_with_distances(codebook, codebook)[1].any()


X, CODEBOOK = draw(4, 5, 3)


@pytest.mark.parametrize(
    "x, codebook, error, message",
    [
        (X.long(), CODEBOOK, TypeError, "int64"),
        (X, CODEBOOK.to(torch.complex64), TypeError, "complex64"),
        (X[:, :2], CODEBOOK, ValueError, r"\(4, 2\).*\(5, 3\)"),
        (X, CODEBOOK[0], ValueError, r"\(3,\)"),
        (X, CODEBOOK[:0], ValueError, r"\(0, 3\)"),
    ],
)
def test_errors_name_what_is_wrong(x, codebook, error, message):
    with pytest.raises(error, match=message):
        nearest(x, codebook)


# Inverted lists ------------------------------------------------------------


def clustered(num_rows, num_codes, dim=16, offset=0.0):
    """Vectors and codewords around the same modes, and centroids of these."""
    generator = torch.Generator().manual_seed(0)
    modes = torch.randn(100, dim, generator=generator)
    picks = torch.randint(100, (num_rows + num_codes,), generator=generator)
    noise = torch.randn(len(picks), dim, generator=generator)
    points = modes[picks] + 0.5 * noise + offset
    x, codebook = points[:num_rows], points[num_rows:]
    lists = round(num_codes**0.5)
    return x, codebook, kmeans(codebook, lists, generator=0).centroids


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_inverted_lists_find_more_the_more_they_probe(offset):
    x, codebook, centroids = clustered(1000, 4000, offset=offset)
    distances = torch.cdist(x.double(), codebook.double())
    recalls, errors = [], []
    for probes in (1, 4, 16, 1000):
        indices = InvertedLists(codebook, centroids, probes)(x)
        found = distances.gather(1, indices.unsqueeze(1)).squeeze(1)
        recalls.append((found <= distances.amin(1) + 1e-4).float().mean())
        errors.append(found.square().mean())
    assert recalls == sorted(recalls) and errors == sorted(errors, reverse=True)
    # A codeword finds itself with one probe.
    found = InvertedLists(codebook, centroids, probes=1)(codebook)
    assert torch.equal(found, torch.arange(4000))
    assert recalls[0] > 0.3 and recalls[2] > 0.99 and recalls[3] == 1
    assert errors[2] < 1.001 * errors[3]


def test_inverted_lists_search_as_nearest_does():
    x, codebook, centroids = clustered(600, 500)
    # No codeword is in the lists of these.
    centroids = torch.cat([centroids[:5], centroids + 1e3, centroids])
    lists = InvertedLists(codebook, centroids, probes=100)
    expected = nearest(x, codebook)
    assert torch.equal(lists(x.view(2, 3, 100, 16)), expected.view(2, 3, 100))
    assert torch.equal(lists(x.double()), expected)
    assert lists(x[:0]).shape == (0,)
    broken = x.clone()
    broken[::3] = torch.nan
    indices = lists(broken)
    assert ((indices >= 0) & (indices < 500)).all()
    assert torch.equal(indices[1::3], expected[1::3])
