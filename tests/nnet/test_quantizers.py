"""The quantizers: what must hold whichever way they are built."""

import copy
import io
import logging
import pickle

import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from speechbrain_vq import CodebookTrainer
from speechbrain_vq.nnet import (
    EMACodebook,
    ResidualVectorQuantizer,
    VectorQuantizer,
    kmeans,
    nearest,
)

DIM, SIZE = 8, 16
BUILDS = {
    "default": {},
    "no-norm": {"norm": None},
    "latent-norm": {"norm_position": "latent", "codebook_dim": 3},
    "projected": {"codebook_dim": 3},
    "product": {"num_codebooks": 2},
    "product-latent-norm": {"num_codebooks": 4, "norm_position": "latent"},
    "straight-through": {"estimator": "straight_through", "affine": True},
    "rotation": {"estimator": "rotation"},
    "ema": {"codebook": "ema", "num_codebooks": 2},
    "residual": {"num_quantizers": 3},
    "residual-ema": {"num_quantizers": 3, "codebook": "ema"},
    "residual-composed": {"num_codebooks": 2, "composition": "residual"},
    "residual-projected": {"num_quantizers": 2, "codebook_dim": 3},
}


def build(name="default", seed=0, **options):
    """One of the quantizers above, always with the same weights."""
    options = {"reservoir_size": 12, **BUILDS[name], **options}
    kind = VectorQuantizer
    if "num_quantizers" in options:
        kind = ResidualVectorQuantizer
    torch.manual_seed(seed)
    return kind(input_dim=DIM, codebook_size=SIZE, **options)


every_build = pytest.mark.parametrize("name", BUILDS)


def state(module):
    """All that the module saves, training state included, as a flat copy."""
    training = module.training_state()
    everything = {
        **module.state_dict(),
        **dict(module.named_buffers()),
        **(training.pop("reservoir") or {}),
        **training,
    }
    return {
        key: torch.as_tensor(value).detach().clone()
        for key, value in everything.items()
    }


def assert_same_bits(one, two):
    assert one.keys() == two.keys()
    different = [key for key in one if not torch.equal(one[key], two[key])]
    assert not different


def train_step(quantizer, x, lengths=None, seed=3):
    """Output, gradients and state after one forward and backward."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    out = quantizer(x, lengths)
    valid = out.quantized.flatten(0, -2).abs().sum(1) > 0
    loss = out.loss + out.quantized.flatten(0, -2)[valid].pow(3).sum()
    quantizer.zero_grad()
    loss.backward()
    grads = {
        key: parameter.grad for key, parameter in quantizer.named_parameters()
    }
    return out, x.grad, grads, state(quantizer)


# Padding ---------------------------------------------------------------------


@every_build
@pytest.mark.parametrize("garbage", [0.0, 100.0, torch.nan])
def test_more_padding_changes_nothing(name, garbage):
    frames = torch.tensor([13, 7, 4])
    valid = torch.arange(13) < frames.unsqueeze(1)
    x = 2 + torch.randn(3, 13, DIM)
    longer = F.pad(x, (0, 0, 0, 8))
    longer_valid = F.pad(valid, (0, 8))
    longer[~longer_valid] = garbage * torch.rand_like(longer[~longer_valid])
    out, grad_x, grads, after = train_step(build(name), x, frames / 13)
    out2, grad_x2, grads2, after2 = train_step(build(name), longer, frames / 21)
    assert torch.equal(out.indices[valid], out2.indices[longer_valid])
    assert out.metrics["num_vectors"] == frames.sum()
    assert (out2.quantized[~longer_valid] == 0).all()
    assert (grad_x2[~longer_valid] == 0).all()
    torch.testing.assert_close(
        (out.quantized[valid], out.loss, out.metrics, grads, after),
        (
            out2.quantized[longer_valid],
            out2.loss,
            out2.metrics,
            grads2,
            after2,
        ),
        rtol=1e-4,
        atol=1e-5,
    )
    torch.testing.assert_close(
        grad_x[valid], grad_x2[longer_valid], rtol=1e-4, atol=1e-5
    )


def test_no_length_is_rounded_to_a_frame_too_many():
    quantizer = build().eval()
    for time in range(1, 120):
        lengths = torch.arange(1, time + 1) / time
        out = quantizer(torch.randn(time, time, DIM), lengths)
        kept = out.quantized.abs().sum(2) > 0
        assert torch.equal(kept.sum(1), torch.arange(1, time + 1))


# Precision -------------------------------------------------------------------


@every_build
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_the_codes_of_fp32(name, dtype):
    x = (3 + torch.randn(4, 30, DIM)).to(dtype)
    half, full = build(name), build(name)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = half(x)
        encoded = half.encode(x)
        decoded = half.decode(encoded)
    expected = full(x.float())
    assert out.quantized.dtype == dtype
    assert out.loss.dtype == torch.float32
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized.to(dtype))
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(encoded, full.encode(x.float()))
    assert torch.equal(decoded, full.decode(encoded))


@every_build
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.double])
def test_a_model_in_another_precision_keeps_the_codes(name, dtype):
    x = (3 + torch.randn(4, 30, DIM)).to(dtype).requires_grad_()
    reference = build(name)
    model = torch.nn.Sequential(build(name)).to(dtype)
    torch.manual_seed(0)
    assert_same_bits(state(model[0]), state(reference))
    out = model(x)
    torch.manual_seed(0)
    expected = reference(x.float())
    (out.loss + out.quantized.float().sum()).backward()
    assert out.quantized.dtype == dtype
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized.to(dtype))
    assert_same_bits(state(model[0]), state(reference))


def test_codes_are_the_nearest_of_brute_force_in_double():
    quantizer = build(norm=None)
    x = 5 + torch.randn(2, 100, DIM)
    with torch.no_grad():
        quantizer.codebook.add_(5)
    distances = torch.cdist(x.double(), quantizer.codebook[0].double())
    # An arithmetic that would change codes, so that the test can fail.
    coarse = torch.cdist(
        x.bfloat16().float(), quantizer.codebook[0].bfloat16().float()
    )
    assert not torch.equal(coarse.argmin(-1), distances.argmin(-1))
    assert torch.equal(quantizer(x).indices, distances.argmin(-1))


# Composition -----------------------------------------------------------------


@pytest.mark.parametrize("norm_position", ["input", "latent"])
def test_normalization_is_that_of_torch(norm_position):
    quantizer = build(norm="batch", norm_position=norm_position, codebook_dim=3)
    norm = torch.nn.BatchNorm1d(
        DIM if norm_position == "input" else 3, momentum=None
    )
    steps = [norm, quantizer.project]
    for _ in range(3):
        x = 4 + torch.randn(50, DIM)
        latents = x
        for step in steps if norm_position == "input" else steps[::-1]:
            latents = step(latents)
        out = quantizer(x)
    expected = nearest(latents, quantizer.codebook[0])
    assert torch.equal(out.indices, expected)
    torch.testing.assert_close(
        quantizer.norm.running_var, norm.running_var, rtol=1e-5, atol=1e-6
    )


def test_latent_norm_shares_its_statistics_among_codebooks():
    quantizer = build("product-latent-norm")
    x = torch.randn(30, DIM) * torch.arange(1.0, DIM + 1)
    quantizer(x)
    norm = torch.nn.BatchNorm1d(2, momentum=None)
    norm(x.view(-1, 2))
    torch.testing.assert_close(quantizer.norm.running_var, norm.running_var)


def test_product_codebook_is_independent_quantizers():
    x = torch.randn(3, 20, DIM, requires_grad=True)
    product = build(num_codebooks=4, norm=None)
    out = product(x)
    parts, indices, losses = [], [], []
    for book, part in enumerate(x.split(2, dim=-1)):
        single = VectorQuantizer(2, SIZE, norm=None)
        with torch.no_grad():
            single.codebook.copy_(product.codebook[book : book + 1])
        quantized, index, loss, _ = single(part)
        parts.append(quantized), indices.append(index), losses.append(loss)
    assert torch.equal(out.quantized, torch.cat(parts, dim=-1))
    assert torch.equal(out.indices, torch.stack(indices, dim=-1))
    torch.testing.assert_close(out.loss, torch.stack(losses).mean())


def test_residual_codes_are_those_of_a_loop():
    x = torch.randn(60, DIM)
    quantizer = build("residual", norm=None, estimator="straight_through")
    out, grad_x, grads, _ = train_step(quantizer, x)
    codebook = quantizer.codebook.detach().clone().requires_grad_()
    x = x.clone().requires_grad_()
    left, total, loss = x, 0, 0
    for book in range(3):
        index = torch.cdist(left.detach(), codebook[book].detach()).argmin(1)
        assert torch.equal(out.indices[:, book], index)
        chosen = codebook[book][index]
        loss = loss + F.mse_loss(chosen, left.detach()) / 3
        loss = loss + 0.25 * F.mse_loss(left, chosen.detach()) / 3
        left, total = left - chosen.detach(), total + chosen.detach()
    torch.testing.assert_close(out.quantized, total)
    torch.testing.assert_close(out.loss, loss)
    (loss + (x + (total - x).detach()).pow(3).sum()).backward()
    torch.testing.assert_close(grad_x, x.grad)
    torch.testing.assert_close(grads["embedding.weight"], codebook.grad)


@pytest.mark.parametrize("codebook", ["gradient", "ema"])
@pytest.mark.parametrize("codebook_dim", [None, 3])
def test_a_row_of_residuals_has_two_names(codebook, codebook_dim):
    options = {"codebook": codebook, "codebook_dim": codebook_dim}
    named = build(num_quantizers=3, **options)
    composed = build(num_codebooks=3, composition="residual", **options)
    assert_same_bits(state(named), state(composed))
    for step in range(3):
        x = torch.randn(2, 20, DIM)
        lengths = torch.tensor([1.0, 0.6])
        one = train_step(named, x, lengths)
        two = train_step(composed, x, lengths)
        assert torch.equal(one[0].indices, two[0].indices)
        assert torch.equal(one[0].quantized, two[0].quantized)
        assert torch.equal(one[0].loss, two[0].loss)
        assert torch.equal(one[1], two[1])
        assert_same_bits(one[2], two[2])
        assert_same_bits(one[3], two[3])
        seeds = [torch.Generator().manual_seed(step) for _ in range(2)]
        done = [
            quantizer.reinitialize(generator=seed)
            for quantizer, seed in zip((named, composed), seeds, strict=True)
        ]
        assert done[0][1:] == done[1][1:]
        assert_same_bits(state(named), state(composed))
    # One of them alone has a dimension for a single codebook.
    assert named.decode(one[0].indices).shape == x.shape
    single = build(composition="residual")
    assert single(x).indices.shape == (2, 20)
    assert torch.equal(single(x).indices, build()(x).indices)


def test_an_unknown_composition_is_named():
    with pytest.raises(ValueError, match="composition must be one of.*'sum'"):
        VectorQuantizer(DIM, SIZE, composition="sum")


def test_images_are_vectors_in_another_shape():
    x = torch.randn(2, 5, 7, DIM)
    out = build("product")(x)
    flat = build("product")(x.view(-1, DIM))
    assert out.quantized.shape == x.shape
    assert out.indices.shape == (2, 5, 7, 2)
    assert torch.equal(out.indices.view(-1, 2), flat.indices)
    assert torch.equal(out.quantized.view(-1, DIM), flat.quantized)


@every_build
def test_metrics_describe_the_batch(name):
    quantizer = build(name).eval()
    lengths = torch.tensor([1.0, 0.5])
    x = torch.randn(2, 40, DIM)
    out = quantizer(x, lengths)
    valid = torch.arange(40) < (40 * lengths).unsqueeze(1)
    codes = out.indices[valid].view(60, -1)
    for book, counts in enumerate(out.metrics["counts"]):
        expected = torch.bincount(codes[:, book], minlength=SIZE)
        assert torch.equal(counts, expected.float())
    latents = quantizer._latents(x.flatten(0, 1), valid.flatten())
    latents = latents[valid.flatten()]
    left = latents - quantizer.embedding.combine(quantizer.embedding(codes))
    torch.testing.assert_close(
        out.metrics["sq_error"], left.square().sum().detach()
    )
    assert not any(value.requires_grad for value in out.metrics.values())
    assert out.metrics["num_nonfinite"] == 0


# Re-estimation ---------------------------------------------------------------


def filled(name, number=300, **options):
    """A quantizer whose reservoir has seen some batches, and its contents."""
    quantizer = build(name, reservoir_size=200, **options)
    for _ in range(3):
        quantizer(torch.randn(number // 3, DIM))
    return quantizer, quantizer.reservoir.contents()


@pytest.mark.parametrize("name", ["default", "product", "ema"])
def test_codes_become_the_centroids_of_the_reservoir(name):
    quantizer, contents = filled(name)
    done = quantizer.reinitialize(generator=torch.Generator().manual_seed(5))
    generator = torch.Generator().manual_seed(5)
    inertia = 0
    for book, part in enumerate(contents.split(quantizer.codebook_dim, dim=1)):
        expected = kmeans(part, SIZE, generator=generator)
        assert torch.equal(quantizer.codebook[book], expected.centroids)
        inertia += float(expected.inertia) / len(part)
    assert done.inertia == pytest.approx(inertia, rel=1e-4)
    assert done.inertia < done.previous_inertia


@every_build
def test_reinitialization_empties_the_reservoir_and_lowers_the_error(name):
    quantizer, contents = filled(name)

    @torch.no_grad()
    def error():
        codewords = quantizer.embedding(
            quantizer.embedding.code(contents, quantizer.codebook)[0]
        )
        left = contents - quantizer.embedding.combine(codewords)
        return float(left.square().sum(1).mean())

    before = error()
    done = quantizer.reinitialize()
    assert len(quantizer.reservoir) == 0
    assert done.previous_inertia == pytest.approx(before, rel=1e-4)
    assert done.inertia == pytest.approx(error(), rel=1e-4)
    assert done.inertia < before


@pytest.mark.parametrize("name", ["ema", "residual-ema"])
def test_reinitialization_rebuilds_the_averages(name):
    quantizer, _ = filled(name)
    quantizer.reinitialize()
    words = quantizer.embedding
    assert isinstance(words, EMACodebook)
    torch.testing.assert_close(
        words.ema_sum, words.weight * words.ema_count.unsqueeze(2)
    )


@pytest.mark.parametrize("name", ["default", "ema", "residual"])
def test_too_few_distinct_vectors_keep_the_size_and_are_told(name, caplog):
    quantizer = build(name)
    few = torch.randn(4, DIM).repeat(20, 1)
    with caplog.at_level(logging.WARNING):
        done = quantizer.reinitialize(few)
    assert "distinct vectors for 16 clusters" in caplog.text
    codebook = quantizer.codebook
    assert codebook.shape[1] == SIZE and codebook.isfinite().all()
    assert len(codebook[0].unique(dim=0)) == SIZE
    assert done.inertia < 1e-3 * few.var()


def test_an_empty_reservoir_changes_nothing():
    quantizer = build()
    before = state(quantizer)
    assert quantizer.reinitialize() is None
    assert_same_bits(before, state(quantizer))


# Non-finite latents ----------------------------------------------------------


@every_build
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf, 1e20])
def test_a_nonfinite_frame_teaches_nothing(name, value):
    quantizer = build(name)
    train_step(quantizer, torch.randn(2, 20, DIM))
    before = state(quantizer)
    x = torch.randn(2, 20, DIM)
    x[1, 3, 5] = value
    x[0, 7, :2] = torch.tensor([torch.inf, -torch.inf])
    out = quantizer(x)
    assert_same_bits(before, state(quantizer))
    assert out.loss.isnan()
    assert out.metrics["num_nonfinite"] == 2
    assert out.metrics["counts"].sum() == 0
    # And the next good batch goes on as if nothing had been.
    quantizer(torch.randn(2, 20, DIM))
    assert all(value.isfinite().all() for value in state(quantizer).values())


@every_build
@pytest.mark.parametrize("scale", [1e12, 1e-30])
def test_extreme_latents_leave_the_state_finite(name, scale):
    quantizer = build(name)
    out, grad_x, grads, after = train_step(
        quantizer, scale * torch.randn(2, 20, DIM)
    )
    assert out.loss.isfinite() and out.quantized.isfinite().all()
    assert all(value.isfinite().all() for value in after.values())


# State -----------------------------------------------------------------------


@every_build
@pytest.mark.parametrize("bypass", [False, True])
def test_evaluation_changes_no_state(name, bypass):
    quantizer = build(name)
    quantizer(torch.randn(2, 20, DIM))
    quantizer.bypass = bypass
    quantizer.eval()
    x, lengths = torch.randn(2, 20, DIM), torch.tensor([1.0, 0.4])
    before, rng = state(quantizer), torch.get_rng_state()
    out = quantizer(x, lengths)
    quantizer.decode(out.indices.clamp(min=0))
    assert_same_bits(before, state(quantizer))
    assert torch.equal(rng, torch.get_rng_state())


@every_build
@pytest.mark.parametrize("training", [False, True])
def test_encode_is_an_evaluation(name, training):
    quantizer = build(name)
    quantizer(torch.randn(2, 20, DIM))
    x, lengths = torch.randn(2, 20, DIM), torch.tensor([1.0, 0.4])
    expected = quantizer.eval()(x, lengths).indices
    quantizer.train(training)
    before, rng = state(quantizer), torch.get_rng_state()
    assert torch.equal(quantizer.encode(x, lengths), expected)
    assert all(m.training == training for m in quantizer.modules())
    assert_same_bits(before, state(quantizer))
    assert torch.equal(rng, torch.get_rng_state())


def test_encode_leaves_a_frozen_part_frozen():
    quantizer = build()
    quantizer.norm.eval()
    quantizer.encode(torch.randn(9, DIM))
    assert quantizer.training and not quantizer.norm.training


@every_build
def test_decoded_codes_are_the_quantized_bits(name):
    quantizer = build(name)
    quantizer(torch.randn(2, 20, DIM))
    x = torch.randn(2, 20, DIM)
    decoded = quantizer.decode(quantizer.encode(x))
    assert torch.equal(decoded, quantizer.eval()(x).quantized)


@every_build
def test_saved_and_loaded_it_goes_on_the_same(name):
    quantizer, other = build(name), build(name, seed=1)
    trainers = []
    for each in (quantizer, other):
        optimizer = torch.optim.SGD([torch.ones(1), *each.parameters()], 0.1)
        trainers.append(CodebookTrainer(each, optimizer, schedule=None))
    for _ in range(3):
        quantizer(torch.randn(2, 20, DIM))
    file = io.BytesIO()
    torch.save([quantizer.state_dict(), trainers[0].state_dict()], file)
    file.seek(0)
    weights, training = torch.load(file, weights_only=True)
    other.load_state_dict(weights, strict=True)
    trainers[1].load_state_dict(training)
    x = torch.randn(2, 20, DIM)
    for one, two in zip(
        train_step(quantizer, x)[1:], train_step(other, x)[1:], strict=True
    ):
        torch.testing.assert_close(one, two, rtol=0, atol=0)


@every_build
@pytest.mark.parametrize(
    "clone", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_copies_are_equal_and_apart(name, clone):
    quantizer = build(name)
    quantizer(torch.randn(2, 20, DIM))
    other, before = clone(quantizer), state(quantizer)
    assert_same_bits(before, state(other))
    x = torch.randn(2, 20, DIM)
    after = train_step(other, x)[3]
    assert_same_bits(before, state(quantizer))
    assert_same_bits(after, train_step(quantizer, x)[3])


def test_a_codebook_of_another_size_is_named():
    saved = VectorQuantizer(DIM, 2 * SIZE, reservoir_size=12).state_dict()
    with pytest.raises(RuntimeError, match=r"mismatch for embedding\.weight"):
        build().load_state_dict(saved)


# Warm-up ---------------------------------------------------------------------


@every_build
def test_warm_up_passes_the_latents(name):
    quantizer = build(name)
    quantizer.bypass = True
    x = torch.randn(2, 20, DIM, requires_grad=True)
    reference, latents = copy.deepcopy(quantizer), x
    if quantizer.norm is not None and quantizer.norm_position == "input":
        latents = reference.norm(latents)
    latents = reference.project(latents)
    if quantizer.norm is not None and quantizer.norm_position == "latent":
        parts = latents.unflatten(-1, (-1, quantizer.codebook_dim))
        latents = reference.norm(parts).flatten(-2)
    before = quantizer.codebook.detach().clone()
    out = quantizer(x)
    torch.testing.assert_close(out.quantized, reference.project_back(latents))
    assert out.loss == 0 and (out.indices == -1).all()
    assert out.metrics["counts"].sum() == 0
    (out.loss + out.quantized.sum()).backward()
    assert torch.equal(quantizer.codebook, before)
    if quantizer.codebook.requires_grad:
        assert (quantizer.codebook.grad == 0).all()
    # What the first code is to be made from is collected all the same.
    assert int(quantizer.reservoir.count) == 40


def test_warm_up_is_saved_and_has_no_codes():
    quantizer, other = build(), build()
    quantizer.bypass = True
    other.load_training_state(quantizer.training_state())
    with pytest.raises(RuntimeError, match="warm-up"):
        other.encode(torch.randn(3, DIM))
    quantizer.bypass = False
    other.load_training_state(quantizer.training_state())
    other.encode(torch.randn(3, DIM))


# Speed -----------------------------------------------------------------------


class HostSyncs(TorchDispatchMode):
    """Counts the reads of a tensor's value, which wait for a device."""

    def __init__(self):
        super().__init__()
        self.number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func)
        self.number += "_local_scalar_dense" in name or "nonzero" in name
        return func(*args, **(kwargs or {}))


@every_build
def test_training_does_not_wait_for_the_device(name):
    quantizer, x = build(name), torch.randn(2, 20, DIM, requires_grad=True)
    with HostSyncs() as syncs:
        out = quantizer(x)
        (out.loss + out.quantized.sum()).backward()
    assert syncs.number == 0


@pytest.mark.parametrize("name", ["default", "ema", "rotation", "residual"])
def test_a_compiled_step_is_one_graph_with_the_same_results(name):
    torch._dynamo.reset()
    x, lengths = torch.randn(2, 20, DIM), torch.tensor([1.0, 0.4])
    expected = train_step(build(name), x, lengths)
    quantizer = build(name)
    compiled = torch.compile(quantizer, fullgraph=True, backend="aot_eager")
    torch.manual_seed(3)
    x = x.requires_grad_()
    out = compiled(x, lengths)
    (out.loss + out.quantized.pow(3).sum()).backward()
    torch.testing.assert_close(tuple(out), tuple(expected[0]))
    torch.testing.assert_close(x.grad, expected[1])
    torch.testing.assert_close(state(quantizer), expected[3])
