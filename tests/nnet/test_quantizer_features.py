"""States, forms of input and output, and torch's transforms."""

import collections
import copy
import importlib
import inspect
import warnings

import pytest
import safetensors.torch
import torch
from torch.utils.checkpoint import checkpoint

from speechbrain_vq.nnet import ResidualVectorQuantizer, VectorQuantizer, kmeans

DIM, SIZE = 6, 16
KINDS = {
    "gradient": lambda **o: VectorQuantizer(DIM, SIZE, **o),
    "ema": lambda **o: VectorQuantizer(DIM, SIZE, codebook="ema", **o),
    "residual": lambda **o: ResidualVectorQuantizer(3, DIM, SIZE, **o),
    "fsq": lambda **o: VectorQuantizer(DIM, SIZE, codebook="fsq", **o),
    "lfq": lambda **o: VectorQuantizer(DIM, SIZE, codebook="lfq", **o),
    "simvq": lambda **o: VectorQuantizer(DIM, SIZE, codebook="simvq", **o),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
# Those of version 0.1, and of k-means.
LEARNED = ["gradient", "ema", "residual"]
learned_kind = pytest.mark.parametrize("kind", LEARNED)


def trained(kind="gradient", batches=4, **options):
    """A quantizer that has seen some data."""
    torch.manual_seed(0)
    quantizer = KINDS[kind](**options)
    for _ in range(batches):
        quantizer(2 + 3 * torch.randn(3, 40, DIM))
    return quantizer


# State -----------------------------------------------------------------------


@every_kind
def test_state_is_tensors_that_safetensors_keeps(kind, tmp_path):
    quantizer, x = trained(kind), torch.randn(50, DIM)
    assert all(map(torch.is_tensor, quantizer.state_dict().values()))
    safetensors.torch.save_model(quantizer, tmp_path / "q.safetensors")
    other = KINDS[kind]()
    safetensors.torch.load_model(other, tmp_path / "q.safetensors")
    assert torch.equal(other.encode(x), quantizer.encode(x))


def old_state(quantizer):
    """The state_dict that version 0.1 made of a quantizer."""
    state = {
        key.replace("embedding.", "codewords."): value.clone()
        for key, value in quantizer.state_dict().items()
    }
    for name, buffer in quantizer.embedding.named_buffers():
        state[f"codewords.{name}"] = buffer.clone()
    state["_extra_state"] = {"bypass": True}
    state["reservoir._extra_state"] = quantizer.reservoir.state_dict()
    return collections.OrderedDict(state)


@learned_kind
def test_states_of_version_01_load_strictly(kind):
    quantizer, x = trained(kind), torch.randn(5000, DIM) / 100
    quantizer.norm.running_mean.mul_(0)
    quantizer.norm.running_var.mul_(1e-4)
    model = torch.nn.ModuleDict({"inner": KINDS[kind]()})
    old = {f"inner.{k}": v for k, v in old_state(quantizer).items()}
    kept = dict(old)
    model.load_state_dict(old, strict=True)
    assert old.keys() == kept.keys()
    other = model["inner"]
    assert other.bypass
    other.bypass = False
    # Its epsilon stays with it, saved again too.
    again = KINDS[kind]()
    again.load_state_dict(other.state_dict(), strict=True)
    assert not torch.equal(other.encode(x), quantizer.encode(x))
    quantizer.norm.eps = 1e-5
    expected = quantizer.encode(x)
    assert torch.equal(other.encode(x), expected)
    assert torch.equal(again.encode(x), expected)


def test_names_of_version_01_say_what_replaces_them():
    quantizer = trained()
    with pytest.warns(DeprecationWarning, match=r"now reinitialize\(\)"):
        assert quantizer.reestimate().inertia > 0
    assert quantizer.codewords is quantizer.embedding
    optimizers = importlib.import_module("speechbrain_vq.training.optimizers")
    with pytest.raises(ImportError, match="now CodebookTrainer"):
        _ = optimizers.CodebookOptimizer


@every_kind
@pytest.mark.parametrize("way", ["assign", "to_empty"])
def test_built_without_memory_it_trains(kind, way):
    saved = trained(kind).state_dict()
    with torch.device("meta"):
        quantizer = KINDS[kind]()
    if way == "to_empty":
        quantizer.to_empty(device="cpu")
    quantizer.load_state_dict(saved, assign=way == "assign")
    out = quantizer(torch.randn(100, DIM, requires_grad=True))
    (out.quantized.sum() + out.loss).backward()
    result = quantizer.reinitialize()
    assert result.inertia >= 0 if kind in LEARNED else result is None
    assert all(b.isfinite().all() for b in quantizer.buffers())


@every_kind
@pytest.mark.parametrize("dtype", [torch.float64, torch.half])
def test_torchs_default_precision_changes_nothing(kind, dtype):
    x = torch.randn(50, DIM)
    wanted = trained(kind)
    torch.set_default_dtype(dtype)
    quantizer = KINDS[kind]()
    assert all(p.dtype == torch.float32 for p in quantizer.parameters())
    quantizer.load_state_dict(wanted.state_dict())
    assert torch.equal(quantizer.encode(x), wanted.encode(x))
    quantizer(x.clone().requires_grad_()).quantized.sum().backward()
    quantizer.reinitialize()


FREEZE = {
    "freeze": lambda q: q.freeze(),
    "requires_grad": lambda q: q.requires_grad_(False),
    "embedding": lambda q: q.embedding.requires_grad_(False),
    "eval": lambda q: q.embedding.eval(),
}


@every_kind
@pytest.mark.parametrize("way", FREEZE)
def test_a_frozen_codebook_keeps_its_bits(kind, way):
    quantizer = trained(kind, norm="running")
    FREEZE[way](quantizer)
    before = copy.deepcopy(quantizer.state_dict())
    if way == "freeze":  # It outlasts a toggle of the whole model.
        torch.nn.Sequential(quantizer.train()).requires_grad_(True)
    out = quantizer(torch.randn(99, DIM, requires_grad=True))
    (out.quantized.sum() + out.loss).backward()
    if way == "freeze":
        assert all(p.grad is None for p in quantizer.parameters())
    assert quantizer.codebook.grad is None
    assert quantizer.reinitialize(torch.randn(99, quantizer.latent_dim)) is None
    after = quantizer.state_dict()
    moved = {k for k, v in after.items() if not torch.equal(v, before[k])}
    statistics = {"norm.running_mean", "norm.running_var"}
    assert moved == (set() if way == "freeze" else statistics)


# Padding ---------------------------------------------------------------------


@every_kind
def test_lengths_in_frames_and_masks_are_relative_lengths(kind):
    x, frames = torch.randn(3, 20, DIM), torch.tensor([20, 13, 4])
    shares, mask = frames / 20, torch.arange(20) < frames.unsqueeze(1)
    outputs = [trained(kind)(x, mask=mask)]
    relative = shares, shares.bfloat16(), shares.half()
    for lengths in (frames, frames.to(torch.int32), *relative):
        outputs.append(trained(kind)(x, lengths))
    for other in outputs[1:]:
        assert torch.equal(other.quantized, outputs[0].quantized)
        assert torch.equal(other.loss, outputs[0].loss)


def test_channels_may_come_first():
    first, last = trained(), trained()
    first.channel_first = True
    x, lengths = torch.randn(2, 7, 5, DIM), torch.tensor([1.0, 0.5])
    one, two = first(x.movedim(-1, 1), lengths), last(x, lengths)
    assert torch.equal(one.quantized, two.quantized.movedim(-1, 1))
    assert torch.equal(one.indices, two.indices)
    decoded = last.decode(two.indices).movedim(-1, 1)
    assert torch.equal(first.decode(one.indices), decoded)
    assert torch.equal(first.encode(x.movedim(-1, 1)), last.encode(x))
    with pytest.raises(
        ValueError, match=r"takes \[B, 6, \.\.\.\].*\(2, 7, 5, 6\)"
    ):
        first(x)
    with pytest.raises(ValueError, match="build it with channel_first"):
        last(x.movedim(-1, 1))


# Rows of codebooks -----------------------------------------------------------


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_first_codebooks_are_a_quantizer(number):
    whole, x = trained("residual").eval(), torch.randn(40, DIM)
    part = ResidualVectorQuantizer(number, DIM, SIZE).eval()
    state = whole.state_dict()
    state["embedding.weight"] = state["embedding.weight"][:number]
    part.load_state_dict(state)
    out, wanted = whole(x, num_quantizers=number), part(x)
    assert torch.equal(out.indices[:, :number], wanted.indices)
    assert (out.indices[:, number:] == -1).all()
    assert torch.equal(out.quantized, wanted.quantized)
    assert torch.equal(out.loss, wanted.loss)
    assert torch.equal(whole.decode(out.indices), out.quantized)
    assert torch.equal(whole.decode(wanted.indices), out.quantized)
    words = [whole.codebook[c][out.indices[:, c]] for c in range(number)]
    assert torch.equal(sum(words), out.quantized)


def test_dropout_draws_every_number_of_codebooks_alike():
    quantizer = trained("residual", quantizer_dropout=0.6)
    x, drawn = torch.randn(4, DIM), collections.Counter()
    for _ in range(500):
        drawn[int((quantizer(x).indices[0] >= 0).sum())] += 1
    # All three in 40 % of the batches, each of 1, 2, 3 in a third of the rest.
    for number, share in ((1, 0.2), (2, 0.2), (3, 0.6)):
        assert abs(drawn[number] / 500 - share) < 0.06
    quantizer.eval()
    assert all((quantizer(x).indices >= 0).all() for _ in range(50))


def test_codebooks_dropped_keep_their_averages():
    quantizer = KINDS["residual"](codebook="ema")
    quantizer(torch.randn(50, DIM))
    before = [b[1:].clone() for b in quantizer.embedding.buffers()]
    quantizer(torch.randn(50, DIM), num_quantizers=1)
    for old, new in zip(before, quantizer.embedding.buffers(), strict=True):
        assert torch.equal(old, new[1:])


# The output's space -----------------------------------------------------------


@pytest.mark.parametrize("position", ["input", "latent"])
def test_denormalized_codes_are_their_own_codes(position):
    sizes = {"reservoir_size": 4096, "num_codebooks": DIM}
    quantizer = trained(denormalize=True, norm_position=position, **sizes)
    for _ in range(60):
        quantizer(5 + 3 * torch.randn(50, DIM))
    quantizer.reinitialize()
    codes = torch.randint(SIZE, (200, DIM))
    assert torch.equal(quantizer.encode(quantizer.decode(codes)), codes)
    x = 5 + 3 * torch.randn(500, DIM)
    assert (quantizer.eval()(x).quantized - x).square().mean() / x.var() < 0.05
    # By default the output is of unit scale, far away.
    quantizer.denormalize = False
    assert quantizer(x).quantized.mean().abs() < 1


@pytest.mark.parametrize("scale", [0.01, 100.0])
def test_the_scale_of_encoder_outputs_changes_nothing(scale):
    results = []
    for factor in (1.0, scale):
        torch.manual_seed(0)
        quantizer = KINDS["gradient"]()
        for _ in range(5):
            # As a network's are at its start: a variance of 1e-2.
            out = quantizer(factor * 0.1 * torch.randn(400, DIM))
        results.append((out.indices, out.loss))
    (codes, loss), (others, other) = results
    assert (codes == others).float().mean() > 0.999
    torch.testing.assert_close(loss, other, rtol=1e-3, atol=0)


# Forward, again and otherwise ------------------------------------------------


@every_kind
@pytest.mark.parametrize("reentrant", [False, True])
def test_a_recomputed_forward_teaches_nothing(kind, reentrant):
    results = []
    for again in (False, True):
        quantizer, layer = trained(kind), torch.nn.Linear(DIM, DIM)
        torch.manual_seed(1)
        torch.nn.init.normal_(layer.weight)
        x = torch.randn(4, 20, DIM, requires_grad=True)

        def forward(x, quantizer=quantizer, layer=layer):
            out = quantizer(layer(x))
            return out.quantized, out.loss

        options = {"use_reentrant": reentrant}
        out = checkpoint(forward, x, **options) if again else forward(x)
        with warnings.catch_warnings():
            warnings.filterwarnings("error", "The loss of a VectorQuantizer")
            (out[0].square().mean() + out[1]).backward()
        gradients = layer.weight.grad, x.grad
        learned = quantizer.codebook.detach(), quantizer.norm.running_mean
        results.append((*gradients, *learned, quantizer.reservoir.count))
    torch.testing.assert_close(*results)


def test_gradients_of_gradients_pass_straight_through():
    quantizer = trained(estimator="straight_through").eval()
    x, weights = torch.randn(20, DIM, requires_grad=True), torch.randn(DIM, 4)

    def plain(x):
        y = quantizer.norm(x)
        return y + (quantizer(x).quantized - y).detach()

    results = []
    for quantize in (plain, lambda x: quantizer(x).quantized):
        out = (quantize(x) @ weights).tanh().pow(3).sum()
        (slope,) = torch.autograd.grad(out, x, create_graph=True)
        results += torch.autograd.grad(slope.square().sum(), x)
    torch.testing.assert_close(*results)


@every_kind
def test_transforms_agree_with_loops(kind):
    quantizer = trained(kind).eval()
    x, lengths = torch.randn(4, 3, 10, DIM), torch.rand(4, 3)
    parameters = dict(quantizer.named_parameters())

    def run(parameters, x, lengths):
        given = parameters, (x, lengths)
        out = torch.func.functional_call(quantizer, *given)
        return out.loss + out.quantized.pow(3).sum(), out.indices

    transform = torch.func.grad(run, (0, 1), has_aux=True)
    every = torch.func.vmap(transform, (None, 0, 0))
    (of_parameters, of_x), codes = every(parameters, x, lengths)
    for number, item in enumerate(x):
        item = item.clone().requires_grad_()
        value, wanted_codes = run(parameters, item, lengths[number])
        wanted = torch.autograd.grad(
            value, [*parameters.values(), item], materialize_grads=True
        )
        found = [g[number] for g in (*of_parameters.values(), of_x)]
        torch.testing.assert_close(found, list(wanted))
        assert torch.equal(codes[number], wanted_codes)


@every_kind
@pytest.mark.parametrize("norm, size", [("batch", 50), (None, 0)])
def test_transforms_of_training_are_refused(kind, norm, size):
    size = size if kind in LEARNED else 0
    quantizer = trained(kind, norm=norm, reservoir_size=size)
    before = copy.deepcopy(quantizer.training_state())
    transforms = (
        torch.func.grad(lambda x: quantizer(x).loss),
        torch.func.vmap(lambda x: quantizer(x).quantized),
    )
    for transform in transforms:
        with pytest.raises(RuntimeError, match=r"call eval\(\) first"):
            transform(torch.randn(4, 10, DIM))
    torch.testing.assert_close(quantizer.training_state(), before)


class Decode(torch.nn.Module):
    """The decoder alone."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantizer, self.forward = quantizer, quantizer.decode


@every_kind
def test_exported_or_compiled_it_gives_the_same(kind):
    quantizer, x = trained(kind).eval(), torch.randn(2, 9, DIM)
    codes, example = quantizer(x).indices, torch.randn(2, 9, DIM)
    program = torch.export.export(quantizer, (example,))
    assert torch.equal(program.module()(x).indices, codes)
    codes[0, 3] = -1
    shapes = ({0: torch.export.Dim("B"), 1: torch.export.Dim("T")},)
    program = torch.export.export(
        Decode(quantizer), (codes[:, :5].clone(),), dynamic_shapes=shapes
    )
    decode = torch.compile(quantizer.decode, fullgraph=True, backend="eager")
    for decoded in (program.module()(codes), decode(codes)):
        assert torch.equal(decoded, quantizer.decode(codes))


@pytest.mark.parametrize("number", [1, 2])
def test_ema_learns_beside_the_entropy_loss(number):
    options = {"codebook": "ema", "entropy_weight": 0.5}
    quantizer = ResidualVectorQuantizer(number, DIM, 8, **options)
    x = torch.randn(50, DIM, requires_grad=True)
    quantizer(x).loss.backward()
    assert x.grad.any()


def test_script_says_what_to_do():
    with pytest.raises(RuntimeError, match="jit_module_keys"):
        torch.jit.script(torch.nn.Sequential(trained()))


# Starts ----------------------------------------------------------------------


@learned_kind
def test_kmeans_start_fits_the_first_batch(kind):
    quantizer, x = KINDS[kind](codebook_init="kmeans"), torch.randn(500, DIM)
    quantizer.eval()(x)
    start = quantizer.codebook.detach().clone()
    quantizer.load_state_dict(quantizer.state_dict())  # Before any training
    out = quantizer.train()(x)
    found = quantizer.codebook.detach().clone()
    assert not torch.equal(start, found)
    if kind != "residual":
        best = float(kmeans(quantizer.norm(x), SIZE, generator=0).inertia)
        assert float(out.metrics["sq_error"]) < 1.1 * best
    assert (out.metrics["counts"] > 0).all()
    # Once, also of a quantizer that is loaded; an EMA codebook learns on.
    other = KINDS[kind](codebook_init="kmeans")
    other.load_state_dict(quantizer.state_dict())
    for again in (quantizer, other):
        again(torch.randn(500, DIM))
        moved = (again.codebook - found).abs().max()
        assert moved < 0.2 if kind == "ema" else moved == 0


def test_a_row_of_codebooks_has_presets_and_names_its_arguments():
    row = ResidualVectorQuantizer.from_preset("ema", 8, 32, num_codebooks=5)
    assert row(torch.randn(20, 8)).indices.shape == (20, 5)
    row = inspect.signature(ResidualVectorQuantizer).parameters
    one = inspect.signature(VectorQuantizer).parameters
    own = {"num_quantizers"}, {"num_codebooks", "composition"}
    assert next(iter(row)) == "num_quantizers"
    assert (row.keys() - one.keys(), one.keys() - row.keys()) == own
    for name in row.keys() & one.keys():
        assert row[name].default == one[name].default


# Unit length ---------------------------------------------------------------


@pytest.mark.parametrize("books", [1, 2])
@pytest.mark.parametrize("codebook", ["gradient", "ema"])
def test_unit_length_finds_the_largest_cosine(books, codebook):
    quantizer = VectorQuantizer(
        *(8, 16), num_codebooks=books, norm=None, unit_length=True,
        codebook=codebook, codebook_weight=None,
    )  # fmt: skip
    x = torch.randn(50, 8, requires_grad=True)
    out = quantizer.eval()(x)
    parts = x.detach().unflatten(1, (books, -1))
    words = quantizer.codebook.detach()
    cosines = torch.cosine_similarity(parts.unsqueeze(2), words, dim=3)
    assert torch.equal(out.indices.view(50, books), cosines.argmax(2))
    lengths = out.quantized.unflatten(1, (books, -1)).norm(dim=2)
    torch.testing.assert_close(lengths, torch.ones(50, books))
    torch.testing.assert_close(quantizer.decode(out.indices), out.quantized)
    # Neither the lengths of latents nor those of codewords count.
    louder = x * (torch.rand(50, 1) + 0.1)
    assert torch.equal(quantizer.encode(louder), out.indices)
    quantizer.codebook.data *= torch.rand(books, 16, 1) + 0.1
    assert torch.equal(quantizer.encode(x), out.indices)
    # So no gradient goes along them.
    (out.quantized * torch.randn(50, 8)).sum().backward()
    along = (x.grad * x).unflatten(1, (books, -1)).sum(2)
    torch.testing.assert_close(along, torch.zeros(50, books))


def test_unit_length_is_reinitialized_to_directions():
    quantizer = VectorQuantizer(8, 4, norm=None, unit_length=True)
    directions = torch.nn.functional.normalize(torch.randn(4, 8), dim=1)
    x = directions.repeat(25, 1) * (torch.rand(100, 1) + 0.1)
    quantizer(x)
    assert quantizer.reinitialize().inertia < 1e-9 and quantizer(x).loss < 1e-9


# A loss that goes nowhere ----------------------------------------------------


def test_a_loss_that_is_dropped_is_told():
    x = torch.randn(20, DIM, requires_grad=True)
    quantized = trained(estimator="straight_through")(x).quantized
    with pytest.warns(UserWarning, match="add `output.loss`"):
        quantized.sum().backward()


@pytest.mark.parametrize("way", ["sum", "before", "after", "kept", "eval"])
def test_a_loss_that_is_used_is_not(way):
    quantizer = trained(estimator="straight_through")
    out = quantizer.train(way != "eval")(torch.randn(9, DIM).requires_grad_())
    quantized, loss = out.quantized.sum(), out.loss
    if way != "kept":
        del out
    steps = {
        "before": [loss, quantized],
        "after": [quantized, loss],
        "kept": [quantized],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in steps.get(way, [quantized + loss]):
            part.backward(retain_graph=True)
