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


def broken(value):
    x = torch.randn(2, 5, 8)
    x[1, 4, 0] = value
    return x


SHAPE = r"takes \[N, \.\.\., 8\], got .*"
ONE_EACH = "one number for each .* of shape "
RELATIVE = r"relative .* in 0\.\.1; .*"

# What a quantizer is asked, and what it says.
REFUSED = [
    ("forward", [X[..., :7]], SHAPE + r"\(2, 300, 7\)"),
    ("forward", [X[0, 0]], SHAPE + r"\(8,\)"),
    ("forward", [X.long()], "floating point .* got torch.int64"),
    ("forward", [X, [1.0]], ONE_EACH + r"\(1,\)"),
    ("forward", [X, 1.0], ONE_EACH + r"\(\)"),
    ("forward", [X, [305.0, 3.0]], RELATIVE + "from 3 to 305"),
    ("forward", [X, [306, 3]], r"in frames, in 0\.\.300; .* from 3 to 306"),
    ("forward", [X, [1.0, -0.5]], RELATIVE + r"from -0\.5 to 1"),
    ("forward", [X, [1.0, torch.nan]], RELATIVE),
    ("forward", [X[:, 0], [1.0, 1.0]], r"\[B, T, \.\.\., D\]"),
    ("forward", [X, torch.ones(2).bfloat16()], "too coarse for 300 frames"),
    ("forward", [X, [1.0, 1.0], MASK], "not both"),
    ("forward", [X, None, MASK.float()], "must be boolean"),
    ("forward", [X, None, MASK[:1]], r"mask must be \(2, 300\)"),
    ("encode", [X.mT], SHAPE + r"\(2, 8, 300\)"),
    ("encode", [broken(torch.nan)], r"1 frames .*\(2, 5, 8\).* NaN"),
    ("encode", [broken(torch.inf)], r"1 frames .*\(2, 5, 8\).* NaN"),
    ("encode", [broken(1e20)], r"1 frames .*\(2, 5, 8\).* NaN"),
    ("decode", [[[16, 16]]], r"0\.\.15, .* got .* 16 to 16"),
    ("decode", [[[0, -2]]], r"0\.\.15, .* got .* -2 to 0"),
    ("decode", [torch.full((3, 2), 255, dtype=torch.uint8)], "255 to 255"),
    ("decode", [[[0.0, 0.0]]], "integers, got torch.float32"),
    ("decode", [[[True, True]]], "integers, got torch.bool"),
    ("decode", [[[0, 0, 0]]], r"[12] to 2 .* got .*\(1, 3\)"),
    ("decode", [3], r"[12] to 2 .* got the shape \(\)"),
    ("reinitialize", [torch.randn(30, 7)], r"\[N, 8\], got .*\(30, 7\)"),
    ("reinitialize", [X], r"\[N, 8\], got .*\(2, 300, 8\)"),
    ("reinitialize", [broken(torch.nan)[1]], "NaN"),
    ("reinitialize", [None, "anywhere"], "start must be one of"),
]


@every_kind
@pytest.mark.parametrize("method, arguments, message", REFUSED)
def test_what_does_not_fit_is_told_and_teaches_nothing(
    kind, method, arguments, message
):
    quantizer = kind()
    quantizer(torch.randn(30, 8))
    before = copy.deepcopy(quantizer.state_dict())
    given = [
        torch.tensor(a) if isinstance(a, list | float | int) else a
        for a in arguments
    ]
    with pytest.raises((TypeError, ValueError), match=message):
        getattr(quantizer, method)(*given)
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
