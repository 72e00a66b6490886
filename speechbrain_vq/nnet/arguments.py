"""Check the constructor arguments of ``VectorQuantizer``, and set defaults."""

import math
from numbers import Real
from types import SimpleNamespace
from typing import Any

from speechbrain_vq.nnet.codebooks import CODEBOOKS, FSQCodebook
from speechbrain_vq.nnet.estimators import ESTIMATORS
from speechbrain_vq.nnet.utils import check_choice, check_sizes


def resolve_arguments(given: dict[str, Any]) -> SimpleNamespace:
    """Check the arguments of ``VectorQuantizer``, and replace None by defaults.

    Raises ValueError if a value is out of range or arguments conflict.
    """
    args = SimpleNamespace(**given)
    check_choice("composition", args.composition, ("product", "residual"))
    check_choice("norm", args.norm, ("initial", "running", "batch", None))
    check_choice("norm_position", args.norm_position, ("input", "latent"))
    check_choice("estimator", args.estimator, tuple(ESTIMATORS))
    check_choice("codebook", args.codebook, tuple(CODEBOOKS))
    kind, name = CODEBOOKS[args.codebook], f"codebook={args.codebook!r}"
    is_residual = args.composition == "residual"
    is_lattice = issubclass(kind, FSQCodebook)
    uses_norm = args.norm_position == "latent" or args.denormalize
    conflicts = {
        "norm_position='latent', denormalize and affine need a norm.": (
            args.norm is None and (uses_norm or args.affine)
        ),
        f"{name} has no codebook loss: omit codebook_weight.": (
            args.codebook_weight and not kind.has_loss
        ),
        f"{name} is never re-initialized: omit reservoir_size and "
        "codebook_init='kmeans'.": not kind.is_reinitialized
        and (args.reservoir_size or args.codebook_init == "kmeans"),
        "ema_decay needs codebook='ema'.": (
            args.ema_decay and args.codebook != "ema"
        ),
        "quantizer_dropout needs composition='residual': a product needs "
        "all its codebooks.": args.quantizer_dropout and not is_residual,
        "unit_length, FSQ and LFQ need composition='product' and are "
        "mutually exclusive.": is_residual + args.unit_length + is_lattice > 1,
        "unit_length and FSQ lose the scale that denormalize would restore.": (
            args.denormalize and (args.unit_length or args.codebook == "fsq")
        ),
    }
    for message, is_given in conflicts.items():
        if is_given:
            raise ValueError(message)
    names = "input_dim", "codebook_size", "num_codebooks"
    check_sizes(**{name: given[name] for name in names})
    parts = 1 if is_residual else args.num_codebooks
    if args.codebook_dim is None and is_lattice:
        args.codebook_dim = kind.default_dim(args.codebook_size)
    elif args.codebook_dim is None:
        args.codebook_dim, remainder = divmod(args.input_dim, parts)
        if remainder:
            raise ValueError(
                f"input_dim={args.input_dim} is not divisible by "
                f"num_codebooks={args.num_codebooks}: set codebook_dim."
            )
    check_sizes(codebook_dim=args.codebook_dim)
    args.latent_dim = parts * args.codebook_dim
    if args.reservoir_size is None:
        default = max(20480, 4 * args.codebook_size)
        args.reservoir_size = default if kind.is_reinitialized else 0
    check_sizes(least=0, reservoir_size=args.reservoir_size)
    # With DiVeQ, the model's own loss trains the codewords.
    no_loss = args.estimator == "diveq" or args.codebook == "fsq"
    if args.commitment_weight is None:
        args.commitment_weight = 0.0 if no_loss else 0.25
    if args.codebook_weight is None:
        args.codebook_weight = 0.0 if no_loss or not kind.has_loss else 1.0
    if args.entropy_weight is None:
        helps = args.codebook in ("gradient", "lfq")
        helps = helps and not (args.unit_length or is_residual)
        args.entropy_weight = 0.5 if helps else 0.0
    weights = "commitment_weight", "codebook_weight", "entropy_weight"
    for name in (*weights, "quantizer_dropout"):
        value, limit = getattr(args, name), math.inf if name in weights else 1
        if not isinstance(value, Real) or not 0 <= value <= limit:
            limits = "at least 0" if name in weights else "in 0..1"
            raise ValueError(
                f"{name} must be a number {limits}, got {value!r}."
            )
    return args
