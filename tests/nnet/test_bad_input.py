"""What a quantizer cannot do, it says."""

import copy
import itertools
import math
from functools import partial

import pytest
import torch

from speechbrain_vq import nnet
from speechbrain_vq.nnet import ResidualVectorQuantizer, VectorQuantizer

product = partial(VectorQuantizer, 8, 16, num_codebooks=2)
residual = partial(ResidualVectorQuantizer, 2, 8, 16, norm="batch")
every_kind = pytest.mark.parametrize(
    "kind", [product, residual], ids=["product", "residual"]
)
X, MASK = torch.randn(2, 300, 8), torch.ones(2, 300, dtype=torch.bool)


@pytest.mark.parametrize(
    "names, values",
    [
        ("input_dim codebook_size codebook_dim", (0, 2.5, True)),
        ("num_codebooks num_quantizers reservoir_size", (-1,)),
        ("norm norm_position estimator codebook", ("sum",)),
        ("codebook_init composition", ("sum",)),
        (
            "commitment_weight codebook_weight entropy_weight",
            (-1, "x", math.nan),
        ),
    ],
)
def test_a_wrong_value_is_named(names, values):
    for name, value in itertools.product(names.split(), values):
        kind = VectorQuantizer
        if name == "num_quantizers":
            kind = ResidualVectorQuantizer
        options = {"input_dim": 8, "codebook_size": 16, name: value}
        with pytest.raises(ValueError, match=f"{name} must be .*{value!r}"):
            kind(**options)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"num_codebooks": 3}, "8 is not divisible by num_codebooks=3"),
        ({"quantizer_dropout": 0.5}, "needs composition='residual'"),
        *(
            ({**options, "denormalize": True}, "unit_length and FSQ lose")
            for options in ({"unit_length": True}, {"codebook": "fsq"})
        ),
        ({"unit_length": True, "composition": "residual"}, "unit_length, FSQ"),
        ({"unit_length": True, "codebook": "lfq"}, "unit_length, FSQ"),
        ({"codebook": "fsq", "composition": "residual"}, "unit_length, FSQ"),
        ({"codebook": "ema", "codebook_weight": 1.0}, "'ema' has no codebook"),
        ({"codebook": "lfq", "codebook_weight": 1.0}, "'lfq' has no codebook"),
        ({"codebook": "simvq", "reservoir_size": 9}, "'simvq' is never re-in"),
        ({"codebook": "fsq", "codebook_init": "kmeans"}, "'fsq' is never re-i"),
        (
            {"codebook": "fsq", "codebook_size": 23},
            "=23 is not a product of .*=2 integers.*=2",
        ),
        (
            {"codebook": "lfq", "codebook_size": 24},
            "=24 is not a product of .*use codebook_dim=5",
        ),
        ({"ema_decay": 0.9}, "ema_decay needs codebook='ema'"),
        ({"codebook": "ema", "ema_decay": 1.0}, r"decay must be in \[0, 1\)"),
    ],
)
def test_impossible_options_are_named(options, message):
    options = {"input_dim": 8, "codebook_size": 16, **options}
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**options)


def with_lengths(lengths):
    return lambda q: q(X[:, :5], torch.tensor(lengths))


def broken(value):
    x = torch.randn(2, 5, 8)
    x[1, 4, 0] = value
    return x


# What a quantizer is asked, and what it says.
REFUSED = [
    (lambda q: q(X[..., :7]), r"takes \[N, \.\.\., 8\], got .*\(2, 300, 7\)"),
    (lambda q: q(X[0, 0]), r"takes \[N, \.\.\., 8\], got .*\(8,\)"),
    (lambda q: q.encode(X.mT), r"takes \[N, \.\.\., 8\], got .*\(2, 8, 300\)"),
    (lambda q: q(X.long()), "floating point .* got torch.int64"),
    (with_lengths([1.0]), r"one number for each .* of shape \(1,\)"),
    (with_lengths(1.0), r"one number for each .* lengths of shape \(\)"),
    (with_lengths([5.0, 3.0]), r"relative .* in 0\.\.1; .* from 3 to 5"),
    (with_lengths([6, 3]), r"in frames, in 0\.\.5; got values from 3 to 6"),
    (with_lengths([1.0, -0.5]), r"relative .* in 0\.\.1; .* from -0\.5 to 1"),
    (with_lengths([1.0, torch.nan]), r"relative .* in 0\.\.1; got"),
    (lambda q: q(X[:, 0], torch.ones(2)), r"\[B, T, \.\.\., D\]"),
    (lambda q: q(X, torch.ones(2).bfloat16()), "too coarse for 300 frames"),
    (lambda q: q(X, torch.ones(2), MASK), "not both"),
    (lambda q: q(X, None, MASK.float()), "must be boolean"),
    (lambda q: q(X, None, MASK[:1]), r"mask must be \(2, 300\)"),
    *(
        (lambda q, x=x: q.encode(x), r"1 frames .*\(2, 5, 8\).* NaN")
        for x in map(broken, (torch.nan, torch.inf, 1e20))
    ),
    *(
        (lambda q, codes=codes: q.decode(codes), message)
        for codes, message in (
            (torch.full((3, 2), 16), r"0\.\.15, .* got .* 16 to 16"),
            (torch.tensor([[0, -2]]), r"0\.\.15, .* got .* -2 to 0"),
            (torch.full((3, 2), 255, dtype=torch.uint8), "255 to 255"),
            (torch.zeros(3, 2), "integers, got torch.float32"),
            (torch.ones(3, 2).bool(), "integers, got torch.bool"),
            (torch.zeros(4, 3).long(), r"[12] to 2 .* got .*\(4, 3\)"),
            (torch.tensor(3), r"[12] to 2 .* got the shape \(\)"),
        )
    ),
    *(
        (lambda q, x=x: q.reinitialize(x), message)
        for x, message in (
            (torch.randn(30, 7), r"\[N, 8\], got .*\(30, 7\)"),
            (torch.randn(3, 10, 8), r"\[N, 8\], got .*\(3, 10, 8\)"),
            (broken(torch.nan).flatten(0, 1), "NaN"),
        )
    ),
    (lambda q: q.reinitialize(start="anywhere"), "start must be one of"),
]


@every_kind
@pytest.mark.parametrize("ask, message", REFUSED)
def test_what_does_not_fit_is_told_and_teaches_nothing(kind, ask, message):
    quantizer = kind()
    quantizer(torch.randn(30, 8))
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        ask(quantizer)
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
    assert len(quantizer.reservoir) == 30 and quantizer.training


@every_kind
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (2, 5, 8)])
def test_a_batch_without_a_valid_frame_teaches_nothing(kind, shape):
    quantizer, x = kind(), torch.randn(shape).requires_grad_()
    quantizer(2 + torch.randn(30, 8))
    before = copy.deepcopy(quantizer.state_dict())
    output = quantizer(x, mask=torch.zeros(shape[:-1], dtype=torch.bool))
    assert output.loss.isnan() and output.quantized.shape == shape
    (output.loss + output.quantized.sum()).backward()
    assert not x.grad.any() and not quantizer.codebook.grad.any()
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
    assert len(quantizer.reservoir) == 30
    assert quantizer.encode(x).shape == (*shape[:-1], 2)


@pytest.mark.parametrize("codebook", ["gradient", "ema", "simvq", "fsq", "lfq"])
def test_latents_of_weights_that_are_nan_teach_nothing(codebook):
    size = {} if codebook in ("fsq", "lfq") else {"codebook_dim": 4}
    quantizer = VectorQuantizer(8, 16, codebook=codebook, **size)
    with torch.no_grad():
        quantizer.project.weight[0, 0] = torch.nan
    assert quantizer(torch.randn(30, 8)).loss.isnan()
    assert quantizer.codebook.isfinite().all()
    assert len(quantizer.reservoir) == 0


@every_kind
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["int", "uint"])
def test_codes_of_any_integer_type_are_decoded(kind, sign, bits):
    quantizer, codes = kind(), torch.randint(16, (3, 5, 2))
    other = codes.to(getattr(torch, f"{sign}{bits}"))
    assert torch.equal(quantizer.decode(other), quantizer.decode(codes))


def test_what_is_off_by_rounding_or_at_padding_is_taken():
    product()(X, torch.tensor([1.0 + 1e-6, 0.5]))
    product().encode(broken(torch.nan), torch.tensor([1.0, 0.8]))


@pytest.mark.parametrize(
    "ask, message",
    [
        (
            lambda: VectorQuantizer(8, 16, reservoir_size=0).reinitialize(),
            "reservoir_size above 0",
        ),
        (
            lambda: residual()(torch.randn(5, 8), num_quantizers=3),
            "has 2 codebooks",
        ),
        (
            lambda: nnet.MaskedBatchNorm(6)(torch.randn(10, 12)),
            "6 features, got a tensor of shape",
        ),
    ],
)
def test_what_is_not_there_is_told(ask, message):
    with pytest.raises(ValueError, match=message):
        ask()
