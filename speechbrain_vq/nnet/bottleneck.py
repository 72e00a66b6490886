"""What all quantizers share.

The way of the data: normalise -> project -> (the reservoir sees it) ->
search -> gather -> losses -> estimator -> project back.

Authors
 * speechbrain_vq authors 2026
"""

from typing import NamedTuple

import torch
from torch import nn

from speechbrain_vq.nnet.checks import check_choice
from speechbrain_vq.nnet.codebooks import make_codebook, number_codes
from speechbrain_vq.nnet.distributed import world_size
from speechbrain_vq.nnet.estimators import ESTIMATORS
from speechbrain_vq.nnet.losses import (
    batch_metrics,
    code_counts,
    quantization_loss,
)
from speechbrain_vq.nnet.masks import clear, frame_mask
from speechbrain_vq.nnet.normalization import MaskedBatchNorm
from speechbrain_vq.nnet.precision import keep_dtype
from speechbrain_vq.nnet.reestimation import Reestimate
from speechbrain_vq.nnet.reservoir import Reservoir

# A vector longer than this is as good as infinite: its square, summed over a
# batch, is, and would make the running variance so for ever.
_LARGEST = 1e15


class VQOutput(NamedTuple):
    """What a quantizer returns.

    Arguments
    ---------
    quantized : torch.Tensor
        The quantized input, [..., T, input_dim]; zero at padding.
    indices : torch.Tensor
        The codes, [..., T], or [..., T, C] where there are C codebooks;
        meaningless at padding, -1 during warm-up.
    loss : torch.Tensor
        Weighted sum of codebook and commitment loss, a scalar. It is NaN
        where a valid frame of the input is not finite, or longer than 1e15.
    metrics : dict
        Detached tensors: ``counts`` [C, K] of the codes over valid frames,
        ``num_vectors``, ``num_nonfinite`` and ``perplexity`` (mean over the
        codebooks), and what the quantization error relative to the latents'
        variance is made of: ``sq_error``, ``latent_sum``, ``latent_sq_sum``.
    """

    quantized: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


class Bottleneck(nn.Module):
    """The base of the quantizers; subclasses say how a latent is coded.

    Arguments
    ---------
    input_dim : int
        Dimension of the encoder outputs.
    codebook_shape : tuple
        Number, size and dimension of the codebooks, (C, K, d).
    latent_dim : int
        Dimension of what is quantized. Where it is not ``input_dim`` there is
        a linear projection before and after.
    norm : str, optional
        ``"batch"`` or None.
    norm_position : str
        ``"input"``: before the projection (the code of arXiv 2005.08520 on
        speech); ``"latent"``: on what is quantized, with statistics that the
        codebooks share (that code on images).
    commitment_weight : float
        Weight of the loss that draws latents to codewords.
    codebook_weight : float, optional
        Weight of the loss that draws codewords to latents; 1 by default, and
        0 with an EMA codebook.
    estimator : str
        How gradients pass: ``"straight_through"`` or ``"rotation"``.
    codebook : str
        How the codebook learns: ``"gradient"`` or ``"ema"``.
    codebook_init : str
        ``"normal"``, ``"uniform"`` or ``"xavier"``; see ``Codebook``.
    ema_decay : float, optional
        For EMA codebooks; 0.99 by default.
    reservoir_size : int
        Number of latents kept for re-estimation; 0: none.

    Raises
    ------
    ValueError
        If an argument is out of range or contradicts another.
    """

    # Whether codes of a single codebook come without a dimension for it.
    folds = True

    def __init__(
        self,
        input_dim: int,
        codebook_shape: tuple[int, int, int],
        latent_dim: int,
        norm: str | None = "batch",
        norm_position: str = "input",
        commitment_weight: float = 0.25,
        codebook_weight: float | None = None,
        estimator: str = "straight_through",
        codebook: str = "gradient",
        codebook_init: str = "normal",
        ema_decay: float | None = None,
        reservoir_size: int = 20480,
    ):
        super().__init__()
        check_choice("norm", norm, ("batch", None))
        check_choice("norm_position", norm_position, ("input", "latent"))
        check_choice("estimator", estimator, tuple(ESTIMATORS))
        if norm is None and norm_position != "input":
            raise ValueError("norm_position='latent' needs norm='batch'.")
        if codebook == "ema" and codebook_weight:
            raise ValueError(
                "An EMA codebook has no codebook loss: leave codebook_weight "
                f"out or set it to 0, not {codebook_weight}."
            )
        integer = type(reservoir_size) is int
        if not integer or reservoir_size < 0:
            raise ValueError(
                "reservoir_size must be an integer >= 0, got "
                f"{reservoir_size!r}."
            )
        if codebook_weight is None:
            codebook_weight = 0.0 if codebook == "ema" else 1.0
        for name, weight in (
            ("commitment_weight", commitment_weight),
            ("codebook_weight", codebook_weight),
        ):
            if not weight >= 0:
                raise ValueError(f"{name} must be >= 0, got {weight!r}.")
        self.input_dim = input_dim
        self.latent_dim = latent_dim
        self.num_codebooks, self.codebook_size, self.codebook_dim = (
            codebook_shape
        )
        self.commitment_weight = commitment_weight
        self.codebook_weight = codebook_weight
        self.estimate = ESTIMATORS[estimator]
        self.bypass = False
        self.norm_position = norm_position
        self.norm = None
        if norm == "batch":
            on_input = norm_position == "input"
            self.norm = MaskedBatchNorm(
                input_dim if on_input else self.codebook_dim
            )
        self.project = self.project_back = nn.Identity()
        if latent_dim != input_dim:
            self.project = nn.Linear(input_dim, latent_dim)
            self.project_back = nn.Linear(latent_dim, input_dim)
        self.codewords = make_codebook(
            codebook, *codebook_shape, codebook_init, ema_decay
        )
        self.reservoir = None
        if reservoir_size:
            self.reservoir = Reservoir(reservoir_size, latent_dim)

    @property
    def codebook(self) -> torch.Tensor:
        """The codewords, [num_codebooks, codebook_size, codebook_dim]."""
        return self.codewords.weight

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> VQOutput:
        """Quantizes.

        Arguments
        ---------
        x : torch.Tensor
            Encoder outputs, [..., input_dim]; batch, time, channel where
            lengths are given.
        lengths : torch.Tensor, optional
            Lengths relative to the time dimension, [B].

        Returns
        -------
        VQOutput
            Named tuple (quantized, indices, loss, metrics).

        Raises
        ------
        ValueError
            If the shapes do not fit, or the batch has no valid frame.
        TypeError
            If the input is not real floating point.
        """
        self._check_input(x)
        frames = frame_mask(x, lengths)
        self._check_not_empty(frames)
        with torch.autocast(x.device.type, enabled=False):
            flat, frames = x.float().flatten(0, -2), frames.flatten()
            # In one pass; NaN is not below anything.
            finite = torch.linalg.vector_norm(flat.detach(), dim=-1) < _LARGEST
            num_nonfinite = (frames & ~finite).sum()
            healthy = num_nonfinite == 0
            # One bad frame and nothing learns from the batch.
            valid = frames & healthy
            flat = clear(flat, frames & finite)
            latents = self._latents(flat, valid)
            if self.training and self.reservoir is not None:
                self.reservoir.add(latents, valid)
            quantize = self._pass if self.bypass else self._quantize
            indices, codes, loss, metrics = quantize(latents, valid)
            metrics["num_nonfinite"] = num_nonfinite
            out = self.project_back(codes)
            if lengths is not None:
                out = out * frames.unsqueeze(1)
            loss = torch.where(healthy, loss, torch.nan)
        indices = indices.reshape(*x.shape[:-1], self.num_codebooks)
        if self._is_folded:
            indices = indices.squeeze(-1)
        return VQOutput(
            out.to(x.dtype).reshape(x.shape), indices, loss, metrics
        )

    @torch.no_grad()
    def encode(
        self, x: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The codes of encoder outputs, as ``eval()`` gives them; no state
        changes.

        Arguments
        ---------
        x : torch.Tensor
            Encoder outputs, [..., input_dim].
        lengths : torch.Tensor, optional
            Lengths relative to the time dimension, [B].

        Returns
        -------
        torch.Tensor
            The codes, [...], or [..., C] where there are C codebooks;
            meaningless at padding.

        Raises
        ------
        RuntimeError
            During warm-up, when there are no codes yet.
        ValueError
            If a valid frame is not finite, or longer than 1e15.
        """
        if self.bypass:
            raise RuntimeError(
                "The quantizer is still in its warm-up, where nothing is "
                "quantized: there are no codes. Train past the warm-up of the "
                "re-estimation schedule first."
            )
        # Each module's own mode: a part may have been frozen by itself.
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        try:
            output = self(x, lengths)
        finally:
            for module, training in modes:
                module.training = training
        nonfinite = int(output.metrics["num_nonfinite"])
        if nonfinite:
            raise ValueError(
                f"{nonfinite} frames of the input, of shape {tuple(x.shape)}, "
                f"hold NaN or infinity, or are longer than {_LARGEST:g}."
            )
        return output.indices

    def decode(self, indices: torch.Tensor) -> torch.Tensor:
        """The vectors of codes.

        Arguments
        ---------
        indices : torch.Tensor
            Codes, [...], or [..., C] where there are C codebooks.

        Returns
        -------
        torch.Tensor
            What the decoder gets for them, [..., input_dim].

        Raises
        ------
        ValueError
            If the shape does not fit or a code is not in the codebook.
        TypeError
            If the codes are not integers.
        """
        integer = not (indices.is_floating_point() or indices.is_complex())
        if not integer or indices.dtype is torch.bool:
            raise TypeError(f"Codes are integers, got {indices.dtype}.")
        books = self.num_codebooks
        if self._is_folded:
            indices = indices.unsqueeze(-1)
        elif indices.dim() == 0 or indices.shape[-1] != books:
            raise ValueError(
                f"Codes of {books} codebooks have a last dimension of {books}, "
                f"got the shape {tuple(indices.shape)}."
            )
        if indices.numel():
            low, high = (int(v) for v in torch.aminmax(indices))
            if low < 0 or high >= self.codebook_size:
                raise ValueError(
                    f"Codes must lie in 0..{self.codebook_size - 1}, got "
                    f"values from {low} to {high}."
                )
        # In fp32, as forward: the two must give the same bits.
        with torch.autocast(indices.device.type, enabled=False):
            codewords = self.codewords(indices.reshape(-1, books).long())
            vectors = self.project_back(self._combine(codewords))
        return vectors.reshape(*indices.shape[:-1], self.input_dim)

    @torch.no_grad()
    def reestimate(
        self,
        vectors: torch.Tensor | None = None,
        scope: str = "all",
        generator: torch.Generator | None = None,
    ) -> Reestimate | None:
        """Re-estimates the codebook by k-means (arXiv 2005.08520) and empties
        the reservoir.

        Arguments
        ---------
        vectors : torch.Tensor, optional
            What to cluster, [N, latent_dim]; the reservoir's contents where
            not given.
        scope : str
            ``"all"``: every codeword, as in the paper; ``"dead"``: those that
            are the nearest of none of the vectors.
        generator : torch.Generator, optional
            Source of the seeds of k-means.

        Returns
        -------
        Reestimate or None
            What was done; None where there was no vector to cluster.

        Raises
        ------
        ValueError
            If there is neither a reservoir nor are vectors given, or they
            do not fit or are not finite; nothing is changed then.
        """
        check_choice("scope", scope, ("all", "dead"))
        if vectors is None:
            if self.reservoir is None:
                raise ValueError(
                    "This quantizer keeps no reservoir to re-estimate its "
                    "codebook from: build it with reservoir_size above 0."
                )
            vectors = self.reservoir.contents()
        self._check_vectors(vectors)
        done = None
        if len(vectors):
            done = self._reestimate(vectors.float(), scope, generator)
        if self.reservoir is not None:
            self.reservoir.reset()
        return done

    def learned(self) -> list[torch.Tensor]:
        """The tensors that a forward in training changes, for those who must
        be able to take one back: running statistics, averages, reservoir."""
        kept = [] if self.reservoir is None else self.reservoir.tensors()
        return [*self.buffers(), *kept]

    def get_extra_state(self) -> dict:
        """Whether the quantizer is still in its warm-up."""
        return {"bypass": self.bypass}

    def set_extra_state(self, state: dict) -> None:
        """Restores what ``get_extra_state`` returned."""
        self.bypass = bool(state["bypass"])

    def extra_repr(self) -> str:
        """The main sizes, for ``print``."""
        return (
            f"input_dim={self.input_dim}, num_codebooks={self.num_codebooks}, "
            f"codebook_size={self.codebook_size}, "
            f"codebook_dim={self.codebook_dim}"
        )

    def _apply(self, fn, recurse=True):
        # ``model.half()`` moves the rest of a model to another precision: the
        # quantizer works in fp32 whatever its input is in, and so it stays.
        return super()._apply(keep_dtype(fn), recurse)

    # What a subclass says --------------------------------------------------

    def _code(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """indices [N, C], and what each codebook was asked to code
        [N, C, d]."""
        raise NotImplementedError

    def _combine(self, codewords: torch.Tensor) -> torch.Tensor:
        """[N, C, d] -> [N, latent_dim]."""
        raise NotImplementedError

    def _total_error(self, sq_errors: torch.Tensor) -> torch.Tensor:
        """The squared error of the whole from those of the codebooks, [C]."""
        raise NotImplementedError

    def _reestimate(self, vectors, scope, generator) -> Reestimate:
        """Rewrites the codebooks from [N, latent_dim]."""
        raise NotImplementedError

    # The steps of a forward ------------------------------------------------

    @property
    def _is_folded(self) -> bool:
        return self.folds and self.num_codebooks == 1

    def _latents(self, flat: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """[N, input_dim] -> [N, latent_dim], normalized and projected."""
        if self.norm is None:
            return self.project(flat)
        if self.norm_position == "input":
            return self.project(self.norm(flat, valid))
        parts = self.project(flat).unflatten(1, (-1, self.codebook_dim))
        each = valid.unsqueeze(1).expand(parts.shape[:2])
        return self.norm(parts, each).flatten(1)

    def _quantize(self, latents: torch.Tensor, valid: torch.Tensor):
        """indices [N, C], codes [N, latent_dim], loss and metrics."""
        indices, targets = self._code(latents)
        codes, mass = number_codes(indices, self.codebook_size), valid.float()
        loss, sq_error, codewords = quantization_loss(
            targets,
            self.codebook,
            codes,
            mass,
            self.commitment_weight,
            self.codebook_weight,
            over_ranks=self.training,
        )
        if self.training:
            self.codewords.learn(targets.detach(), indices, valid)
        quantized = self.estimate(latents, self._combine(codewords))
        counts = code_counts(codes, mass, self.codebook_size)
        metrics = batch_metrics(
            latents, mass, counts, self._total_error(sq_error)
        )
        return indices, quantized, loss, metrics

    def _pass(self, latents: torch.Tensor, valid: torch.Tensor):
        """The same during warm-up: nothing is quantized."""
        indices = latents.new_full(
            (len(latents), self.num_codebooks), -1, dtype=torch.long
        )
        # The codebook takes part, so that DDP and GradScaler, which ask for a
        # gradient of every parameter, have nothing to miss.
        loss = 0.0 * self.codebook.sum()
        counts = torch.zeros_like(self.codebook[..., 0])
        metrics = batch_metrics(latents, valid.float(), counts.detach(), None)
        return indices, latents, loss, metrics

    def _check_input(self, x: torch.Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(
                f"A quantizer takes real floating point vectors, got {x.dtype}."
            )
        if x.dim() < 2 or x.shape[-1] != self.input_dim:
            raise ValueError(
                f"A quantizer of input_dim={self.input_dim} takes [..., "
                f"{self.input_dim}], got a tensor of shape {tuple(x.shape)}."
            )

    def _check_vectors(self, vectors: torch.Tensor) -> None:
        dim = self.latent_dim
        if vectors.dim() != 2 or vectors.shape[1] != dim:
            raise ValueError(
                f"The latents to cluster are [N, {dim}], got a tensor of shape "
                f"{tuple(vectors.shape)}."
            )
        if not vectors.isfinite().all():
            raise ValueError("The latents to cluster hold NaN or infinity.")

    def _check_not_empty(self, frames: torch.Tensor) -> None:
        # A rank with nothing to say must still meet the others in their
        # collectives. On a GPU the look at the mask would be a host sync.
        if torch.compiler.is_compiling() or world_size() > 1:
            return
        empty = frames.numel() == 0
        if empty or (frames.device.type == "cpu" and not frames.any()):
            raise ValueError(
                "There is no valid frame to quantize: the input's shape less "
                f"its channels is {tuple(frames.shape)}"
                + ("." if empty else " and all of it is padding.")
            )
