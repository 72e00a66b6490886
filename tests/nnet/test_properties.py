"""What holds of the quantizer, k-means and the reservoir whatever they are
given: drawn by Hypothesis, compared with brute force.
"""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from speechbrain_vq import Reservoir, VectorQuantizer, kmeans

quickly = settings(deadline=None, max_examples=30)

QUANTIZERS = st.fixed_dictionaries(
    {
        "codebook_size": st.integers(1, 9),
        "num_codebooks": st.integers(1, 3),
        "composition": st.sampled_from(["product", "residual"]),
        "codebook": st.sampled_from(["gradient", "ema"]),
        "norm": st.sampled_from(["initial", "running", "batch", None]),
        "norm_position": st.sampled_from(["input", "latent"]),
        "codebook_dim": st.sampled_from([None, 3, 6]),
        "unit_length": st.booleans(),
        "affine": st.booleans(),
    }
)


def build(options, seed):
    """A quantizer in training, or None of options that contradict."""
    torch.manual_seed(seed)
    try:
        return VectorQuantizer(6, reservoir_size=50, **options)
    except ValueError:
        return None


def state_of(quantizer):
    """All that a forward in training may change."""
    state = {k: v.clone() for k, v in quantizer.state_dict().items()}
    reservoir = quantizer.reservoir.state_dict()
    return {**state, **{f"reservoir {k}": v for k, v in reservoir.items()}}


@given(
    options=QUANTIZERS,
    # A batch of padding alone has no loss.
    lengths=st.lists(st.integers(0, 7), min_size=1, max_size=4).filter(any),
    more=st.integers(0, 5),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
@quickly
def test_padding_never_counts(options, lengths, more, scale, seed):
    """Whatever is in it, and however much: outputs, gradients, statistics and
    the reservoir are those of the frames alone."""
    torch.manual_seed(seed)
    x = scale * torch.randn(len(lengths), 7, 6)
    padded = torch.cat([x, 1e4 * torch.randn(len(lengths), more, 6)], 1)
    results = []
    for wavs in (padded, x):
        quantizer = build(options, seed)
        if quantizer is None:
            return
        frames = torch.arange(wavs.shape[1])
        mask = frames < torch.tensor(lengths).unsqueeze(1)
        wavs = wavs.clone().requires_grad_()
        torch.manual_seed(seed)
        out = quantizer(wavs, mask=mask)
        (out.loss + out.quantized[mask].square().sum()).backward()
        assert torch.equal(wavs.grad[~mask], torch.zeros_like(wavs)[~mask])
        assert torch.isfinite(out.loss)
        assert len(quantizer.reservoir) == min(sum(lengths), 50)
        gradients = [p.grad for p in quantizer.parameters()]
        outputs = [out.quantized[mask], out.loss, wavs.grad[mask]]
        results.append([*outputs, *state_of(quantizer).values(), *gradients])
    for found, wanted in zip(*results, strict=True):
        if wanted is None:
            assert found is None
            continue
        error, size = (found - wanted).abs().max(), wanted.abs().max()
        # Gradients of a norm cancel, and are the larger the smaller its input.
        assert error <= 1e-4 * size + 1e-6 / min(scale, 1)


@given(options=QUANTIZERS, seed=st.integers(0, 99))
@quickly
def test_evaluation_changes_nothing_and_decodes_what_it_codes(options, seed):
    quantizer = build(options, seed)
    if quantizer is None:
        return
    quantizer(torch.randn(2, 9, 6))
    quantizer.eval()
    before = state_of(quantizer)
    x = torch.randn(3, 5, 6)
    out = quantizer(x)
    torch.testing.assert_close(state_of(quantizer), before, rtol=0, atol=0)
    assert torch.equal(quantizer.encode(x), out.indices)
    assert out.indices.min() >= 0
    assert out.indices.max() < options["codebook_size"]
    torch.testing.assert_close(quantizer.decode(out.indices), out.quantized)
    # Items are coded alone as in company.
    alone = torch.cat([quantizer.encode(item) for item in x.split(1)])
    assert (alone == out.indices).float().mean() > 0.9


@given(
    number=st.integers(1, 40),
    kinds=st.integers(1, 40),
    dim=st.integers(1, 5),
    clusters=st.integers(1, 12),
    offset=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 99),
)
@quickly
def test_kmeans_of_anything(number, kinds, dim, clusters, offset, seed):
    """Also of fewer distinct vectors than clusters, and far from 0."""
    generator = torch.Generator().manual_seed(seed)
    distinct = offset + torch.randn(kinds, dim, generator=generator)
    x = distinct[torch.randint(kinds, (number,), generator=generator)]
    centroids, inertia, counts = kmeans(x, clusters, generator=seed)
    assert centroids.shape == (clusters, dim) and centroids.isfinite().all()
    distances = torch.cdist(
        x.double(),
        centroids.double(),
        compute_mode="donot_use_mm_for_euclid_dist",
    ).square()
    least = distances.min(1).values.sum()
    slack = 1e-5 * (1 + offset) * number
    assert abs(inertia - least) <= 1e-3 * least + slack
    assert int(counts.sum()) == number
    # No worse than one cluster, and exact where each vector may have its own.
    one = (x.double() - x.double().mean(0)).square().sum()
    assert inertia <= one * (1 + 1e-3) + slack
    if len(x.unique(dim=0)) <= clusters:
        assert least <= slack
        assert len(centroids.unique(dim=0)) >= len(x.unique(dim=0))


@given(
    capacity=st.integers(0, 12),
    parts=st.lists(st.lists(st.booleans(), max_size=9), min_size=1, max_size=6),
    cut=st.integers(0, 6),
    seed=st.integers(0, 99),
)
@quickly
def test_a_reservoir_of_any_stream(capacity, parts, cut, seed):
    """It holds valid vectors, each once, all while they fit; neither padding
    nor a stop on the way changes it."""

    def sample(with_padding, stop):
        reservoir, first = Reservoir(capacity, 1), 0
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
    assert int(reservoir.count) == len(valid) * bool(capacity)
    assert len(rows) == min(len(valid), capacity) == len(rows.unique())
    assert torch.isin(rows, valid.float()).all()
    assert torch.equal(sample(True, cut).contents(), rows)
    assert torch.equal(sample(False, cut).contents(), rows)
