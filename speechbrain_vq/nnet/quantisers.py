"""Vector quantizers with a bottleneck that does not collapse.

The way of the data: normalise -> project -> (the reservoir sees it) ->
search -> gather -> losses -> estimator -> project back.

Authors
 * speechbrain_vq authors 2026
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import nn

from speechbrain_vq.nnet.codebooks import make_codebook
from speechbrain_vq.nnet.distributed import sum_over_ranks, world_size
from speechbrain_vq.nnet.estimators import ESTIMATORS
from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.nnet.normalization import MaskedBatchNorm
from speechbrain_vq.nnet.reservoir import Reservoir
from speechbrain_vq.nnet.search import nearest


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
        where a valid frame of the input is not finite.
    metrics : dict
        Detached tensors: ``counts`` [C, K] of the codes over valid frames,
        ``num_vectors``, ``num_nonfinite`` and ``perplexity`` (mean over the
        codebooks), and what the quantization error relative to the latents'
        variance is made of: ``sq_error``, ``latent_sum``, ``latent_sq_sum``.
    """

    quantized: torch.Tensor
    indices: torch.Tensor
    loss: torch.Tensor
    metrics: Dict[str, torch.Tensor]


class Reestimate(NamedTuple):
    """What a re-estimation did to each of C codebooks.

    Arguments
    ---------
    rows : torch.Tensor
        The codewords rewritten, booleans [C, K].
    inertia : float
        Mean squared distance of a vector to its codeword, after.
    previous_inertia : float
        The same before.
    num_distinct : int
        Distinct vectors found, the smallest number over the codebooks.
    """

    rows: torch.Tensor
    inertia: float
    previous_inertia: float
    num_distinct: int


def frame_mask(
    x: torch.Tensor, lengths: Optional[torch.Tensor]
) -> torch.Tensor:
    """The valid frames of a batch.

    Relative lengths are rounded to whole frames: a plain comparison makes one
    length in twenty a frame too long.

    Arguments
    ---------
    x : torch.Tensor
        A batch, [B, T, ..., D]; time is the second dimension.
    lengths : torch.Tensor, optional
        Lengths relative to T, [B]; absent: all of it.

    Returns
    -------
    torch.Tensor
        Booleans in the shape of ``x`` less its last dimension.
    """
    if lengths is None:
        return torch.ones(x.shape[:-1], dtype=torch.bool, device=x.device)
    if x.dim() < 3 or lengths.shape != x.shape[:1]:
        raise ValueError(
            "lengths must be one number for each of [B, T, ..., D]; got "
            f"lengths of shape {tuple(lengths.shape)} with an input of shape "
            f"{tuple(x.shape)}."
        )
    time = x.shape[1]
    frames = torch.round(lengths.to(x.device, torch.float32) * time)
    mask = torch.arange(time, device=x.device) < frames.unsqueeze(1)
    mask = mask.view(mask.shape + (1,) * (x.dim() - 3))
    return mask.expand(x.shape[:-1])


class Bottleneck(nn.Module):
    """What all quantizers share; subclasses say how a latent is coded."""

    def __init__(
        self,
        input_dim: int,
        codebook_size: int,
        num_codebooks: int,
        codebook_dim: int,
        latent_dim: int,
        norm: Optional[str],
        norm_position: str,
        commitment_weight: float,
        codebook_weight: Optional[float],
        estimator: str,
        codebook: str,
        codebook_init: str,
        ema_decay: Optional[float],
        reservoir_size: int,
    ):
        super().__init__()
        _check_choice("norm", norm, ("batch", None))
        _check_choice("norm_position", norm_position, ("input", "latent"))
        _check_choice("estimator", estimator, tuple(ESTIMATORS))
        if codebook == "ema" and codebook_weight:
            raise ValueError(
                "An EMA codebook has no codebook loss: leave codebook_weight "
                f"out or set it to 0, not {codebook_weight}."
            )
        if codebook != "ema" and ema_decay is not None:
            raise ValueError("ema_decay needs codebook='ema'.")
        if reservoir_size < 0:
            raise ValueError(f"reservoir_size is {reservoir_size}, below 0.")
        self.input_dim = input_dim
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.codebook_dim = codebook_dim
        self.commitment_weight = commitment_weight
        if codebook_weight is None:
            codebook_weight = 0.0 if codebook == "ema" else 1.0
        self.codebook_weight = codebook_weight
        self.bypass = False
        projected = latent_dim != input_dim
        self.norm_position = norm_position
        self.norm = None
        if norm == "batch":
            on_codes = norm_position == "latent"
            self.norm = MaskedBatchNorm(codebook_dim if on_codes else input_dim)
        self.project = (
            nn.Linear(input_dim, latent_dim) if projected else nn.Identity()
        )
        self.project_back = (
            nn.Linear(latent_dim, input_dim) if projected else nn.Identity()
        )
        self.codewords = make_codebook(
            codebook,
            num_codebooks,
            codebook_size,
            codebook_dim,
            codebook_init,
            ema_decay,
        )
        self.estimate = ESTIMATORS[estimator]
        self.reservoir = (
            Reservoir(reservoir_size, latent_dim) if reservoir_size else None
        )

    @property
    def codebook(self) -> torch.Tensor:
        """The codewords, [num_codebooks, codebook_size, codebook_dim]."""
        return self.codewords.weight

    def forward(
        self, x: torch.Tensor, lengths: Optional[torch.Tensor] = None
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
            flat = x.float().reshape(-1, self.input_dim)
            frames = frames.reshape(-1)
            # A sum is finite where all of its terms are, in one pass.
            finite = torch.isfinite(flat.sum(-1))
            num_nonfinite = (frames & ~finite).sum()
            healthy = num_nonfinite == 0
            flat = torch.where((frames & finite).unsqueeze(1), flat, 0.0)
            # One bad frame and nothing learns from the batch.
            valid = frames & healthy
            latents = self._latents(flat, valid)
            if self.training and self.reservoir is not None:
                self.reservoir.add(latents, valid)
            indices, codes, loss, metrics = self._quantize(latents, valid)
            metrics["num_nonfinite"] = num_nonfinite.detach()
            out = self.project_back(codes) * frames.unsqueeze(1)
            loss = torch.where(healthy, loss, torch.nan)
        shape = x.shape[:-1]
        return VQOutput(
            out.to(x.dtype).reshape(x.shape),
            self._fold_codebooks(indices.reshape(*shape, -1)),
            loss,
            metrics,
        )

    @torch.no_grad()
    def encode(
        self, x: torch.Tensor, lengths: Optional[torch.Tensor] = None
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
            If a valid frame is not finite.
        """
        if self.bypass:
            raise RuntimeError(
                "The quantizer is still in its warm-up, where nothing is "
                "quantized: there are no codes. Train past the warm-up of the "
                "re-estimation schedule first."
            )
        training = self.training
        self.eval()
        try:
            output = self(x, lengths)
        finally:
            self.train(training)
        if bool(output.metrics["num_nonfinite"]):
            raise ValueError(
                f"{int(output.metrics['num_nonfinite'])} frames of the input, "
                f"of shape {tuple(x.shape)}, hold NaN or infinity."
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
        if indices.is_floating_point() or indices.is_complex():
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
        codes = self._combine(self.codewords(indices.reshape(-1, books)))
        return self.project_back(codes).reshape(*indices.shape[:-1], -1)

    @torch.no_grad()
    def reestimate(
        self,
        vectors: Optional[torch.Tensor] = None,
        scope: str = "all",
        generator: Optional[torch.Generator] = None,
    ) -> Optional[Reestimate]:
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
        """
        _check_choice("scope", scope, ("all", "dead"))
        if vectors is None:
            if self.reservoir is None:
                raise ValueError(
                    "This quantizer keeps no reservoir to re-estimate its "
                    "codebook from: build it with reservoir_size above 0."
                )
            vectors = self.reservoir.contents()
        if self.reservoir is not None:
            self.reservoir.reset()
        if len(vectors) == 0:
            return None
        return self._reestimate(vectors.float(), scope, generator)

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

    # What a subclass says ------------------------------------------------

    def _code(
        self, latents: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """indices [N, C], codewords [N, C, d], and what each codebook was
        asked to code [N, C, d]."""
        raise NotImplementedError

    def _combine(self, codewords: torch.Tensor) -> torch.Tensor:
        """[N, C, d] -> [N, latent_dim]."""
        raise NotImplementedError

    def _reestimate(self, vectors, scope, generator) -> Reestimate:
        raise NotImplementedError

    @property
    def _is_folded(self) -> bool:
        return self.num_codebooks == 1

    # The steps of a forward ------------------------------------------------

    def _latents(self, flat: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        """[N, input_dim] -> [N, latent_dim], normalized and projected."""
        if self.norm is None:
            return self.project(flat)
        if self.norm_position == "input":
            return self.project(self.norm(flat, valid))
        latents = self.project(flat)
        parts = latents.view(len(flat), -1, self.codebook_dim)
        each = valid.unsqueeze(1).expand(parts.shape[:2])
        return self.norm(parts, each).reshape(latents.shape)

    def _quantize(self, latents: torch.Tensor, valid: torch.Tensor):
        """indices [N, C], codes [N, latent_dim], loss and metrics."""
        if self.bypass:
            indices = latents.new_full(
                (len(latents), self.num_codebooks), -1, dtype=torch.long
            )
            # The codebook takes part, so that DDP and GradScaler, which ask
            # for a gradient of every parameter, have nothing to miss.
            loss = 0.0 * self.codebook.sum()
            return indices, latents, loss, self._metrics(latents, valid, 0)
        indices, codewords, targets = self._code(latents)
        if self.training:
            self.codewords.learn(targets.detach(), indices, valid)
        loss, sq_error = self._losses(targets, codewords, valid)
        codes = self.estimate(latents, self._combine(codewords))
        metrics = self._metrics(latents, valid, sq_error, indices)
        return indices, codes, loss, metrics

    def _losses(
        self,
        targets: torch.Tensor,
        codewords: torch.Tensor,
        valid: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """The weighted loss, and the squared error over valid frames.

        Means run over all elements, as in the code of arXiv 2005.08520; in a
        distributed run over those of all ranks, so that DDP's average of the
        gradients is that of the whole batch.
        """
        number = valid.sum()
        if self.training:
            number = sum_over_ranks(number) / world_size()
        weight = valid.float() / (number * targets[0].numel()).clamp(min=1e-9)
        loss, sq_error = _QuantizationLoss.apply(
            targets,
            codewords,
            weight,
            self.commitment_weight,
            self.codebook_weight,
        )
        return loss, sq_error

    @torch.no_grad()
    def _metrics(self, latents, valid, sq_error, indices=None):
        mass = valid.float()
        books, size = self.num_codebooks, self.codebook_size
        counts = mass.new_zeros(books * size)
        if indices is not None:
            offset = torch.arange(0, books * size, size, device=mass.device)
            flat = (indices + offset).reshape(-1)
            counts.index_add_(0, flat, mass.repeat_interleave(books))
        counts = counts.view(books, size)
        share = counts / counts.sum(1, keepdim=True).clamp(min=1)
        entropy = -torch.special.xlogy(share, share).sum(1)
        return {
            "counts": counts,
            "num_vectors": mass.sum(),
            "perplexity": entropy.exp().mean(),
            "sq_error": torch.as_tensor(sq_error, device=mass.device),
            "latent_sum": mass @ latents,
            "latent_sq_sum": mass @ latents.square().sum(1),
        }

    def _fold_codebooks(self, indices: torch.Tensor) -> torch.Tensor:
        return indices.squeeze(-1) if self._is_folded else indices

    def _replace(self, book, vectors, scope, generator):
        """Clusters what one codebook codes, rewrites its rows; returns them
        with the mean squared distances before and after."""
        old = self.codebook[book]
        before, chosen = _distortion(vectors, old)
        alive = torch.zeros_like(old[:, 0], dtype=torch.bool)
        if scope == "dead":
            alive[chosen] = True
        rows = ~alive
        centroids = old.detach().clone()
        distinct = self.codebook_size
        if rows.any():
            fixed = old[alive] if alive.any() else None
            result = kmeans(
                vectors, self.codebook_size, generator=generator, fixed=fixed
            )
            centroids[rows] = result.centroids[int(alive.sum()) :]
            distinct = result.num_distinct
        after, chosen = _distortion(vectors, centroids)
        counts = torch.bincount(chosen, minlength=self.codebook_size)
        self.codewords.rewrite(book, rows, centroids, counts)
        return rows, before, after, int(distinct)

    def _check_input(self, x: torch.Tensor) -> None:
        if not x.is_floating_point():
            raise TypeError(
                "A quantizer takes real floating point vectors, got "
                f"{x.dtype}."
            )
        if x.dim() < 2 or x.shape[-1] != self.input_dim:
            raise ValueError(
                f"A quantizer of input_dim={self.input_dim} takes [..., "
                f"{self.input_dim}], got a tensor of shape {tuple(x.shape)}."
            )

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


class VectorQuantizer(Bottleneck):
    """A vector quantizer that is robust by default (arXiv 2005.08520): batch
    normalization of the encoder outputs and a reservoir of them from which
    ``reestimate()`` finds a new codebook.

    Arguments
    ---------
    input_dim : int
        Dimension of the encoder outputs.
    codebook_size : int
        Number of codewords of each codebook, K.
    codebook_dim : int, optional
        Dimension of a codeword, d. Where ``num_codebooks * d`` is not
        ``input_dim`` there is a linear projection before and after. By default
        ``input_dim / num_codebooks``, without projections.
    num_codebooks : int
        Codebooks side by side, each for its slice of the latent (a product
        codebook), C.
    norm : str, optional
        ``"batch"`` or None.
    norm_position : str
        ``"input"``: before the projection (the paper's code on speech);
        ``"latent"``: after it, with statistics that the codebooks share (the
        paper's code on images).
    commitment_weight : float
        Weight of the loss that draws latents to codewords.
    codebook_weight : float, optional
        Weight of the loss that draws codewords to latents; 1 by default, and
        0 with an EMA codebook.
    estimator : str
        ``"straight_through"`` or ``"rotation"``.
    codebook : str
        How the codebook learns: ``"gradient"`` or ``"ema"``.
    codebook_init : str
        ``"normal"`` or ``"uniform"``; see ``Codebook``.
    ema_decay : float, optional
        For EMA codebooks; 0.99 by default.
    reservoir_size : int
        Number of latents kept for re-estimation; 0: none.

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
        codebook_dim: Optional[int] = None,
        num_codebooks: int = 1,
        norm: Optional[str] = "batch",
        norm_position: str = "input",
        commitment_weight: float = 0.25,
        codebook_weight: Optional[float] = None,
        estimator: str = "straight_through",
        codebook: str = "gradient",
        codebook_init: str = "normal",
        ema_decay: Optional[float] = None,
        reservoir_size: int = 20480,
    ):
        _check_sizes(input_dim, codebook_size, codebook_dim, num_codebooks)
        if codebook_dim is None:
            if input_dim % num_codebooks:
                raise ValueError(
                    f"input_dim={input_dim} does not divide into "
                    f"{num_codebooks} codebooks: give codebook_dim."
                )
            codebook_dim = input_dim // num_codebooks
        super().__init__(
            input_dim,
            codebook_size,
            num_codebooks,
            codebook_dim,
            num_codebooks * codebook_dim,
            norm,
            norm_position,
            commitment_weight,
            codebook_weight,
            estimator,
            codebook,
            codebook_init,
            ema_decay,
            reservoir_size,
        )

    def _code(self, latents):
        targets = latents.view(len(latents), self.num_codebooks, -1)
        indices = [
            nearest(targets[:, book], self.codebook[book])
            for book in range(self.num_codebooks)
        ]
        indices = torch.stack(indices, dim=1)
        return indices, self.codewords(indices), targets

    def _combine(self, codewords):
        return codewords.flatten(1)

    def _reestimate(self, vectors, scope, generator):
        parts = vectors.view(len(vectors), self.num_codebooks, -1)
        return _summary(
            [
                self._replace(book, parts[:, book], scope, generator)
                for book in range(self.num_codebooks)
            ],
            sum,
        )


class ResidualVectorQuantizer(Bottleneck):
    """Quantizers in a row, each coding what the ones before it left over.

    A re-estimation clusters the reservoir for the first codebook, then the
    residuals that this one leaves for the second, and so on.

    Arguments
    ---------
    num_quantizers : int
        Number of codebooks in the row, C.
    input_dim : int
        Dimension of the encoder outputs.
    codebook_size : int
        Number of codewords of each codebook, K.
    codebook_dim : int, optional
        Dimension of a codeword; ``input_dim`` by default, else there is a
        linear projection before and after.
    **kwargs
        As for ``VectorQuantizer``.

    Example
    -------
    >>> quantizer = ResidualVectorQuantizer(4, input_dim=64, codebook_size=32)
    >>> quantizer(torch.randn(2, 50, 64)).indices.shape
    torch.Size([2, 50, 4])
    """

    def __init__(
        self,
        num_quantizers: int,
        input_dim: int,
        codebook_size: int,
        codebook_dim: Optional[int] = None,
        norm: Optional[str] = "batch",
        norm_position: str = "input",
        commitment_weight: float = 0.25,
        codebook_weight: Optional[float] = None,
        estimator: str = "straight_through",
        codebook: str = "gradient",
        codebook_init: str = "normal",
        ema_decay: Optional[float] = None,
        reservoir_size: int = 20480,
    ):
        _check_sizes(input_dim, codebook_size, codebook_dim, num_quantizers)
        codebook_dim = input_dim if codebook_dim is None else codebook_dim
        super().__init__(
            input_dim,
            codebook_size,
            num_quantizers,
            codebook_dim,
            codebook_dim,
            norm,
            norm_position,
            commitment_weight,
            codebook_weight,
            estimator,
            codebook,
            codebook_init,
            ema_decay,
            reservoir_size,
        )

    @property
    def _is_folded(self) -> bool:
        return False

    def _code(self, latents):
        residual, indices, targets = latents, [], []
        for book in range(self.num_codebooks):
            targets.append(residual)
            indices.append(nearest(residual, self.codebook[book]))
            chosen = self.codebook[book].detach()[indices[-1]]
            # Detached: a straight-through path here would cancel the
            # commitment gradient of every later stage.
            residual = residual - chosen
        indices = torch.stack(indices, dim=1)
        return indices, self.codewords(indices), torch.stack(targets, dim=1)

    def _combine(self, codewords):
        return codewords.sum(1)

    def _reestimate(self, vectors, scope, generator):
        done: List[Tuple] = []
        for book in range(self.num_codebooks):
            done.append(self._replace(book, vectors, scope, generator))
            codebook = self.codebook[book]
            vectors = vectors - codebook[nearest(vectors, codebook)]
        return _summary(done, lambda values: list(values)[-1])


class _QuantizationLoss(torch.autograd.Function):
    """w_c mean |sg[x] - e|^2 + w_e mean |x - sg[e]|^2 and the squared error.

    Written out because the two terms have one value and opposite gradients:
    autograd would compute each of them.
    """

    @staticmethod
    def forward(ctx, targets, codewords, weight, commitment, codebook):
        difference = codewords - targets
        sq_norm = difference.flatten(1).square().sum(1)
        ctx.save_for_backward(difference, weight)
        ctx.weights = commitment, codebook
        sq_error = (weight > 0).to(sq_norm.dtype) @ sq_norm
        ctx.mark_non_differentiable(sq_error)
        return (commitment + codebook) * (weight @ sq_norm), sq_error

    @staticmethod
    def backward(ctx, gradient, _):
        difference, weight = ctx.saved_tensors
        commitment, codebook = ctx.weights
        step = difference * (2 * gradient * weight).view(-1, 1, 1)
        return (
            step * -commitment if ctx.needs_input_grad[0] else None,
            step * codebook if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


def _distortion(vectors, codebook):
    """Mean squared distance to the nearest codeword, and its index."""
    chosen = nearest(vectors, codebook)
    return float((vectors - codebook[chosen]).square().sum(1).mean()), chosen


def _summary(done, total) -> Reestimate:
    rows, before, after, distinct = zip(*done)
    return Reestimate(
        torch.stack(rows), total(after), total(before), min(distinct)
    )


def _check_choice(name, value, choices) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {choices}, got {value!r}.")


def _check_sizes(input_dim, codebook_size, codebook_dim, num_codebooks) -> None:
    sizes = {
        "input_dim": input_dim,
        "codebook_size": codebook_size,
        "codebook_dim": codebook_dim,
        "num_codebooks": num_codebooks,
    }
    for name, size in sizes.items():
        if size is None and name == "codebook_dim":
            continue
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {size!r}.")
