"""Vector quantizers whose codebooks do not collapse."""

import inspect
import warnings
import weakref
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechbrain_vq._compat import OldQuantizer
from speechbrain_vq.nnet.arguments import resolve_arguments
from speechbrain_vq.nnet.codebooks import CODEBOOKS, Reinit
from speechbrain_vq.nnet.estimators import ESTIMATORS
from speechbrain_vq.nnet.losses import (
    batch_metrics,
    entropy_loss,
    quantization_loss,
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

# Maximum length of an input vector; squares of longer ones may overflow fp32.
_MAX_LENGTH = 1e15

# Number of training batches without a CodebookTrainer before a warning.
_MAX_UNATTENDED = 200


class WarmupError(RuntimeError, ValueError):
    """Codes were requested during the warm-up, when there are none."""


class VQOutput(NamedTuple):
    """Output of a quantizer.

    Arguments
    ---------
    quantized : torch.Tensor
        Quantized input, in the shape of the input; zero at padding.
    indices : torch.Tensor
        Codes, [..., T], or [..., T, C] with several codebooks. Undefined at
        padding; -1 during the warm-up and for unused codebooks.
    loss : torch.Tensor
        Weighted sum of the losses, a scalar. NaN if a valid frame of the input
        is non-finite or longer than 1e15, and, on a single rank, if no frame is
        valid.
    metrics : dict
        Detached sums over valid frames: code ``counts`` [C, K],
        ``num_vectors``, ``num_nonfinite``, ``sq_error``, ``latent_sum`` and
        ``latent_sq_sum``; and ``perplexity``, the mean over the codebooks in
        use, NaN during the warm-up.
    """

    quantized: Tensor
    indices: Tensor
    loss: Tensor
    metrics: dict[str, Tensor]


class VectorQuantizer(OldQuantizer, nn.Module):
    """Vector quantizer whose codebook does not collapse (arXiv 2005.08520).

    Encoder outputs are normalized over valid frames, projected to
    ``codebook_dim`` and replaced with their nearest codewords, in fp32. During
    training, the projected latents also fill a reservoir, from which
    ``CodebookTrainer`` re-initializes the codebook by k-means.

    Arguments
    ---------
    input_dim : int
        Dimension of the encoder outputs.
    codebook_size : int
        Number of codewords per codebook, K.
    codebook_dim : int, optional
        Dimension of a codeword, d. Linear layers project to it and back. By
        default there is no projection, except for FSQ (one dimension per 3 bits
        of a code) and LFQ (one per bit).
    num_codebooks : int
        Number of codebooks that jointly quantize a latent, C.
    composition : str
        ``"product"``: each codebook quantizes a slice of the latent;
        ``"residual"``: each codebook quantizes the residual of the previous
        ones.
    norm : str, optional
        Statistics for normalization in training: ``"initial"``, ``"running"``,
        ``"batch"`` (as in the paper) or None; see ``MaskedBatchNorm``.
    norm_position : str
        ``"input"``: normalize before the projection; ``"latent"``: after it,
        with statistics shared by all codebooks (as in the paper's image code).
    denormalize : bool
        Whether ``quantized`` is mapped back to the scale of the input. Then
        ``encode(decode(codes))`` returns ``codes``, unless there is a
        projection or a residual composition. By default it stays normalized,
        which gives codes with higher PNMI (benchmarks/grid_festvox_ru.md).
    commitment_weight, codebook_weight : float, optional
        Weights of the losses that pull latents toward codewords (default: 0.25)
        and codewords toward latents (default: 1). Both default to 0 with DiVeQ
        and FSQ, as does ``codebook_weight`` with EMA and LFQ.
    estimator : str
        Gradient estimator: ``"straight_through"``, ``"diveq"`` or
        ``"rotation"``.
    codebook : str
        ``"gradient"`` or ``"ema"``: learned codewords; ``"simvq"``: a learned
        linear map of fixed codewords; ``"fsq"`` or ``"lfq"``: fixed codewords.
        See ``speechbrain_vq.nnet.codebooks``.
    codebook_init : str
        Initial codewords: ``"normal"``, ``"uniform"`` or ``"xavier"``, see
        ``Codebook``; or ``"kmeans"``, k-means centroids of the first training
        batch, for training without ``CodebookTrainer``.
    ema_decay : float, optional
        Decay of an EMA codebook; 0.99 by default.
    reservoir_size : int, optional
        Number of latents stored for re-initialization. Default: 20,480, or four
        per codeword if that is more; 0 with SimVQ, FSQ and LFQ.
    quantizer_dropout : float
        Fraction of training batches in which only the first c codebooks of a
        residual quantizer are used, with c drawn from 1..C (Zeghidour et al.,
        2021).
    channel_first : bool
        Whether input and output are [B, input_dim, ...] instead of
        [..., input_dim].
    affine : bool
        Whether the norm learns a scale and a shift, as in the paper.
    entropy_weight : float, optional
        Weight of the entropy loss, which balances code usage in a training
        batch. Default: 0.5 with codebooks trained by gradient and LFQ; 0 with
        others (not tested), unit length and residual composition (no gain).
    unit_length : bool
        Whether codewords and each codebook's slice of the latent are scaled to
        unit length, so that the nearest codeword has the highest cosine
        similarity (Yu et al., 2022, arXiv 2110.04627, section 3.2).

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
        args = resolve_arguments(locals())
        super().__init__()
        self.input_dim, self.latent_dim = input_dim, args.latent_dim
        self.num_codebooks, self.codebook_size = num_codebooks, codebook_size
        self.codebook_dim, self.composition = args.codebook_dim, composition
        self.norm_position, self.denormalize = norm_position, denormalize
        self.commitment_weight = args.commitment_weight
        self.codebook_weight = args.codebook_weight
        self.entropy_weight = args.entropy_weight
        self.estimate = ESTIMATORS[estimator]
        self.quantizer_dropout = quantizer_dropout
        self.channel_first = channel_first
        # Whether codes have no codebook dimension.
        self.folds = num_codebooks == 1
        self.frozen = False
        # Arguments of CodebookTrainer from the preset.
        self.trainer_options = {}
        # Whether a CodebookTrainer or the loop re-initializes the codebook, and
        # the number of training batches before that.
        self.is_attended, self._unattended = False, 0
        # Whether the codebook was trained, here or before it was loaded.
        self.is_pretrained = False
        # Whether this is the warm-up. The buffer, 1 during the warm-up, carries
        # the flag into copies and files, and is averaged like any weight.
        self._bypass = False
        self.register_buffer("in_warmup", torch.zeros((), dtype=torch.float32))
        # Until the first training batch, whether k-means was asked for; and
        # whether the codebook still needs it.
        self._starts_by_kmeans = self._needs_kmeans = codebook_init == "kmeans"
        self.norm = None
        if norm is not None:
            self.norm = MaskedBatchNorm(
                input_dim if norm_position == "input" else args.codebook_dim,
                momentum=0.01 if norm == "running" else 0.1,
                affine=affine,
                statistics=norm,
            )
        self.project = self.project_back = nn.Identity()
        if self.latent_dim != input_dim:
            dims = input_dim, self.latent_dim
            self.project = nn.Linear(*dims, dtype=torch.float32)
            self.project_back = nn.Linear(*dims[::-1], dtype=torch.float32)
        decay = {"decay": 0.99 if ema_decay is None else ema_decay}
        self.embedding = CODEBOOKS[codebook](
            num_codebooks,
            codebook_size,
            args.codebook_dim,
            init="normal" if self._needs_kmeans else codebook_init,
            residual=composition == "residual",
            unit_length=unit_length,
            **decay if codebook == "ema" else {},
        )
        self.reservoir = Reservoir(args.reservoir_size, self.latent_dim)

    @classmethod
    def from_preset(
        cls, preset: str | Mapping, *sizes, **changes
    ) -> "VectorQuantizer":
        """Build the quantizer of a preset; in yaml, use ``!apply:``.

        Arguments
        ---------
        preset : str or mapping
            Name of the preset, see ``preset_names()``, or the contents of its
            file. Its schedule and learning rates become the defaults of
            ``CodebookTrainer`` and ``VQMixin``.
        *sizes, **changes
            ``input_dim`` and ``codebook_size``; and any arguments of the class
            or keys of the preset to override.

        Example
        -------
        >>> VectorQuantizer.from_preset("residual", 64, 512).num_codebooks
        2
        """
        from speechbrain_vq import presets

        values, keys = presets.preset_values(preset), presets.TRAINER_OPTIONS
        of_trainer = {k: changes.pop(k) for k in keys if k in changes}
        quantizer = cls(**cls.preset_arguments(values, *sizes, **changes))
        values = {**values, **of_trainer}
        quantizer.trainer_options = presets.trainer_options(values)
        return quantizer

    @classmethod
    def preset_arguments(
        cls,
        preset: str | Mapping,
        input_dim: int,
        codebook_size: int,
        **changes,
    ) -> dict:
        """Return the constructor arguments for a preset."""
        from speechbrain_vq.presets import quantizer_options

        sizes = {"input_dim": input_dim, "codebook_size": codebook_size}
        return {**sizes, **quantizer_options(preset), **changes}

    @property
    def codebook(self) -> Tensor:
        """Codewords, [num_codebooks, codebook_size, codebook_dim], before
        scaling to unit length, if any."""
        return self.embedding.weight

    @property
    def bypass(self) -> bool:
        """Whether the quantizer is in its warm-up, without quantization. Set by
        ``CodebookTrainer``."""
        # Copying or averaging weights sets only the buffer, which is read where
        # the sync that a GPU needs for it does not slow down training.
        if not self.training:
            self._read_warmup()
        return self._bypass

    @bypass.setter
    def bypass(self, value: bool) -> None:
        if value != self._bypass:
            self._bypass = value
            self.in_warmup.fill_(float(value))

    def _read_warmup(self) -> None:
        """Set ``_bypass`` from the buffer, if its value can be read."""
        flag = self.in_warmup
        # Tensor subclasses such as fake tensors may have no value.
        if is_traced() or flag.is_meta or type(flag) is not Tensor:
            return
        value = float(flag)
        if not 0 <= value <= 1:  # Uninitialized memory
            value = float(flag.zero_())
        self._bypass = value > 0.5

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        mask: Tensor | None = None,
        num_quantizers: int | None = None,
    ) -> VQOutput:
        """Quantize encoder outputs.

        Arguments
        ---------
        x : torch.Tensor
            Encoder outputs, [..., input_dim]; with ``lengths``, [B, T, ...,
            input_dim].
        lengths : torch.Tensor, optional
            Lengths, [B]: relative to T if floating point, in frames if integer.
        mask : torch.Tensor, optional
            Boolean mask, [...], True at valid frames; an alternative to
            ``lengths``.
        num_quantizers : int, optional
            Number of codebooks to use, from the first of a residual quantizer.

        Returns
        -------
        VQOutput
            Named tuple (quantized, indices, loss, metrics).
        """
        if self.frozen and not in_transform():
            if any(p.requires_grad for p in self.parameters()):
                self.requires_grad_(False)  # Undo a toggle of the whole model.
        self._check_input(x)
        if self.channel_first:
            x = x.movedim(1, -1)
        frames = frame_mask(x, lengths, mask)
        used = self._num_used(num_quantizers)
        learns = self.training and not is_recomputed()
        with torch.autocast(x.device.type, enabled=False):
            flat, frames = x.float().flatten(0, -2), frames.flatten()
            # This also detects NaN: comparisons with NaN are false.
            finite = (
                torch.linalg.vector_norm(flat.detach(), dim=-1) < _MAX_LENGTH
            )
            num_nonfinite = (frames & ~finite).sum()
            healthy = num_nonfinite == 0
            # A batch with a non-finite frame is not used for training.
            valid = frames & healthy
            flat = flat.masked_fill(~(frames & finite).unsqueeze(1), 0.0)
            latents = self._latents(flat, valid)
            # Weights of the norm or the projection may be non-finite, too.
            valid = valid & latents.detach().sum().isfinite()
            if learns:
                self._collect(latents, valid)
            indices, quantized, loss, metrics = self._quantize(
                latents, valid, used, learns
            )
            metrics["num_nonfinite"] = num_nonfinite
            out = self._output(quantized)
            if lengths is not None or mask is not None:
                out = out * frames.unsqueeze(1)
            # With several ranks, other ranks may have valid frames.
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
        """Compute codes in evaluation mode, without changing any state.

        Arguments
        ---------
        x, lengths, mask, num_quantizers
            See ``forward``.

        Returns
        -------
        torch.Tensor
            Codes, [...], or [..., C] with several codebooks. Undefined at
            padding; -1 for unused codebooks.

        Raises
        ------
        WarmupError
            During the warm-up, when there are no codes yet; a RuntimeError.
        ValueError
            If a valid frame is non-finite or longer than 1e15.
        """
        # Submodules may have been put in evaluation mode separately.
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            if self.bypass:
                raise WarmupError(
                    "The quantizer is in its warm-up, during which nothing is "
                    "quantized: there are no codes yet. Train past the "
                    "schedule's warm-up."
                )
            output = self(x, lengths, mask, num_quantizers)
        finally:
            for module, training in modes:
                module.training = training
        nonfinite = output.metrics["num_nonfinite"]
        if not is_traced() and nonfinite:
            raise ValueError(
                f"{int(nonfinite)} frames of the input, of shape "
                f"{tuple(x.shape)}, contain NaN or infinity, or are longer "
                f"than {_MAX_LENGTH:g}."
            )
        return output.indices

    def decode(self, indices: Tensor) -> Tensor:
        """Decode codes to vectors.

        Arguments
        ---------
        indices : torch.Tensor
            Integer codes, [...], or [..., C] with several codebooks, of which
            a residual quantizer needs only the first c. -1 means no code.

        Returns
        -------
        torch.Tensor
            Vectors, [..., input_dim]; zero if all codes are -1.

        Raises
        ------
        ValueError
            If the shape does not fit or a code is out of range.
        """
        if self.folds:
            indices = indices.unsqueeze(-1)
        self._check_codes(indices)
        # In fp32, so that the result is bit-identical to that of forward.
        with torch.autocast(indices.device.type, enabled=False):
            flat = indices.long().reshape(-1, indices.shape[-1])
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
        2005.08520), and empty the reservoir. All ranks must call it, and all
        receive the codebook of rank 0.

        Arguments
        ---------
        vectors : torch.Tensor, optional
            Latents to cluster, [N, latent_dim], finite; by default those in
            the reservoir.
        start : str
            Initial centroids: ``"kmeans++"`` (as in the paper), or
            ``"codebook"``, which preserves the meaning of most codes.
        generator : torch.Generator, optional
            Random generator for k-means.

        Returns
        -------
        Reinit or None
            None if there are no vectors, if the codebook is frozen or fixed,
            and on ranks other than 0.

        Raises
        ------
        ValueError
            If the vectors have the wrong shape, or if none are given and there
            is no reservoir.
        """
        check_choice("start", start, ("kmeans++", "codebook"))
        if self.is_codebook_frozen:
            self.reservoir.reset()
            return None
        if vectors is None:
            if not self.reservoir.capacity:
                raise ValueError(
                    "This quantizer has no reservoir from which to "
                    "re-initialize its codebook: build it with reservoir_size "
                    "above 0."
                )
            vectors = self.reservoir.contents()
        if vectors.shape != (len(vectors), self.latent_dim):
            raise ValueError(
                f"The latents to cluster must be [N, {self.latent_dim}], got a "
                f"tensor of shape {tuple(vectors.shape)}."
            )
        if not vectors.isfinite().all():
            raise ValueError("The latents to cluster contain NaN or infinity.")
        number, result = torch.tensor(len(vectors), device=vectors.device), None
        broadcast([number])
        if number > 0:
            if rank() == 0:
                result = self.embedding.reinitialize(
                    vectors.float(), start, generator
                )
            broadcast([self.codebook, *self.embedding.buffers()])
            self._needs_kmeans = self.is_pretrained = False
            self.is_attended = True
        self.reservoir.reset()
        return result

    def freeze(self) -> "VectorQuantizer":
        """Freeze codebook, norm and projections permanently; return self."""
        self.requires_grad_(False)
        self.frozen = True
        return self.eval()

    def train(self, mode: bool = True):
        """Set the mode; a frozen quantizer stays in evaluation mode."""
        self._read_warmup()
        return super().train(mode and not self.frozen)

    def requires_grad_(self, requires_grad: bool = True):
        """Freeze or unfreeze all parameters, and EMA codewords."""
        self.embedding.requires_grad_(requires_grad)
        return super().requires_grad_(requires_grad)

    @property
    def is_codebook_frozen(self) -> bool:
        """Whether the codebook must not change, neither by training nor by
        re-initialization."""
        is_eval = self.training and not self.embedding.training
        return self.frozen or is_eval or not self.embedding.learnable

    def training_state(self, over_ranks: bool = False) -> dict:
        """Return the state of the warm-up and the reservoir. With
        ``over_ranks``, all ranks must call it, and the reservoirs of all ranks
        are combined."""
        return {
            "bypass": self.bypass,
            "needs_kmeans": self._needs_kmeans,
            "reservoir": self.reservoir.state_dict(over_ranks),
        }

    def load_training_state(self, state: dict) -> None:
        """Restore a state returned by ``training_state()``."""
        self.bypass = bool(state["bypass"])
        self._needs_kmeans = bool(state["needs_kmeans"])
        if self.reservoir.capacity and state["reservoir"]:
            self.reservoir.load_state_dict(state["reservoir"])

    def extra_repr(self) -> str:
        """Return the main sizes for ``print``."""
        names = ("input_dim", "num_codebooks", "codebook_size", "codebook_dim")
        return ", ".join(f"{name}={getattr(self, name)}" for name in names)

    # Steps of the forward pass ---------------------------------------------

    def _num_used(self, requested: int | None) -> int:
        """Number of codebooks for a forward pass; 0 during the warm-up."""
        if requested is not None:
            check_sizes(num_quantizers=requested)
            self._check_number(requested, f"num_quantizers={requested}")
        elif self.training and self.quantizer_dropout:
            draw = torch.rand(())
            number = torch.randint(1, self.num_codebooks + 1, ())
            requested = int(number) if draw < self.quantizer_dropout else None
        return 0 if self.bypass else requested or self.num_codebooks

    def _latents(self, flat: Tensor, valid: Tensor) -> Tensor:
        """Normalize and project: [N, input_dim] -> [N, latent_dim]."""
        on_latents = self.norm_position == "latent"
        if self.norm is not None and not on_latents:
            flat = self.norm(flat, valid, self._bypass)
        parts = self.project(flat).unflatten(1, (-1, self.codebook_dim))
        if self.norm is not None and on_latents:
            each = valid.unsqueeze(1).expand(parts.shape[:2])
            parts = self.norm(parts, each, self._bypass)
        return self.embedding.constrain(parts).flatten(1)

    def _output(self, latents: Tensor) -> Tensor:
        """Project back and denormalize: [N, latent_dim] -> [N, input_dim]."""
        if not self.denormalize:
            return self.project_back(latents)
        if self.norm_position == "latent":
            parts = latents.unflatten(1, (-1, self.codebook_dim))
            return self.project_back(self.norm.inverse(parts).flatten(1))
        return self.norm.inverse(self.project_back(latents))

    @torch.no_grad()
    def _collect(self, latents: Tensor, valid: Tensor) -> None:
        """Add latents to the reservoir, and initialize the codebook if due."""
        if self._starts_by_kmeans and world_size() > 1:
            # Only rank 0 may have loaded a codebook, which DDP broadcasts.
            decision = torch.tensor(self._needs_kmeans, device=latents.device)
            broadcast([decision])
            self._needs_kmeans = bool(decision)
        self._starts_by_kmeans = False
        if self._needs_kmeans and not (self.bypass or self.is_codebook_frozen):
            self.reinitialize(latents[valid])
        self.reservoir.add(latents, valid)
        if not (self.is_attended or is_traced()):
            self._unattended += 1
            if self._unattended == _MAX_UNATTENDED:
                self._warn_unattended()

    def _warn_unattended(self) -> None:
        """Warn that nothing uses the reservoir, if there is one."""
        no_plan = self.trainer_options.get("schedule", "preset") is None
        if self.reservoir.capacity and not (no_plan or self.is_codebook_frozen):
            warnings.warn(
                f"A VectorQuantizer was trained for {_MAX_UNATTENDED} batches "
                "without a CodebookTrainer, so its codebook is never "
                "re-initialized and may collapse: create "
                "CodebookTrainer(model, optimizer), or use VQMixin in a Brain. "
                "Set reservoir_size=0 to silence this warning.",
                stacklevel=2,
            )

    def _quantize(self, latents, valid, used, learns):
        """Compute indices [N, C], quantized latents [N, latent_dim], loss and
        metrics. If no codebook is used, latents pass through unchanged."""
        table, previous = self.embedding.table, self.embedding.previous
        mass = valid.float()
        if not used:
            indices = latents.new_zeros(len(latents), 0, dtype=torch.long)
            quantized, sq_error = latents, latents.new_zeros(())
            # DDP and GradScaler require a gradient for every parameter.
            loss = 0.0 * table.sum()
        else:
            if self.training and not learns and previous is not None:
                # The original forward pass preceded the EMA update.
                table = previous
            unused = 0.0
            if not self.embedding.training:
                # DDP requires a gradient for every parameter; CodebookTrainer
                # removes it, so that momentum does not move the codebook.
                unused = 0.0 * table.sum() if world_size() > 1 else 0.0
                table = table.detach()
            indices, targets = self.embedding.code(latents, table[:used])
            codewords = self.embedding(indices, table)
            weights = self.commitment_weight, self.codebook_weight
            loss, sq_errors = quantization_loss(
                targets, codewords, mass, *weights, over_ranks=self.training
            )
            loss = loss + unused
            if self.entropy_weight and self.training:
                # EMA updates the table before the backward pass.
                words = table if table.requires_grad else table.clone()
                loss = loss + self.entropy_weight * entropy_loss(
                    targets, words, mass, sq_errors
                )
            if learns:
                self.embedding.learn(targets.detach(), indices, valid)
            combined = self.embedding.combine(codewords)
            quantized = self.estimate(latents, combined)
            if learns and self.codebook_weight and table.requires_grad:
                _warn_of_lost_loss(quantized, loss)
            is_residual = self.embedding.residual
            sq_error = sq_errors[-1] if is_residual else sq_errors.sum()
        metrics = batch_metrics(latents, mass, indices, table, sq_error)
        unused = self.num_codebooks - used
        if unused:
            indices = nn.functional.pad(indices, (0, unused), value=-1)
        return indices, quantized, loss, metrics

    # Checks ----------------------------------------------------------------

    def _check_input(self, x) -> None:
        if not x.is_floating_point():
            raise TypeError(
                f"A quantizer takes real floating point vectors, got {x.dtype}."
            )
        first, dim = self.channel_first, self.input_dim
        if x.dim() < 2 or x.shape[1 if first else -1] != dim:
            layouts = {True: f"[B, {dim}, ...]", False: f"[N, ..., {dim}]"}
            raise ValueError(
                f"This quantizer takes {layouts[first]}, got a tensor of shape "
                f"{tuple(x.shape)}. For {layouts[not first]}, build it with "
                f"channel_first={not first}."
            )
        refuse_transform(self)

    def _check_number(self, number: int, given: str) -> None:
        """Check the number of codebooks to use."""
        books = self.num_codebooks
        least = 1 if self.embedding.residual else books
        if not least <= number <= books:
            raise ValueError(
                f"This {self.composition} quantizer has {books} codebooks and "
                f"can use {least} to {books} of them, got {given}."
            )

    def _check_codes(self, indices: Tensor) -> None:
        dtype, shape = indices.dtype, tuple(indices.shape)
        if dtype.is_floating_point or dtype.is_complex or dtype is torch.bool:
            raise TypeError(f"Codes must be integers, got {dtype}.")
        self._check_number(shape[-1] if shape else 0, f"the shape {shape}")
        if indices.numel() and not is_traced():
            low, high = map(int, torch.aminmax(indices.long()))
            if low < -int(dtype.is_signed) or high >= self.codebook_size:
                raise ValueError(
                    f"Codes must be in 0..{self.codebook_size - 1}, or -1 for "
                    f"no code, got values from {low} to {high}."
                )

    # State -----------------------------------------------------------------

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}embedding.weight" in state_dict:
            self._read_warmup()
            mean = state_dict.get(f"{prefix}norm.running_mean")
            has_values = mean is not None and not mean.is_meta
            is_new = has_values and not mean.any()  # Before any training
            self._needs_kmeans &= is_new
            self.is_pretrained = not (self._bypass or is_new)

    def _apply(self, fn, recurse=True):
        # Quantization needs fp32, so ``model.half()`` has no effect here.
        return super()._apply(keep_dtype(fn), recurse)

    def __prepare_scriptable__(self):
        raise RuntimeError(
            "torch.jit.script cannot compile a quantizer: leave it out of "
            "jit_module_keys, and use torch.compile for training and "
            "torch.export for inference."
        )


class ResidualVectorQuantizer(VectorQuantizer):
    """Residual vector quantizer: each codebook quantizes the residual of the
    previous ones. Codes are [..., C], and their first c can be decoded alone.

    Arguments
    ---------
    num_quantizers : int
        Number of codebooks, C.
    input_dim, codebook_size, codebook_dim, **options
        Arguments of ``VectorQuantizer``, except for ``num_codebooks`` and
        ``composition``.

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
    """Warn in the backward pass if the loss was not used, as its graph was
    already freed."""
    if is_traced() or not quantized.requires_grad:
        return
    used = []

    def mark_used(gradient):
        """Record that the loss received a gradient."""
        used.append(True)

    def check(gradient):
        """Warn if the graph of the loss was already freed."""
        if graph() is None and not used:
            warnings.warn(
                "The loss of a VectorQuantizer was not used, so its codebook "
                "does not learn: add `output.loss` to the loss. A container "
                "such as SpeechBrain's Sequential keeps only the first item of "
                "the output: call the quantizer outside it.",
                stacklevel=2,
            )

    # Only the graph of the loss holds this hook, so they are freed together.
    graph = weakref.ref(mark_used)
    loss.register_hook(mark_used)
    quantized.register_hook(check)


def _name_options(init) -> None:
    """Replace ``**options`` in a signature with the arguments of
    ``VectorQuantizer`` that it stands for."""
    signature = inspect.signature(init)
    *own, _ = signature.parameters.values()
    taken = {*signature.parameters, "num_codebooks", "composition"}
    options = inspect.signature(VectorQuantizer).parameters.values()
    own += [
        p.replace(kind=p.KEYWORD_ONLY) for p in options if p.name not in taken
    ]
    init.__signature__ = signature.replace(parameters=own)


_name_options(ResidualVectorQuantizer.__init__)
