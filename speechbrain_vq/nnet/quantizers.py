"""Vector quantizers with a bottleneck that does not collapse."""

import inspect
import math
import warnings
import weakref
from collections.abc import Mapping
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechbrain_vq._compat import OldQuantizer
from speechbrain_vq.nnet.codebooks import CODEBOOKS, FSQCodebook, Reinit
from speechbrain_vq.nnet.estimators import ESTIMATORS
from speechbrain_vq.nnet.losses import (
    batch_metrics,
    quantization_loss,
    usage_loss,
)
from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.nnet.normalization import MaskedBatchNorm
from speechbrain_vq.nnet.reservoir import Reservoir
from speechbrain_vq.nnet.utils import (
    broadcast,
    check_choice,
    check_sizes,
    in_transform,
    is_recomputed,
    is_traced,
    keep_dtype,
    rank,
    refuse_transform,
    world_size,
)

# A vector longer than this has a squared length, and so a variance, without end.
_LARGEST = 1e15


class WarmupError(RuntimeError, ValueError):
    """There are no codes yet."""


class VQOutput(NamedTuple):
    """Output of a quantizer.

    Arguments
    ---------
    quantized : torch.Tensor
        The quantized input, in its shape; zero at padding.
    indices : torch.Tensor
        The codes, [..., T], or [..., T, C] where there are C codebooks;
        meaningless at padding, -1 in a warm-up and for codebooks left out.
    loss : torch.Tensor
        Weighted sum of the losses, a scalar; NaN where a valid frame of the
        input is not finite, or longer than 1e15, and, with one rank, where
        there is no valid frame.
    metrics : dict
        Detached sums over valid frames: ``counts`` [C, K] of the codes,
        ``num_vectors``, ``num_nonfinite``, ``sq_error``, ``latent_sum`` and
        ``latent_sq_sum``; and ``perplexity``, the mean over the codebooks.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    metrics: dict[str, Tensor]


class VectorQuantizer(OldQuantizer, nn.Module):
    """Vector quantizer that is robust by default (arXiv 2005.08520).

    Encoder outputs are normalized over valid frames, projected to
    ``codebook_dim``, and each becomes its nearest codeword, in fp32. In
    training they enter a reservoir, from which ``CodebookTrainer``
    re-initializes the codebook by k-means.

    Arguments
    ---------
    input_dim : int
        Dimension of the encoder outputs.
    codebook_size : int
        Number of codewords of each codebook, K.
    codebook_dim : int, optional
        Dimension of a codeword, d, to which linear layers project and back;
        by default one for every 3 bits of an FSQ code, and for each of LFQ.
    num_codebooks : int
        Number of codebooks that code a latent together, C.
    composition : str
        ``"product"``: side by side, each for its slice of the latent;
        ``"residual"``: in a row, each coding what those before it left over.
    norm : str, optional
        Statistics that normalize in training: ``"initial"``, ``"running"``,
        ``"batch"`` (the paper's) or None; see ``MaskedBatchNorm``.
    norm_position : str
        ``"input"``: before the projection; ``"latent"``: on what is quantized,
        with statistics that the codebooks share (the paper's code on images).
    denormalize : bool
        Whether ``quantized`` lies in the space of the input, where
        ``encode(decode(codes))`` is ``codes`` without projection and residual
        row. In the normalized space, the default, codes are worth more of
        phones (benchmarks/grid_festvox_ru.md).
    commitment_weight, codebook_weight : float, optional
        Weights of the losses that draw latents to codewords (0.25) and
        codewords to latents (1). Both are 0 with DiVeQ and FSQ, as is the
        second with EMA and LFQ.
    estimator : str
        Gradient estimator: ``"straight_through"``, ``"diveq"`` or
        ``"rotation"``.
    codebook : str
        How the codebook learns: ``"gradient"``, ``"ema"``, or ``"simvq"``: a
        linear map of it does; or not at all: ``"fsq"``, ``"lfq"``. See
        ``speechbrain_vq.nnet.codebooks``.
    codebook_init : str
        ``"normal"``, ``"uniform"`` or ``"xavier"``, see ``Codebook``, or
        ``"kmeans"``: of the first training batch, without ``CodebookTrainer``.
    ema_decay : float, optional
        Decay of an EMA codebook; 0.99 by default.
    reservoir_size : int, optional
        Number of latents kept for re-initialization, by default 20,480 or, if
        more, four for each codeword; 0: none, as of SimVQ, FSQ and LFQ.
    quantizer_dropout : float
        Share of training batches that only the first c codebooks of a residual
        row code, c drawn from 1..C (Zeghidour et al., 2021).
    channel_first : bool
        Whether input and output are [B, input_dim, ...] in place of
        [..., input_dim].
    affine : bool
        Whether the norm learns a scale and a shift, as the paper's does.
    entropy_weight : float, optional
        Weight of the loss that makes the usage of codes in a training batch
        even, by default 0.5 by gradient and with LFQ; 0 with other codebooks,
        where it was not tried, and with unit length and residual rows, which
        do not gain by it.
    unit_length : bool
        Whether latents, each codebook's slice for itself, and codewords are
        scaled to unit length, so that the nearest codeword is that of the
        largest cosine (Yu et al., 2022, arXiv 2110.04627, section 3.2).

    Example
    -------
    >>> quantizer = VectorQuantizer(input_dim=64, codebook_size=512)
    >>> x = torch.randn(2, 50, 64)
    >>> quantized, indices, loss = quantizer(x, torch.tensor([1.0, 0.5]))[:3]
    >>> quantized.shape, indices.shape
    (torch.Size([2, 50, 64]), torch.Size([2, 50]))
    >>> quantizer.decode(quantizer.encode(x)).shape
    torch.Size([2, 50, 64])
    """

    def __init__(
        self,
        input_dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        num_codebooks: int = 1,
        composition: str = "product",
        norm: str | None = "initial",
        norm_position: str = "input",
        denormalize: bool = False,
        commitment_weight: float | None = None,
        codebook_weight: float | None = None,
        estimator: str = "straight_through",
        codebook: str = "gradient",
        codebook_init: str = "normal",
        ema_decay: float | None = None,
        reservoir_size: int | None = None,
        quantizer_dropout: float = 0.0,
        channel_first: bool = False,
        affine: bool = False,
        entropy_weight: float | None = None,
        unit_length: bool = False,
    ):
        super().__init__()
        check_choice("composition", composition, ("product", "residual"))
        check_choice("norm", norm, ("initial", "running", "batch", None))
        check_choice("norm_position", norm_position, ("input", "latent"))
        check_choice("estimator", estimator, tuple(ESTIMATORS))
        check_choice("codebook", codebook, tuple(CODEBOOKS))
        kind, is_residual = CODEBOOKS[codebook], composition == "residual"
        on_latents = norm_position == "latent"
        is_lattice = issubclass(kind, FSQCodebook)
        no_loss = estimator == "diveq" or codebook == "fsq"
        for message, is_given in {
            "norm_position='latent', denormalize and affine need a norm.": (
                norm is None and (on_latents or denormalize or affine)
            ),
            f"A codebook of {codebook!r} has no codebook loss: leave "
            "codebook_weight out.": not kind.has_loss and codebook_weight,
            f"A codebook of {codebook!r} is never re-initialized: leave "
            "reservoir_size and codebook_init='kmeans' out.": (
                not kind.is_reinitialized
                and (reservoir_size or codebook_init == "kmeans")
            ),
            "ema_decay needs codebook='ema'.": codebook != "ema" and ema_decay,
            "quantizer_dropout needs composition='residual': of a product no "
            "codebook can be left out.": quantizer_dropout and not is_residual,
            "unit_length, FSQ and LFQ need composition='product', and each does "
            "without the others.": (is_residual + unit_length + is_lattice > 1),
            "unit_length and FSQ lose what denormalize would give back.": (
                denormalize and (unit_length or codebook == "fsq")
            ),
        }.items():
            if is_given:
                raise ValueError(message)
        check_sizes(
            input_dim=input_dim,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
        )
        parts = 1 if is_residual else num_codebooks
        if codebook_dim is None and is_lattice:
            codebook_dim = kind.default_dim(codebook_size)
        elif codebook_dim is None:
            codebook_dim, rest = divmod(input_dim, parts)
            if rest:
                raise ValueError(
                    f"input_dim={input_dim} does not divide into "
                    f"{num_codebooks} codebooks: give codebook_dim."
                )
        check_sizes(codebook_dim=codebook_dim)
        if reservoir_size is None:
            most = max(20480, 4 * codebook_size)
            reservoir_size = most if kind.is_reinitialized else 0
        check_sizes(least=0, reservoir_size=reservoir_size)
        # Through DiVeQ, the loss of the model reaches codewords.
        if commitment_weight is None:
            commitment_weight = 0.0 if no_loss else 0.25
        if codebook_weight is None:
            codebook_weight = 0.0 if no_loss or not kind.has_loss else 1.0
        if entropy_weight is None:
            without = codebook not in ("gradient", "lfq")
            without |= unit_length or is_residual
            entropy_weight = 0.0 if without else 0.5
        for name, value, most in (
            ("commitment_weight", commitment_weight, math.inf),
            ("codebook_weight", codebook_weight, math.inf),
            ("entropy_weight", entropy_weight, math.inf),
            ("quantizer_dropout", quantizer_dropout, 1),
        ):
            if not isinstance(value, Real) or not 0 <= value <= most:
                limits = "at least 0" if most == math.inf else "in 0..1"
                raise ValueError(
                    f"{name} must be a number {limits}, got {value!r}."
                )
        self.input_dim, self.latent_dim = input_dim, parts * codebook_dim
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.codebook_dim, self.composition = codebook_dim, composition
        self.norm_position, self.denormalize = norm_position, denormalize
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.entropy_weight = entropy_weight
        self.estimate = ESTIMATORS[estimator]
        self.quantizer_dropout = quantizer_dropout
        self.channel_first = channel_first
        # Whether codes come without a dimension for the codebook.
        self.folds = num_codebooks == 1
        self.frozen = False
        # Arguments of CodebookTrainer that the preset has.
        self.trainer_options = {}
        # Whether the codes are those of a state that was loaded.
        self.is_pretrained = False
        # Whether this is a warm-up; the buffer, 1 in a warm-up, is for copies
        # and files, and is averaged like other weights.
        self._bypass = False
        self.register_buffer("in_warmup", torch.zeros((), dtype=torch.float32))
        self._last_version = self._warmup_version()
        self._needs_kmeans = codebook_init == "kmeans"
        self.norm = None
        if norm is not None:
            self.norm = MaskedBatchNorm(
                codebook_dim if on_latents else input_dim,
                momentum=0.01 if norm == "running" else 0.1,
                affine=affine,
                statistics=norm,
            )
        self.project = self.project_back = nn.Identity()
        if self.latent_dim != input_dim:
            dims = input_dim, self.latent_dim
            self.project = nn.Linear(*dims, dtype=torch.float32)
            self.project_back = nn.Linear(*dims[::-1], dtype=torch.float32)
        options = {"decay": 0.99 if ema_decay is None else ema_decay}
        self.embedding = kind(
            num_codebooks,
            codebook_size,
            codebook_dim,
            init="normal" if self._needs_kmeans else codebook_init,
            residual=is_residual,
            unit_length=unit_length,
            **options if codebook == "ema" else {},
        )
        self.reservoir = Reservoir(reservoir_size, self.latent_dim)

    @classmethod
    def from_preset(
        cls, preset: str | Mapping, *sizes, **changes
    ) -> "VectorQuantizer":
        """Build the quantizer of a preset; in a yaml by ``!apply:``.

        Arguments
        ---------
        preset : str or mapping
            Name of the preset, see ``preset_names()``, or what its file holds,
            as a yaml includes it. Its schedule and learning rate are those of
            ``CodebookTrainer`` and ``VQMixin``, unless they are given others.
        *sizes, **changes
            ``input_dim`` and ``codebook_size``, and other arguments of the
            class, or keys of a preset, in place of the preset's.

        Example
        -------
        >>> VectorQuantizer.from_preset("residual", 64, 512).num_codebooks
        2
        """
        from speechbrain_vq.presets import (
            TRAINER_OPTIONS,
            preset_values,
            trainer_options,
        )

        values = preset_values(preset)
        of_trainer = {
            k: changes.pop(k) for k in TRAINER_OPTIONS if k in changes
        }
        quantizer = cls(**cls.preset_arguments(values, *sizes, **changes))
        quantizer.trainer_options = trainer_options({**values, **of_trainer})
        return quantizer

    @classmethod
    def preset_arguments(
        cls,
        preset: str | Mapping,
        input_dim: int,
        codebook_size: int,
        **changes,
    ) -> dict:
        """Return what ``from_preset`` calls the class with."""
        from speechbrain_vq.presets import quantizer_options

        sizes = {"input_dim": input_dim, "codebook_size": codebook_size}
        return {**sizes, **quantizer_options(preset), **changes}

    @property
    def codebook(self) -> Tensor:
        """The codewords, [num_codebooks, codebook_size, codebook_dim], before
        they are scaled to unit length."""
        return self.embedding.weight

    @property
    def bypass(self) -> bool:
        """Whether the quantizer is in a warm-up, without quantization;
        ``CodebookTrainer`` sets it."""
        # A copy of averaged weights learns it by the buffer. In training, and
        # by a buffer that has not changed, a GPU is not waited for.
        on_cpu = self.in_warmup.device.type == "cpu"
        if not self.training and (
            on_cpu or self._warmup_version() != self._last_version
        ):
            self._read_warmup()
        return self._bypass

    @bypass.setter
    def bypass(self, value: bool) -> None:
        if value != self._bypass:
            self._bypass = value
            self.in_warmup.fill_(float(value))
            self._last_version = self._warmup_version()

    def _read_warmup(self) -> None:
        """Set ``_bypass`` from the buffer, where that has a value to read."""
        flag = self.in_warmup
        # Not of a fake tensor either.
        if is_traced() or flag.is_meta or type(flag) is not Tensor:
            return
        value = float(flag)
        if not 0 <= value <= 1:  # Memory that was never set.
            value = float(flag.zero_())
        self._bypass, self._last_version = value > 0.5, self._warmup_version()

    def _warmup_version(self):
        """Identity of the buffer, and how often it was written."""
        flag = self.in_warmup
        return id(flag), 0 if flag.is_inference() else flag._version

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> VQOutput:
        """Quantize.

        Arguments
        ---------
        x : torch.Tensor
            Encoder outputs, [..., input_dim]; [B, T, ..., input_dim] with
            lengths.
        lengths : torch.Tensor, optional
            Lengths, [B]: relative where floating point, in frames where
            integer.
        mask : torch.Tensor, optional
            Booleans [...], True at valid frames; in place of lengths.
        num_quantizers : int, optional
            Number of codebooks of a residual row to use, the first ones.

        Returns
        -------
        VQOutput
            Named tuple (quantized, indices, loss, metrics).

        Raises
        ------
        ValueError
            If the shapes do not fit.
        """
        if self.channel_first:
            x = x.movedim(1, -1)
        frames = self._check_input(x, lengths, mask)
        used = self._num_used(num_quantizers)
        learns = self.training and not is_recomputed()
        with torch.autocast(x.device.type, enabled=False):
            flat, frames = x.float().flatten(0, -2), frames.flatten()
            # In one pass; NaN is not below anything.
            finite = torch.linalg.vector_norm(flat.detach(), dim=-1) < _LARGEST
            num_nonfinite = (frames & ~finite).sum()
            healthy = num_nonfinite == 0
            # One bad frame and nothing learns from the batch.
            valid = frames & healthy
            flat = flat.masked_fill(~(frames & finite).unsqueeze(1), 0.0)
            latents = self._latents(flat, valid)
            if learns:
                self._collect(latents, valid)
            output = self._quantize(latents, valid, used, learns)
            indices, codes, loss, metrics = output
            metrics["num_nonfinite"] = num_nonfinite
            out = self._output(codes)
            if lengths is not None or mask is not None:
                out = out * frames.unsqueeze(1)
            # A rank may have no frame where others have some.
            has_loss = valid.any() if world_size() == 1 else healthy
            loss = torch.where(has_loss, loss, torch.nan)
        indices = indices.reshape(*x.shape[:-1], self.num_codebooks)
        if self.folds:
            indices = indices.squeeze(-1)
        out = out.to(x.dtype).reshape(x.shape)
        if self.channel_first:
            out = out.movedim(-1, 1)
        return VQOutput(out, indices, loss, metrics)

    @torch.no_grad()
    def encode(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> Tensor:
        """Encode encoder outputs as ``eval()`` does; no state changes.

        Arguments
        ---------
        x, lengths, mask, num_quantizers
            See ``forward``.

        Returns
        -------
        torch.Tensor
            The codes, [...], or [..., C] where there are C codebooks; -1 for
            those left out, meaningless at padding.

        Raises
        ------
        WarmupError
            In a warm-up, where there are no codes yet; a RuntimeError.
        ValueError
            If a valid frame is not finite, or longer than 1e15.
        """
        # Each module's own mode: a part may be frozen by itself.
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            if self.bypass:
                raise WarmupError(
                    "The quantizer is in its warm-up, where nothing is "
                    "quantized: there are no codes. Train past the schedule's "
                    "warm-up."
                )
            output = self(x, lengths, mask, num_quantizers)
        finally:
            for module, training in modes:
                module.training = training
        nonfinite = output.metrics["num_nonfinite"]
        if not is_traced() and nonfinite:
            raise ValueError(
                f"{int(nonfinite)} frames of the input, of shape "
                f"{tuple(x.shape)}, hold NaN or infinity, or are longer than "
                f"{_LARGEST:g}."
            )
        return output.indices

    def decode(self, indices: Tensor) -> Tensor:
        """Decode codes to vectors.

        Arguments
        ---------
        indices : torch.Tensor
            Codes, integers [...], or [..., C] where there are C codebooks; of
            a residual row also the first c. -1 stands for no code.

        Returns
        -------
        torch.Tensor
            Vectors, [..., input_dim]; zero where there is no code at all.

        Raises
        ------
        ValueError
            If the shape does not fit or a code is not in the codebook.
        """
        if self.folds:
            indices = indices.unsqueeze(-1)
        self._check_codes(indices)
        indices = indices.long()
        # In fp32, as forward: the two must give the same bits.
        with torch.autocast(indices.device.type, enabled=False):
            flat = indices.reshape(-1, indices.shape[-1])
            codewords = self.embedding(flat.clamp(min=0))
            codewords = codewords * (flat >= 0).unsqueeze(-1)
            vectors = self._output(self.embedding.combine(codewords))
            vectors = vectors * (flat >= 0).any(1, keepdim=True)
        vectors = vectors.reshape(*indices.shape[:-1], self.input_dim)
        if self.channel_first and vectors.dim() > 1:
            vectors = vectors.movedim(-1, 1)
        return vectors

    @torch.no_grad()
    def reinitialize(
        self,
        vectors: Tensor | None = None,
        start: str = "kmeans++",
        generator: torch.Generator | None = None,
    ) -> Reinit | None:
        """Re-initialize the codebook by k-means (the re-estimation of arXiv
        2005.08520) and empty the reservoir. All ranks must call it, and take
        the codebook of the first.

        Arguments
        ---------
        vectors : torch.Tensor, optional
            Latents to cluster, [N, latent_dim], finite; by default the
            reservoir's.
        start : str
            Where k-means starts: ``"kmeans++"`` (the paper), or
            ``"codebook"``, so that most codes keep their meaning.
        generator : torch.Generator, optional
            Source of the random numbers of k-means.

        Returns
        -------
        Reinit or None
            None where there is no vector, the codebook is frozen or fixed, or
            this is not the first rank.

        Raises
        ------
        ValueError
            If there is no reservoir and no vectors are given, or they do not
            fit.
        """
        check_choice("start", start, ("kmeans++", "codebook"))
        if self.is_codebook_frozen:
            self.reservoir.reset()
            return None
        if vectors is None:
            if not self.reservoir.capacity:
                raise ValueError(
                    "This quantizer keeps no reservoir to re-initialize its "
                    "codebook from: build it with reservoir_size above 0."
                )
            vectors = self.reservoir.contents()
        if vectors.shape != (len(vectors), self.latent_dim):
            raise ValueError(
                f"The latents to cluster are [N, {self.latent_dim}], got a "
                f"tensor of shape {tuple(vectors.shape)}."
            )
        if not vectors.isfinite().all():
            raise ValueError("The latents to cluster hold NaN or infinity.")
        number, result = torch.tensor(len(vectors), device=vectors.device), None
        broadcast([number])
        if number > 0:
            if rank() == 0:
                result = self.embedding.reinitialize(
                    vectors.float(), start, generator
                )
            broadcast([self.codebook, *self.embedding.buffers()])
            self._needs_kmeans = self.is_pretrained = False
        self.reservoir.reset()
        return result

    def freeze(self) -> "VectorQuantizer":
        """Freeze codebook, norm and projections for good, and return self."""
        self.requires_grad_(False)
        self.frozen = True
        return self.eval()

    def train(self, mode: bool = True):
        """As ``nn.Module.train``; a frozen quantizer stays in evaluation."""
        self._read_warmup()
        return super().train(mode and not self.frozen)

    def requires_grad_(self, requires_grad: bool = True):
        """As ``nn.Module.requires_grad_``; reaches EMA codebooks as well."""
        self.embedding.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    @property
    def is_codebook_frozen(self) -> bool:
        """Whether neither training nor re-initialization may change the
        codebook."""
        is_off = self.training and not self.embedding.training
        return self.frozen or is_off or not self.embedding.learnable

    def training_state(self, over_ranks: bool = False) -> dict:
        """Return warm-up and reservoir; on request that of all ranks, which all
        must ask."""
        return {
            "bypass": self.bypass,
            "needs_kmeans": self._needs_kmeans,
            "reservoir": self.reservoir.state_dict(over_ranks),
        }

    def load_training_state(self, state: dict) -> None:
        """Restore what ``training_state()`` returned."""
        self.bypass = bool(state["bypass"])
        self._needs_kmeans = bool(state["needs_kmeans"])
        if self.reservoir.capacity and state["reservoir"]:
            self.reservoir.load_state_dict(state["reservoir"])

    def extra_repr(self) -> str:
        """Return the main sizes, for ``print``."""
        names = ("input_dim", "num_codebooks", "codebook_size", "codebook_dim")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    # Steps of a forward ----------------------------------------------------

    def _num_used(self, requested: int | None) -> int:
        """Number of codebooks to use in a forward; none in a warm-up."""
        if requested is not None:
            check_sizes(num_quantizers=requested)
            self._check_number(requested, f"num_quantizers={requested}")
        elif self.training and self.quantizer_dropout:
            draw = torch.rand(())
            number = torch.randint(1, self.num_codebooks + 1, ())
            requested = int(number) if draw < self.quantizer_dropout else None
        return 0 if self.bypass else requested or self.num_codebooks

    def _latents(self, flat: Tensor, valid: Tensor) -> Tensor:
        """[N, input_dim] -> [N, latent_dim], normalized and projected."""
        on_latents = self.norm_position == "latent"
        if self.norm is not None and not on_latents:
            flat = self.norm(flat, valid, self._bypass)
        parts = self.project(flat).unflatten(1, (-1, self.codebook_dim))
        if self.norm is not None and on_latents:
            each = valid.unsqueeze(1).expand(parts.shape[:2])
            parts = self.norm(parts, each, self._bypass)
        return self.embedding.constrain(parts).flatten(1)

    def _output(self, latents: Tensor) -> Tensor:
        """[N, latent_dim] -> [N, input_dim]."""
        if not self.denormalize:
            return self.project_back(latents)
        if self.norm_position == "latent":
            parts = latents.unflatten(1, (-1, self.codebook_dim))
            return self.project_back(self.norm.inverse(parts).flatten(1))
        return self.norm.inverse(self.project_back(latents))

    @torch.no_grad()
    def _collect(self, latents: Tensor, valid: Tensor) -> None:
        """Keep latents for re-initialization, or start from them."""
        if self._needs_kmeans and not (self.bypass or self.is_codebook_frozen):
            self.reinitialize(latents[valid])
        self.reservoir.add(latents, valid)

    def _quantize(self, latents, valid, used, learns):
        """Indices [N, C], quantized [N, latent_dim], loss and metrics; without
        a codebook used, latents pass as they are."""
        table, previous = self.embedding.table, self.embedding.previous
        mass, is_row = valid.float(), self.embedding.residual
        if not used:
            indices = latents.new_zeros(len(latents), 0, dtype=torch.long)
            quantized, sq_error = latents, latents.new_zeros(())
            # DDP and GradScaler ask for a gradient of every parameter.
            loss = 0.0 * table.sum()
        else:
            if self.training and not learns and previous is not None:
                # Activation checkpointing runs the forward before the update.
                table = previous
            if self.training and not self.embedding.training:
                table = table.detach()
            indices, targets = self.embedding.code(latents, table[:used])
            codewords = self.embedding(indices, table)
            loss, sq_errors = quantization_loss(
                targets,
                codewords,
                mass,
                self.commitment_weight,
                self.codebook_weight,
                over_ranks=self.training,
            )
            if self.entropy_weight and self.training:
                uneven = usage_loss(targets, table, mass, sq_errors)
                loss = loss + self.entropy_weight * uneven
            if learns:
                self.embedding.learn(targets.detach(), indices, valid)
            combined = self.embedding.combine(codewords)
            quantized = self.estimate(latents, combined)
            if learns and self.codebook_weight and table.requires_grad:
                _warn_of_lost_loss(quantized, loss)
            sq_error = sq_errors[-1] if is_row else sq_errors.sum()
        metrics = batch_metrics(latents, mass, indices, table, sq_error)
        left_out = self.num_codebooks - used
        if left_out:
            indices = nn.functional.pad(indices, (0, left_out), value=-1)
        return indices, quantized, loss, metrics

    # Checks ----------------------------------------------------------------

    def _check_input(self, x, lengths, mask) -> Tensor:
        """Check an input, and return the mask of its valid frames."""
        if not x.is_floating_point():
            raise TypeError(
                f"A quantizer takes real floating point vectors, got {x.dtype}."
            )
        if x.dim() < 2 or x.shape[-1] != self.input_dim:
            raise ValueError(
                f"A quantizer of input_dim={self.input_dim} takes [..., "
                f"{self.input_dim}], got a tensor of shape {tuple(x.shape)}. "
                "For [B, input_dim, ...] build it with channel_first."
            )
        refuse_transform(self)
        return frame_mask(x, lengths, mask)

    def _check_number(self, number: int, given: str) -> None:
        """Check a number of codebooks."""
        books = self.num_codebooks
        least = 1 if self.embedding.residual else books
        if not least <= number <= books:
            raise ValueError(
                f"This {self.composition} quantizer has {books} codebooks and "
                f"works with {least} to {books} of them, got {given}."
            )

    def _check_codes(self, indices: Tensor) -> None:
        dtype, shape = indices.dtype, tuple(indices.shape)
        if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
            raise TypeError(f"Codes are integers, got {dtype}.")
        self._check_number(shape[-1] if shape else 0, f"the shape {shape}")
        if indices.numel() and not in_transform():
            low, high = map(int, torch.aminmax(indices.long()))
            if low < -int(dtype.is_signed) or high >= self.codebook_size:
                raise ValueError(
                    f"Codes must lie in 0..{self.codebook_size - 1}, or be -1 "
                    f"for none, got values from {low} to {high}."
                )

    # State -----------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}embedding.weight" in state_dict:
            self._needs_kmeans = False
            self._read_warmup()
            self.is_pretrained = not self._bypass

    def _apply(self, fn, recurse=True):
        # ``model.half()`` leaves a quantizer in fp32, in which it works.
        return super()._apply(keep_dtype(fn), recurse)

    def __prepare_scriptable__(self):
        raise RuntimeError(
            "torch.jit.script cannot compile a quantizer: leave it out of "
            "jit_module_keys, and use torch.compile for training and "
            "torch.export or torch.jit.trace for inference."
        )


class ResidualVectorQuantizer(VectorQuantizer):
    """``VectorQuantizer`` of codebooks in a row, each coding what those before
    it left over; codes are [..., C] and decode from any first c of them.

    Arguments
    ---------
    num_quantizers : int
        Number of codebooks in the row, C.
    input_dim, codebook_size, codebook_dim, **options
        Those of ``VectorQuantizer``, ``num_codebooks`` and ``composition``
        excepted; ``codebook_dim`` is ``input_dim`` by default.

    Example
    -------
    >>> quantizer = ResidualVectorQuantizer(4, input_dim=64, codebook_size=32)
    >>> codes = quantizer(torch.randn(2, 50, 64)).indices
    >>> codes.shape, quantizer.decode(codes[..., :2]).shape
    (torch.Size([2, 50, 4]), torch.Size([2, 50, 64]))
    """

    def __init__(
        self,
        num_quantizers: int,
        input_dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        **options,
    ):
        check_sizes(num_quantizers=num_quantizers)
        sizes = input_dim, codebook_size, codebook_dim, num_quantizers
        super().__init__(*sizes, "residual", **options)
        self.folds = False

    @classmethod
    def preset_arguments(cls, *arguments, **changes):
        """See ``VectorQuantizer.preset_arguments``."""
        options = super().preset_arguments(*arguments, **changes)
        options.pop("composition")
        options.setdefault("num_quantizers", options.pop("num_codebooks"))
        return options


def _warn_of_lost_loss(quantized: Tensor, loss: Tensor) -> None:
    """Warn in the backward pass if the graph of the loss is gone by then."""
    if is_traced() or not quantized.requires_grad:
        return
    used = []

    def mark_used(gradient):
        used.append(True)

    def check(gradient):
        if graph() is None and not used:
            warnings.warn(
                "The loss of a VectorQuantizer went nowhere, so its codebook "
                "does not learn: add `output.loss` to the loss. A container "
                "such as SpeechBrain's Sequential keeps the first item of the "
                "output only: call the quantizer outside of it.",
                stacklevel=2,
            )

    # The graph of the loss holds this hook, and nothing else does.
    graph = weakref.ref(mark_used)
    loss.register_hook(mark_used)
    quantized.register_hook(check)


def _name_options(init) -> None:
    """Name the options of ``VectorQuantizer`` in the signature of a method that
    passes them on."""
    signature = inspect.signature(init)
    *own, _ = signature.parameters.values()
    taken = {*signature.parameters, "num_codebooks", "composition"}
    options = inspect.signature(VectorQuantizer).parameters.values()
    own += [
        p.replace(kind=p.KEYWORD_ONLY) for p in options if p.name not in taken
    ]
    init.__signature__ = signature.replace(parameters=own)


_name_options(ResidualVectorQuantizer.__init__)
