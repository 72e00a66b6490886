"""The quantizers: what must hold whichever way they are built."""

import copy
import io
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from speechbrain_vq import CodebookTrainer, nnet
from speechbrain_vq.nnet import ResidualVectorQuantizer, VectorQuantizer

DIM, SIZE = 8, 16
BUILDS = {
    "default": {},
    "running-norm": {"norm": "running", "norm_position": "latent"},
    "no-norm": {"norm": None},
    "latent-norm": {"norm_position": "latent", "codebook_dim": 3},
    "projected": {"codebook_dim": 3},
    "product": {"num_codebooks": 2},
    "product-latent-norm": {"num_codebooks": 4, "norm_position": "latent"},
    "affine": {"norm": "batch", "affine": True, "estimator": "diveq"},
    "unit-length": {"norm": None, "unit_length": True, "num_codebooks": 2},
    "rotation": {"estimator": "rotation"},
    "ema": {"codebook": "ema", "num_codebooks": 2},
    "residual": {"num_quantizers": 3},
    "residual-ema": {"num_quantizers": 3, "codebook": "ema"},
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
    assert not [key for key in one if not torch.equal(one[key], two[key])]


def train_step(quantizer, x, lengths=None, seed=3):
    """Output, gradients and state after one forward and backward."""
    torch.manual_seed(seed)
    x = x.clone().requires_grad_()
    out = quantizer(x, lengths)
    valid = out.quantized.flatten(0, -2).abs().sum(1) > 0
    loss = out.loss + out.quantized.flatten(0, -2)[valid].pow(3).sum()
    quantizer.zero_grad()
    loss.backward()
    grads = {name: p.grad for name, p in quantizer.named_parameters()}
    return out, x.grad, grads, state(quantizer)


# Padding ---------------------------------------------------------------------


@every_build
@given(
    # A batch of padding alone has no loss.
    frames=st.lists(st.integers(0, 13), min_size=1, max_size=4).filter(any),
    more=st.integers(0, 8),
    garbage=st.sampled_from([0.0, 1e4, torch.nan]),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
)
@settings(deadline=None, max_examples=8)
def test_padding_never_counts(name, frames, more, garbage, scale):
    """Whatever is in it, and however much: outputs, gradients, statistics and
    the reservoir are those of the frames alone."""
    frames = torch.tensor(frames)
    valid = torch.arange(13) < frames.unsqueeze(1)
    x = scale * (2 + torch.randn(len(frames), 13, DIM))
    longer, longer_valid = F.pad(x, (0, 0, 0, more)), F.pad(valid, (0, more))
    longer[~longer_valid] = garbage * torch.rand_like(longer[~longer_valid])
    results = []
    for part, mask in ((x, valid), (longer, longer_valid)):
        lengths = frames / part.shape[1]
        out, grad_x, grads, after = train_step(build(name), part, lengths)
        assert not out.quantized[~mask].any() and not grad_x[~mask].any()
        assert out.metrics["num_vectors"] == frames.sum()
        assert int(after["count"]) == frames.sum()
        values = [out.quantized[mask], out.loss, grad_x[mask]]
        values += [*out.metrics.values(), *grads.values(), *after.values()]
        values = [value.float() for value in values if value is not None]
        results.append((out.indices[mask], values))
    (codes, wanted), (other_codes, found) = results
    assert torch.equal(codes, other_codes)
    for one, two in zip(found, wanted, strict=True):
        error, size = (one - two).abs().max(), two.abs().max()
        # Gradients of a norm cancel, and are the larger the smaller its input.
        assert error <= 1e-4 * size + 1e-5 / min(scale, 1)


def test_no_length_is_rounded_to_a_frame_too_many():
    quantizer = build().eval()
    for time in range(1, 120):
        lengths = torch.arange(1, time + 1) / time
        out = quantizer(torch.randn(time, time, DIM), lengths)
        kept = out.quantized.abs().sum(2) > 0
        assert torch.equal(kept.sum(1), torch.arange(1, time + 1))


# Precision -------------------------------------------------------------------


@every_build
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.double])
def test_precision_changes_no_code(name, dtype):
    """Neither that of the model and of its input, nor autocast."""
    x = (3 + torch.randn(4, 30, DIM)).to(dtype).requires_grad_()
    reference = build(name)
    expected = reference(x.float())
    model = torch.nn.Sequential(build(name)).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
        encoded = model[0].encode(x)
        decoded = model[0].decode(encoded)
    (out.loss + out.quantized.float().sum()).backward()
    assert out.quantized.dtype == dtype and out.loss.dtype == torch.float32
    assert torch.equal(out.indices, expected.indices)
    assert torch.equal(out.quantized, expected.quantized.to(dtype))
    assert torch.equal(out.loss, expected.loss)
    assert torch.equal(encoded, reference.encode(x.float()))
    assert torch.equal(decoded, reference.decode(encoded))
    assert_same_bits(state(model[0]), state(reference))


# Composition -----------------------------------------------------------------


@pytest.mark.parametrize("position", ["input", "latent"])
@pytest.mark.parametrize("books", [1, 3])
def test_normalization_is_that_of_torch(position, books):
    """Codebooks share the statistics of latents."""
    sizes = {"codebook_dim": 3, "num_codebooks": books}
    quantizer = build(norm="batch", norm_position=position, **sizes)
    norm = torch.nn.BatchNorm1d(len(quantizer.norm.running_var), momentum=None)
    for _ in range(3):
        x = 4 + torch.randn(50, DIM) * torch.arange(1.0, DIM + 1)
        if position == "input":
            latents = quantizer.project(norm(x)).unflatten(1, (books, 3))
        else:
            latents = quantizer.project(x).view(-1, 3)
            latents = norm(latents).view(50, books, 3)
        codes = quantizer(x).indices.view(50, books)
    for book, parts in enumerate(latents.unbind(1)):
        expected = nnet.nearest(parts, quantizer.codebook[book])
        assert torch.equal(codes[:, book], expected)
    variances = quantizer.norm.running_var, norm.running_var
    torch.testing.assert_close(*variances, rtol=1e-5, atol=1e-6)


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
    x, lengths = torch.randn(2, 20, DIM), torch.tensor([1.0, 0.6])
    one, two = (train_step(q, x, lengths) for q in (named, composed))
    assert torch.equal(one[0].indices, two[0].indices)
    assert torch.equal(one[0].quantized, two[0].quantized)
    assert_same_bits(one[3], two[3])
    # One of them alone has a dimension for a single codebook.
    assert build(num_quantizers=1)(x).indices.shape == (2, 20, 1)
    assert build(composition="residual")(x).indices.shape == (2, 20)


def test_images_are_vectors_in_another_shape():
    x = torch.randn(2, 5, 7, DIM)
    out = build("product")(x)
    flat = build("product")(x.view(-1, DIM))
    assert out.quantized.shape == x.shape and out.indices.shape == (2, 5, 7, 2)
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
    counts = [book.bincount(minlength=SIZE).float() for book in codes.T]
    shares = torch.distributions.Categorical(torch.stack(counts))
    latents = quantizer._latents(x.flatten(0, 1), valid.flatten())
    latents = latents[valid.flatten()]
    left = latents - quantizer.embedding.combine(quantizer.embedding(codes))
    for metric, wanted in (
        ("counts", torch.stack(counts)),
        ("perplexity", shares.entropy().exp().mean()),
        ("sq_error", left.square().sum()),
        ("latent_sum", latents.sum(0)),
        ("latent_sq_sum", latents.square().sum()),
    ):
        torch.testing.assert_close(out.metrics[metric], wanted.detach())
    assert not any(value.requires_grad for value in out.metrics.values())
    assert out.metrics["num_nonfinite"] == 0


# Re-estimation ---------------------------------------------------------------


@every_build
def test_reinitialization_empties_the_reservoir_and_lowers_the_error(name):
    quantizer = build(name, reservoir_size=200)
    for _ in range(3):
        quantizer(torch.randn(100, DIM))
    contents = quantizer.reservoir.contents()

    @torch.no_grad()
    def error():
        book = quantizer.embedding
        codewords = book(book.code(contents, book.table)[0])
        left = contents - book.combine(codewords)
        return float(left.square().sum(1).mean())

    before = error()
    done = quantizer.reinitialize()
    assert len(quantizer.reservoir) == 0
    assert done.previous_inertia == pytest.approx(before, rel=1e-4)
    assert done.inertia == pytest.approx(error(), rel=1e-4)
    assert done.inertia < before
    # Of an empty one nothing is made.
    assert quantizer.reinitialize() is None


# Non-finite latents ----------------------------------------------------------


@every_build
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e20])
def test_a_nonfinite_frame_teaches_nothing(name, value):
    quantizer = build(name)
    train_step(quantizer, torch.randn(2, 20, DIM))
    before = state(quantizer)
    x = torch.randn(2, 20, DIM)
    x[1, 3, 5] = value
    x[0, 7, :2] = torch.tensor([torch.inf, -torch.inf])
    out = quantizer(x)
    assert_same_bits(before, state(quantizer))
    assert out.loss.isnan() and out.metrics["num_nonfinite"] == 2
    assert out.metrics["counts"].sum() == 0
    # And the next good batch goes on as if nothing had been.
    quantizer(torch.randn(2, 20, DIM))
    assert all(value.isfinite().all() for value in state(quantizer).values())


@every_build
@pytest.mark.parametrize("scale", [1e12, 1e-30])
def test_extreme_latents_leave_the_state_finite(name, scale):
    quantizer = build(name)
    out, _, _, after = train_step(quantizer, scale * torch.randn(2, 20, DIM))
    assert out.loss.isfinite() and out.quantized.isfinite().all()
    assert all(value.isfinite().all() for value in after.values())


# State -----------------------------------------------------------------------


@every_build
@pytest.mark.parametrize("training", [False, True])
def test_encode_and_decode_evaluate_and_change_nothing(name, training):
    quantizer = build(name)
    quantizer(torch.randn(2, 20, DIM))
    quantizer.train(training).embedding.eval()  # A part frozen by itself
    modes = [module.training for module in quantizer.modules()]
    x, lengths = torch.randn(3, 20, DIM), torch.tensor([1.0, 0.4, 0.7])
    valid = torch.arange(20) < (20 * lengths).unsqueeze(1)
    before, rng = state(quantizer), torch.get_rng_state()
    codes = quantizer.encode(x, lengths)
    # No code is a vector of zeros.
    mask = valid.view(*valid.shape, *[1] * (codes.dim() - 2))
    decoded = quantizer.decode(codes.where(mask, -1))
    assert modes == [module.training for module in quantizer.modules()]
    out = quantizer.eval()(x, lengths)
    assert torch.equal(codes, out.indices)
    assert torch.equal(decoded, out.quantized)
    # Items are coded alone as in company.
    alone = torch.cat([quantizer.encode(item) for item in x.split(1)])
    assert (alone == quantizer.encode(x)).float().mean() > 0.9
    assert_same_bits(before, state(quantizer))
    assert torch.equal(rng, torch.get_rng_state())


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
    if quantizer.embedding.unit_length:
        parts = latents.unflatten(-1, (-1, quantizer.codebook_dim))
        latents = F.normalize(parts, dim=-1).flatten(-2)
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
    before = state(quantizer)
    quantizer.eval()(x)
    assert_same_bits(before, state(quantizer))


@torch.no_grad()
def by_values(averaged, quantizer):
    """As timm's ModelEmaV2."""
    own, others = averaged.state_dict(), quantizer.state_dict()
    for value, other in zip(own.values(), others.values(), strict=True):
        value.copy_(0.5 * value + 0.5 * other)


@pytest.mark.parametrize("way", ["swa", "by values"])
def test_weights_and_averages_of_a_warm_up_have_no_codes_until_it_ends(way):
    quantizer, x = build(), torch.randn(50, DIM)
    keys = list(quantizer.state_dict())
    quantizer(x)
    quantizer.bypass = True
    averaged, update = copy.deepcopy(quantizer), by_values
    if way == "swa":
        averaged = torch.optim.swa_utils.AveragedModel(quantizer)
        update = type(averaged).update_parameters
    own = getattr(averaged.eval(), "module", averaged)
    other, resumed = build().eval(), build()
    other.load_state_dict(quantizer.state_dict())
    resumed.load_training_state(quantizer.training_state())
    for model in (other, own, resumed):
        with pytest.raises(RuntimeError, match="warm-up"):
            model.encode(x)
    wanted = quantizer.eval()(x)
    for model in (other, averaged):
        out = model(x)
        assert torch.equal(out.quantized, wanted.quantized)
        assert (out.indices == -1).all()
    quantizer.train().bypass = False
    quantizer.reinitialize(torch.randn(999, quantizer.latent_dim))
    for _ in range(2):
        update(averaged, quantizer)
    other.load_state_dict(quantizer.state_dict())
    resumed.load_training_state(quantizer.training_state())
    assert list(quantizer.state_dict()) == keys
    assert torch.equal(other.encode(x), quantizer.encode(x))
    for model in (resumed, own, own.train(), copy.deepcopy(own)):
        assert (model.encode(x) >= 0).all()
    traced = torch.compile(own.eval(), backend="eager", fullgraph=True)
    assert (traced(x).indices >= 0).all()


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
    # A tensor without values raises where its value is read.
    with FakeTensorMode(), torch.device("cuda"):
        out = build(name)(torch.randn(2, 20, DIM, requires_grad=True))
    assert out.loss.device.type == "cuda"
    # Its backward pass needs the device.
    out = build(name)(torch.randn(2, 20, DIM, requires_grad=True))
    with HostSyncs() as syncs:
        (out.loss + out.quantized.sum()).backward()
    assert syncs.number == 0


@pytest.mark.parametrize("name", ["rotation", "residual-ema"])
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
