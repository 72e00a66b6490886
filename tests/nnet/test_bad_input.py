"""What a quantizer cannot do, it says."""

import copy

import pytest
import torch
from torch.nn import functional as F

from speechbrain_vq.nnet import (
    MaskedBatchNorm,
    ResidualVectorQuantizer,
    VectorQuantizer,
)


def product():
    return VectorQuantizer(8, 16, num_codebooks=2)


def residual():
    return ResidualVectorQuantizer(2, 8, 16)


every_kind = pytest.mark.parametrize("kind", [product, residual])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"codebook_size": 0}, "codebook_size must be an integer >= 1, got 0"),
        ({"codebook_size": 2.5}, "codebook_size .* got 2.5"),
        ({"codebook_size": True}, "codebook_size .* got True"),
        ({"codebook_dim": 0}, "codebook_dim must be an integer >= 1, got 0"),
        ({"input_dim": 0}, "input_dim must be an integer >= 1, got 0"),
        ({"norm": "layer"}, "norm must be one of .*'batch'.* got 'layer'"),
        ({"norm_position": "output"}, "norm_position .* got 'output'"),
        ({"estimator": "gumbel"}, "estimator .*'rotation'.* got 'gumbel'"),
        ({"codebook": "kmeans"}, "codebook .*'ema'.* got 'kmeans'"),
        ({"codebook_init": "kaiming"}, "codebook_init .* got 'kaiming'"),
        ({"composition": "sum"}, "composition must be one of .*'sum'"),
        ({"num_codebooks": 3}, "8 does not divide into 3 codebooks"),
        ({"num_codebooks": 0}, "num_codebooks must be an integer"),
        ({"quantizer_dropout": 0.5}, "needs composition='residual'"),
        (
            {"unit_length": True, "denormalize": True},
            "unit_length and FSQ lose",
        ),
        ({"codebook": "fsq", "denormalize": True}, "unit_length and FSQ lose"),
        ({"unit_length": True, "composition": "residual"}, "unit_length, FSQ"),
        ({"unit_length": True, "codebook": "lfq"}, "unit_length, FSQ"),
        ({"codebook": "fsq", "composition": "residual"}, "unit_length, FSQ"),
        ({"codebook": "ema", "codebook_weight": 1.0}, "'ema' has no codebook"),
        ({"codebook": "lfq", "codebook_weight": 1.0}, "'lfq' has no codebook"),
        ({"codebook": "simvq", "reservoir_size": 9}, "'simvq' is never re-in"),
        ({"codebook": "fsq", "codebook_init": "kmeans"}, "'fsq' is never re-i"),
        (
            {"codebook": "fsq", "codebook_size": 23},
            "=23 is not a product of .*=2 num.*=2 works",
        ),
        (
            {"codebook": "lfq", "codebook_size": 24},
            "=24 is not a product of .*=5 works",
        ),
        ({"ema_decay": 0.9}, "ema_decay needs codebook='ema'"),
        ({"codebook": "ema", "ema_decay": 1.0}, r"decay must be in \[0, 1\)"),
        ({"reservoir_size": -1}, "reservoir_size .* got -1"),
        (
            {"commitment_weight": -1},
            "commitment_weight must be a number at least 0, got -1",
        ),
        ({"codebook_weight": -1}, "codebook_weight must be a number at l.* -1"),
        ({"entropy_weight": "x"}, "entropy_weight must be a number .* 'x'"),
        ({"commitment_weight": float("nan")}, "commitment_weight .* got nan"),
    ],
)
def test_impossible_options_are_named(options, message):
    options = {"input_dim": 8, "codebook_size": 16, **options}
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(**options)


@pytest.mark.parametrize("number", [0, 1.0])
def test_impossible_numbers_of_quantizers_are_named(number):
    with pytest.raises(ValueError, match="num_quantizers must be an integer"):
        ResidualVectorQuantizer(number, 8, 16)
    with pytest.raises(ValueError, match="has 2 codebooks"):
        residual()(torch.randn(5, 8), num_quantizers=3)


@every_kind
@pytest.mark.parametrize("method", ["__call__", "encode"])
@pytest.mark.parametrize(
    "shape, message",
    [
        ((2, 5, 7), r"takes \[\.\.\., 8\], got .*\(2, 5, 7\)"),
        ((2, 8, 5), r"takes \[\.\.\., 8\], got .*\(2, 8, 5\)"),
        ((8,), r"takes \[\.\.\., 8\], got .*\(8,\)"),
        ((), r"takes \[\.\.\., 8\], got .*\(\)"),
    ],
)
def test_shapes_that_do_not_fit_are_told(kind, method, shape, message):
    with pytest.raises(ValueError, match=message):
        getattr(kind(), method)(torch.randn(shape))


@every_kind
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.complex64])
def test_input_that_is_not_real_floating_point_is_refused(kind, dtype):
    with pytest.raises(TypeError, match=f"floating point .* got {dtype}"):
        kind()(torch.ones(2, 5, 8, dtype=dtype))


@every_kind
@pytest.mark.parametrize(
    "lengths, message",
    [
        ([1.0], r"one number for each .* lengths of shape \(1,\)"),
        ([[1.0, 1.0]], r"one number for each .* lengths of shape \(1, 2\)"),
        (1.0, r"one number for each .* lengths of shape \(\)"),
        ([1.0, 1.5], r"relative .* in 0\.\.1; got values from 1 to 1\.5"),
        ([5.0, 3.0], r"relative .* in 0\.\.1; got values from 3 to 5"),
        ([6, 3], r"in frames, in 0\.\.5; got values from 3 to 6"),
        ([1.0, -0.5], r"relative .* in 0\.\.1; got values from -0\.5 to 1"),
        ([1.0, torch.nan], r"relative .* in 0\.\.1; got"),
    ],
)
def test_lengths_that_do_not_fit_are_told(kind, lengths, message):
    quantizer = kind()
    before = quantizer.norm.running_mean.clone()
    with pytest.raises(ValueError, match=message):
        quantizer(torch.randn(2, 5, 8), torch.tensor(lengths))
    assert torch.equal(quantizer.norm.running_mean, before)


@every_kind
@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (2, 5, 8)])
def test_a_batch_without_a_valid_frame_has_no_loss_and_teaches_nothing(
    kind, shape
):
    quantizer, x = kind(), torch.randn(shape).requires_grad_()
    before = copy.deepcopy(quantizer.state_dict())
    output = quantizer(x, mask=torch.zeros(shape[:-1], dtype=torch.bool))
    assert output.loss.isnan() and output.quantized.shape == shape
    (output.loss + output.quantized.sum()).backward()
    assert not x.grad.any() and not quantizer.codebook.grad.any()
    torch.testing.assert_close(quantizer.state_dict(), before, rtol=0, atol=0)
    assert len(quantizer.reservoir) == 0
    assert quantizer.encode(x).shape == (*shape[:-1], 2)


X = torch.randn(2, 300, 8)
MASK = torch.ones(2, 300, dtype=torch.bool)


@pytest.mark.parametrize(
    "x, lengths, mask, message",
    [
        (torch.randn(2, 8), torch.ones(2), None, r"\[B, T, \.\.\., D\]"),
        (X, torch.ones(2).bfloat16(), None, "too coarse for 300 frames"),
        (X, torch.ones(2), MASK, "not both"),
        (X, None, MASK.float(), "must be boolean"),
        (X, None, MASK[:1], r"mask must be \(2, 300\)"),
    ],
)
def test_masks_that_do_not_fit_are_told(x, lengths, mask, message):
    with pytest.raises((TypeError, ValueError), match=message):
        product()(x, lengths, mask)


def test_lengths_off_by_rounding_are_taken():
    product()(X, torch.tensor([1.0 + 1e-6, 0.5]))


@every_kind
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 1e20])
def test_nonfinite_vectors_are_not_encoded(kind, value):
    x = torch.randn(2, 5, 8)
    x[1, 4, 0] = value
    quantizer = kind()
    with pytest.raises(ValueError, match=r"1 frames .*\(2, 5, 8\).* NaN"):
        quantizer.encode(x)
    assert quantizer.training
    # At padding they do no harm.
    quantizer.encode(x, torch.tensor([1.0, 0.8]))


@every_kind
@pytest.mark.parametrize(
    "codes, error, message",
    [
        (torch.full((3, 2), 16), ValueError, r"0\.\.15, .* got .* 16 to 16"),
        (torch.tensor([[0, -2]]), ValueError, r"0\.\.15, .* got .* -2 to 0"),
        (torch.full((3, 2), 255, dtype=torch.uint8), ValueError, "255 to 255"),
        (torch.tensor([[0, 2**64 - 1]], dtype=torch.uint64), ValueError, "-1"),
        (torch.zeros(3, 2), TypeError, "integers, got torch.float32"),
        (torch.ones(3, 2).bool(), TypeError, "integers, got torch.bool"),
        (torch.zeros(4, 3).long(), ValueError, r"[12] to 2 .* got .*\(4, 3\)"),
        (torch.tensor(3), ValueError, r"[12] to 2 .* got the shape \(\)"),
    ],
)
def test_codes_that_do_not_exist_are_told(kind, codes, error, message):
    with pytest.raises(error, match=message):
        kind().decode(codes)


@every_kind
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["int", "uint"])
def test_codes_of_any_integer_type_are_decoded(kind, sign, bits):
    quantizer, codes = kind(), torch.randint(16, (3, 5, 2))
    other = codes.to(getattr(torch, f"{sign}{bits}"))
    assert torch.equal(quantizer.decode(other), quantizer.decode(codes))


def test_reinitialization_says_what_it_lacks():
    with pytest.raises(ValueError, match="reservoir_size above 0"):
        VectorQuantizer(8, 16, reservoir_size=0).reinitialize()
    with pytest.raises(ValueError, match="start must be one of"):
        product().reinitialize(start="anywhere")


@every_kind
@pytest.mark.parametrize(
    "vectors, message",
    [
        (torch.randn(30, 7), r"\[N, 8\], got .*\(30, 7\)"),
        (torch.randn(3, 10, 8), r"\[N, 8\], got .*\(3, 10, 8\)"),
        (F.pad(torch.randn(30, 7), (0, 1), value=torch.nan), "NaN"),
    ],
)
def test_vectors_that_cannot_be_clustered_are_told(kind, vectors, message):
    quantizer = kind()
    quantizer(torch.randn(30, 8))
    before = quantizer.codebook.detach().clone()
    with pytest.raises(ValueError, match=message):
        quantizer.reinitialize(vectors)
    assert torch.equal(quantizer.codebook, before)
    assert len(quantizer.reservoir) == 30


@pytest.mark.parametrize("shape", [(10, 5), (12, 1), (10, 12)])
def test_norm_of_a_wrong_dimension_is_refused(shape):
    with pytest.raises(ValueError, match="6 features, got a tensor of shape"):
        MaskedBatchNorm(6)(torch.randn(shape))
