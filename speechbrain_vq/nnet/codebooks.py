"""Learned and fixed codebooks."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.nnet.search import nearest
from speechbrain_vq.nnet.utils import check_choice, sum_over_ranks

# Maximum number of latents used to measure the quantization error before and
# after a re-initialization.
_MAX_COMPARED = 20480


class Reinit(NamedTuple):
    """Mean squared quantization error after and before a re-initialization,
    measured on at most 20,480 latents."""

    inertia: float
    previous_inertia: float


def number_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """Number the codes [N, C] of all codebooks consecutively."""
    books = torch.arange(indices.shape[1], device=indices.device)
    return indices + books * codebook_size


class Codebook(nn.Module):
    """Codebooks that jointly quantize latents, trained by gradient descent.

    Either each codebook quantizes a slice of the latent (product quantization:
    Jegou et al., 2011, section II-B), or each quantizes the residual of the
    previous ones (residual quantization: Zeghidour et al., SoundStream, arXiv
    2107.03312, section III-C).

    Arguments
    ---------
    num_codebooks, codebook_size, codebook_dim : int
        C, K and d.
    init : str
        ``"normal"``: unit variance, the scale of normalized latents;
        ``"uniform"``: in (-1/K, 1/K), as in van den Oord et al. (2017);
        ``"xavier"``: uniform up to sqrt(6 / (K + d)) (Glorot and Bengio, 2010).
    residual : bool
        Whether each codebook quantizes the residual of the previous ones.
    unit_length : bool
        Whether codewords are scaled to unit length before use.

    Example
    -------
    >>> codebook = Codebook(1, 8, 4)
    >>> codebook(torch.tensor([[0], [7]])).shape
    torch.Size([2, 1, 4])
    """

    # Whether the codebook loss applies, and k-means may replace codewords.
    has_loss = is_reinitialized = True

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        codebook_dim: int,
        init: str = "normal",
        residual: bool = False,
        unit_length: bool = False,
    ):
        super().__init__()
        check_choice("codebook_init", init, ("uniform", "xavier", "normal"))
        self.residual, self.unit_length = residual, unit_length
        # Codewords before the last EMA update; None for other codebooks.
        self.previous = None
        sizes = num_codebooks, codebook_size, codebook_dim
        weight = torch.empty(sizes, dtype=torch.float32)
        if init == "normal":
            weight.normal_()
        elif init == "uniform":
            weight.uniform_(-1 / codebook_size, 1 / codebook_size)
        else:
            bound = math.sqrt(6 / (codebook_size + codebook_dim))
            weight.uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)

    @property
    def learnable(self) -> bool:
        """Whether the codewords are trained, see ``requires_grad_()``."""
        return self.weight.requires_grad

    @property
    def table(self) -> Tensor:
        """Codewords as used in the search, [C, K, d]."""
        return self._scale(self.weight)

    def constrain(self, parts: Tensor) -> Tensor:
        """Map latents [N, C, d] into the space of the codewords."""
        return self._scale(parts)

    def code(self, latents: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Quantize latents [N, D] with c codebooks [c, K, d]. Return codes
        [N, c] and the vectors that each codebook quantizes, [N, c, d]."""
        indices, targets = [], []
        parts = latents.unflatten(1, (-1, table.shape[2]))
        for book, words in enumerate(table):
            target = latents if self.residual else parts[:, book]
            targets.append(target)
            indices.append(nearest(target, words))
            if self.residual:
                # Detached, or the straight-through gradient would cancel the
                # commitment gradient of all later codebooks.
                latents = latents - words.detach()[indices[-1]]
        targets = torch.stack(targets, dim=1) if self.residual else parts
        return torch.stack(indices, dim=1), targets

    def forward(self, indices: Tensor, table: Tensor | None = None) -> Tensor:
        """Look up codewords [N, c, d] for codes [N, c] of the first c
        codebooks, by default in ``self.table`` [C, K, d]."""
        table = self.table if table is None else table
        codes = number_codes(indices, table.shape[1])
        words = table.flatten(0, 1).index_select(0, codes.flatten())
        return words.view(*indices.shape, table.shape[2])

    def combine(self, codewords: Tensor) -> Tensor:
        """Sum or concatenate codewords [N, c, d] into latents [N, D]."""
        return codewords.sum(1) if self.residual else codewords.flatten(1)

    def learn(self, vectors: Tensor, indices: Tensor, mask: Tensor) -> None:
        """Update the codebook from vectors [N, c, d] with codes [N, c] where
        the mask [N] is True. A no-op for codebooks trained by gradient."""

    @torch.no_grad()
    def reinitialize(self, latents: Tensor, start: str, generator) -> Reinit:
        """Replace codewords with k-means centroids of latents [N, D]; see
        ``VectorQuantizer.reinitialize``."""
        sample = latents[:: -(-len(latents) // _MAX_COMPARED)]
        before = self._error(sample)
        parts = latents.unflatten(1, (-1, self.weight.shape[2]))
        for book, words in enumerate(self.table):
            vectors = latents if self.residual else parts[:, book]
            init = words if start == "codebook" else None
            result = kmeans(vectors, len(words), generator=generator, init=init)
            self._replace(book, result.centroids, result.counts)
            if self.residual and book + 1 < len(self.weight):
                latents = latents - words[nearest(latents, words)]
        return Reinit(self._error(sample), before)

    def _scale(self, vectors: Tensor) -> Tensor:
        """Scale vectors [..., ..., d] to unit length if ``unit_length``."""
        if not self.unit_length:
            return vectors
        return nn.functional.normalize(vectors, dim=2)

    def _fix(self, weight: Tensor) -> None:
        """Store the codewords as a buffer, without gradients."""
        del self.weight
        self.register_buffer("weight", weight)

    def _error(self, latents: Tensor) -> float:
        """Mean squared quantization error of latents [N, D]."""
        indices, _ = self.code(latents, self.table)
        errors = latents - self.combine(self(indices))
        return float(errors.square().sum(1).mean())

    @torch.no_grad()
    def _replace(self, book, centroids, counts) -> None:
        """Set a codebook to centroids [K, d] with ``counts`` [K] vectors
        assigned to each."""
        self.weight[book] = centroids.to(self.weight)


class EMACodebook(Codebook):
    """Codebooks whose codewords are exponential moving averages of the vectors
    assigned to them (van den Oord et al., 2017, appendix A.1), over all ranks.

    Each average starts from one vector, the initial codeword, and unused codes
    do not move. The averages are not in the ``state_dict``: loading one
    restarts them from its codewords.

    Takes the arguments of ``Codebook``, and ``decay``: the weight of the old
    average in each batch.

    Example
    -------
    >>> codebook = EMACodebook(1, 2, 1, decay=0.5)
    >>> ones, zeros = torch.ones(3, 1, 1), torch.zeros(3, 1, dtype=torch.long)
    >>> for _ in range(50):
    ...     codebook.learn(ones, zeros, torch.ones(3, dtype=torch.bool))
    >>> codebook.weight[0, 0]
    tensor([1.])
    """

    has_loss, learnable = False, True

    def __init__(self, *sizes: int, decay: float = 0.99, **options):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}.")
        super().__init__(*sizes, **options)
        self.decay = decay
        self._fix(self.weight.detach())
        self._start_averages()

    def _start_averages(self) -> None:
        total = self.weight.detach().clone()
        count = torch.ones_like(total[..., 0])
        self.register_buffer("ema_sum", total, persistent=False)
        self.register_buffer("ema_count", count, persistent=False)

    def requires_grad_(self, requires_grad: bool = True):
        """Enable or freeze the updates of the codewords."""
        self.learnable = requires_grad
        return super().requires_grad_(requires_grad)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}weight" in state_dict:
            self._start_averages()

    @torch.no_grad()
    def learn(self, vectors: Tensor, indices: Tensor, mask: Tensor) -> None:
        """Update the averages and the codewords; see ``Codebook``."""
        if not (self.training and self.learnable):
            return
        books, size, dim = self.weight.shape
        codes = number_codes(indices, size).flatten()
        mass = mask.to(vectors.dtype).view(-1, 1, 1).expand(*indices.shape, 1)
        vectors = vectors.masked_fill(mass == 0, 0.0)
        rows = torch.cat((vectors, mass), dim=2).flatten(0, 1)
        update = rows.new_zeros(books * size, dim + 1)
        update = update.index_add_(0, codes, rows)
        update = sum_over_ranks(update).view(books, size, dim + 1)
        # Averages do not decay in a batch without valid vectors.
        counts = update[..., -1].sum(1, keepdim=True) > 0
        share = counts.to(update.dtype) * (1 - self.decay)
        self.ema_sum.lerp_(update[..., :-1], share.unsqueeze(2))
        self.ema_count.lerp_(update[..., -1], share)
        # Without a new vector, a mean changes only by rounding, which adds up.
        chosen = update[..., -1:] > 0
        mean = self.ema_sum / self.ema_count.unsqueeze(2)
        self.previous = self.table.clone()
        self.weight.copy_(torch.where(chosen, mean, self.weight))

    def _replace(self, book, centroids, counts) -> None:
        super()._replace(book, centroids, counts)
        # The codebook's total count is unchanged.
        share = counts.to(self.ema_count) / counts.sum().clamp(min=1)
        # With a tiny count, the next vectors assigned to an empty code set it.
        mass = (share * self.ema_count[book].sum()).clamp(min=1e-6)
        self.ema_count[book] = mass
        self.ema_sum[book] = self.weight[book] * mass.unsqueeze(1)


class FSQCodebook(Codebook):
    """Fixed codebooks of finite scalar quantization (Mentzer et al., 2023,
    arXiv 2309.15505): a lattice with a few equidistant levels per dimension in
    [-1, 1] (Parker et al., 2024, arXiv 2411.19842).

    Latents are bounded by tanh and rounded, without a search.

    Arguments
    ---------
    num_codebooks, codebook_size, codebook_dim : int
        C, K and d; K must be the product of the levels in d dimensions.
    **options
        Other arguments of ``Codebook``, ignored.

    Example
    -------
    >>> codebook = FSQCodebook(1, 1000, 4)
    >>> codebook.levels
    [8, 5, 5, 5]
    >>> codebook(torch.tensor([[999]]))
    tensor([[[1., 1., 1., 1.]]])
    """

    has_loss = is_reinitialized = False
    bits_per_dim = 3

    def __init__(self, *sizes: int, **options):
        super().__init__(*sizes)
        _, size, dim = sizes
        self.levels = _divide_levels(size, dim)
        if min(self.levels) < 2:
            raise ValueError(
                f"codebook_size={size} is not a product of codebook_dim={dim} "
                "integers above 1, the levels per dimension. For a power of 2, "
                f"use codebook_dim={self.default_dim(size)}."
            )
        dtype = self.weight.dtype
        axes = [torch.linspace(-1, 1, n, dtype=dtype) for n in self.levels]
        points = torch.cartesian_prod(*axes).view(size, dim)
        self._fix(points.expand_as(self.weight).clone())

    @classmethod
    def default_dim(cls, codebook_size: int) -> int:
        """Return the default dimension of codewords."""
        return max(round(math.log2(codebook_size) / cls.bits_per_dim), 1)

    def constrain(self, parts: Tensor) -> Tensor:
        """Bound latents; see ``Codebook``."""
        return parts.tanh()

    def code(self, latents: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Round latents; see ``Codebook``."""
        parts = latents.unflatten(1, (-1, table.shape[2]))
        # The last dimension varies fastest, as in the table.
        indices = 0
        for values, number in zip(parts.unbind(2), self.levels, strict=True):
            indices = indices * number + self._level(values, number)
        return indices, parts

    def _level(self, values: Tensor, number: int) -> Tensor:
        """Return the nearest of ``number`` levels."""
        level = torch.round((values + 1) / 2 * (number - 1))
        return level.nan_to_num().clamp(0, number - 1).long()


class LFQCodebook(FSQCodebook):
    """Fixed codebooks of lookup-free quantization (Yu et al., 2023, arXiv
    2310.05737, section 3.1): the corners of a cube. The signs of a latent's d
    elements are its code.

    Takes the arguments of ``FSQCodebook``; K must be 2 to the power of d.

    Example
    -------
    >>> LFQCodebook(1, 4, 2).weight.tolist()
    [[[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]]
    """

    bits_per_dim = 1

    def constrain(self, parts: Tensor) -> Tensor:
        """Return latents unchanged."""
        return parts

    def _level(self, values: Tensor, number: int) -> Tensor:
        """Return 1 for values above 0, else 0."""
        return (values > 0).long()


class SimVQCodebook(Codebook):
    """Codebooks of fixed random vectors under a learned linear map, so each
    gradient moves all codewords (SimVQ: Zhu et al., 2024, arXiv 2411.02038,
    section 3). Takes the arguments of ``Codebook``.

    Example
    -------
    >>> codebook = SimVQCodebook(1, 8, 4)
    >>> [name for name, _ in codebook.named_parameters()]
    ['transform']
    """

    is_reinitialized = False

    def __init__(self, *sizes: int, **options):
        super().__init__(*sizes, **options)
        self._fix(self.weight.detach())
        books, _, dim = self.weight.shape
        identity = torch.eye(dim, dtype=torch.float32)
        self.transform = nn.Parameter(identity.repeat(books, 1, 1))

    @property
    def table(self) -> Tensor:
        """Mapped vectors, [C, K, d]."""
        return self._scale(self.weight @ self.transform)


# Classes by the value of the ``codebook`` argument of ``VectorQuantizer``.
CODEBOOKS = {
    "gradient": Codebook,
    "ema": EMACodebook,
    "fsq": FSQCodebook,
    "lfq": LFQCodebook,
    "simvq": SimVQCodebook,
}


def _divide_levels(codebook_size: int, codebook_dim: int) -> list[int]:
    """Factor a codebook size into levels per dimension, as evenly as possible.
    For the sizes in Mentzer et al. (2023), table 1, they equal the paper's."""
    factors, remaining, prime = [], codebook_size, 2
    while remaining > 1:
        while remaining % prime:
            prime += 1
        factors.append(prime)
        remaining //= prime
    levels = [1] * codebook_dim
    for factor in reversed(factors):
        levels[levels.index(min(levels))] *= factor
    return sorted(levels, reverse=True)
