"""Codebooks: they code latents, and learn or are fixed."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.nnet.search import nearest
from speechbrain_vq.nnet.utils import check_choice, sum_over_ranks

# Latents of which a re-initialization measures the distances: as many as the
# reservoir has by default.
_MOST_COMPARED = 20480


class Reinit(NamedTuple):
    """Mean squared distance of a latent to its quantization, after and before
    a re-initialization, of 20,480 latents at most."""

    inertia: float
    previous_inertia: float


def number_codes(indices: Tensor, codebook_size: int) -> Tensor:
    """Number the codes [N, C] of all codebooks consecutively."""
    books = torch.arange(indices.shape[1], device=indices.device)
    return indices + books * codebook_size


class Codebook(nn.Module):
    """Codebooks that code latents together, and learn by gradient.

    They stand side by side, each for its slice of the latent (Jegou et al.,
    Product quantization for nearest neighbor search, 2011, section II-B), or
    in a row, each coding what those before it left over (Zeghidour et al.,
    SoundStream, arXiv 2107.03312, section III-C).

    Arguments
    ---------
    num_codebooks, codebook_size, codebook_dim : int
        C, K and d.
    init : str
        ``"normal"``: of unit variance, the scale of normalized latents;
        ``"uniform"``: in (-1/K, 1/K), as van den Oord et al. (2017);
        ``"xavier"``: up to sqrt(6 / (K + d)) (Glorot and Bengio, 2010).
    residual : bool
        Whether the codebooks form a row.
    unit_length : bool
        Whether codewords are scaled to unit length where they are used.

    Example
    -------
    >>> codebook = Codebook(1, 8, 4)
    >>> codebook(torch.tensor([[0], [7]])).shape
    torch.Size([2, 1, 4])
    """

    # Whether a loss draws codewords to latents, and k-means replaces them.
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
        # Those before the last update, where it is not by gradient.
        self.previous = None
        sizes = num_codebooks, codebook_size, codebook_dim
        weight = torch.empty(sizes, dtype=torch.float32)
        if init == "normal":
            weight.normal_()
        elif init == "uniform":
            weight.uniform_(-1 / codebook_size, 1 / codebook_size)
        else:  # As of a matrix [K, d]
            bound = math.sqrt(6 / (codebook_size + codebook_dim))
            weight.uniform_(-bound, bound)
        self.weight = nn.Parameter(weight)

    @property
    def learnable(self) -> bool:
        """Whether ``requires_grad_()`` lets the codewords learn."""
        return self.weight.requires_grad

    @property
    def table(self) -> Tensor:
        """The codewords as they are used, [C, K, d]."""
        return self._scale(self.weight)

    def constrain(self, parts: Tensor) -> Tensor:
        """Map what is quantized, [N, C, d], to where the codewords lie."""
        return self._scale(parts)

    def code(self, latents: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Code latents [N, D] by the first c codebooks, [c, K, d]: indices
        [N, c], and the vectors that each codebook quantizes, [N, c, d]."""
        indices, targets = [], []
        parts = latents.unflatten(1, (-1, table.shape[2]))
        for book, words in enumerate(table):
            target = latents if self.residual else parts[:, book]
            targets.append(target)
            indices.append(nearest(target, words))
            if self.residual:
                # Detached: a straight-through path here would cancel the
                # commitment gradient of every later stage.
                latents = latents - words.detach()[indices[-1]]
        targets = torch.stack(targets, dim=1) if self.residual else parts
        return torch.stack(indices, dim=1), targets

    def forward(self, indices: Tensor, table: Tensor | None = None) -> Tensor:
        """Look up codewords [N, c, d] by codes [N, c] of the first c codebooks,
        here or in a table [C, K, d]."""
        table = self.table if table is None else table
        codes = number_codes(indices, table.shape[1])
        words = table.flatten(0, 1).index_select(0, codes.flatten())
        return words.view(*indices.shape, table.shape[2])

    def combine(self, codewords: Tensor) -> Tensor:
        """Combine codewords [N, c, d] to latents [N, D]."""
        return codewords.sum(1) if self.residual else codewords.flatten(1)

    def learn(self, vectors: Tensor, indices: Tensor, mask: Tensor) -> None:
        """Update from vectors [N, c, d] with codes [N, c], of which those in
        the mask [N] count; here gradients do it."""

    @torch.no_grad()
    def reinitialize(self, latents: Tensor, start: str, generator) -> Reinit:
        """Replace codewords by centroids of latents [N, D]; see
        ``VectorQuantizer.reinitialize``."""
        sample = latents[:: -(-len(latents) // _MOST_COMPARED)]
        before = self._error(sample)
        parts = latents.unflatten(1, (-1, self.weight.shape[2]))
        for book, words in enumerate(self.table):
            vectors = latents if self.residual else parts[:, book]
            init = words if start == "codebook" else None
            options = {"generator": generator, "init": init}
            result = kmeans(vectors, len(words), **options)
            self._replace(book, result.centroids, result.counts)
            if self.residual and book + 1 < len(self.weight):
                latents = latents - words[nearest(latents, words)]
        return Reinit(self._error(sample), before)

    def _scale(self, vectors: Tensor) -> Tensor:
        """Scale vectors [.., .., d] to unit length, if codewords are."""
        if not self.unit_length:
            return vectors
        return nn.functional.normalize(vectors, dim=2)

    def _fix(self, weight: Tensor) -> None:
        """Make the codewords a buffer, which no gradient moves."""
        del self.weight
        self.register_buffer("weight", weight)

    def _error(self, latents: Tensor) -> float:
        """Mean squared distance of latents [N, D] to their quantization."""
        indices, _ = self.code(latents, self.table)
        left = latents - self.combine(self(indices))
        return float(left.square().sum(1).mean())

    @torch.no_grad()
    def _replace(self, book, centroids, counts) -> None:
        """Write centroids [K, d] of so many vectors [K]."""
        self.weight[book] = centroids.to(self.weight)


class EMACodebook(Codebook):
    """Codebooks that follow exponential moving averages of the vectors
    assigned to their codewords (van den Oord et al., 2017, appendix A.1), over
    all ranks.

    Every codeword starts with a mass of one vector that lies on it: a code
    never chosen stays where it is. The averages are in no ``state_dict``, and
    start anew where only it is loaded.

    The arguments are those of ``Codebook``, and ``decay``: the weight of the
    past at each batch.

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
        """Let the codewords follow the averages, or freeze them."""
        self.learnable = requires_grad
        return super().requires_grad_(requires_grad)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}weight" in state_dict:
            self._start_averages()

    @torch.no_grad()
    def learn(self, vectors: Tensor, indices: Tensor, mask: Tensor) -> None:
        """Move the averages and with them the codewords, see ``Codebook``."""
        if not (self.training and self.learnable):
            return
        books, size, dim = self.weight.shape
        codes = number_codes(indices, size).flatten()
        mass = mask.to(vectors.dtype).view(-1, 1, 1).expand(*indices.shape, 1)
        rows = torch.cat((vectors * mass, mass), dim=2).flatten(0, 1)
        update = rows.new_zeros(books * size, dim + 1)
        update = update.index_add_(0, codes, rows)
        update = sum_over_ranks(update).view(books, size, dim + 1)
        # Where no vector counts, the past does not fade.
        counts = update[..., -1].sum(1, keepdim=True) > 0
        share = counts.to(update.dtype) * (1 - self.decay)
        self.ema_sum.lerp_(update[..., :-1], share.unsqueeze(2))
        self.ema_count.lerp_(update[..., -1], share)
        # The mean of a code not chosen moves by rounding alone, which adds up.
        chosen = update[..., -1:] > 0
        mean = self.ema_sum / self.ema_count.unsqueeze(2)
        self.previous = self.table.clone()
        self.weight.copy_(torch.where(chosen, mean, self.weight))

    def _replace(self, book, centroids, counts) -> None:
        # Sums are centroid x count, with counts scaled to the old mass.
        super()._replace(book, centroids, counts)
        share = counts.to(self.ema_count) / counts.sum().clamp(min=1)
        # Where there are no vectors, the first to choose the code place it.
        mass = (share * self.ema_count[book].sum()).clamp(min=1e-6)
        self.ema_count[book] = mass
        self.ema_sum[book] = self.weight[book] * mass.unsqueeze(1)


class FSQCodebook(Codebook):
    """Codebooks that do not learn: a lattice of a few levels in each dimension,
    at equal distances in [-1, 1] (finite scalar quantization: Mentzer et al.,
    2023, arXiv 2309.15505; the levels: Parker et al., 2024, arXiv 2411.19842).

    Latents pass through a tanh, and are rounded: there is no search.

    Arguments
    ---------
    num_codebooks, codebook_size, codebook_dim : int
        C, K and d; K is the product of the numbers of levels.
    **options
        Those of ``Codebook``, which do not matter here.

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
                "numbers of levels above 1: with a power of 2 "
                f"codebook_dim={self.default_dim(size)} works."
            )
        axes = [
            torch.linspace(-1, 1, number, dtype=self.weight.dtype)
            for number in self.levels
        ]
        points = torch.cartesian_prod(*axes).view(size, dim)
        self._fix(points.expand_as(self.weight).clone())

    @classmethod
    def default_dim(cls, codebook_size: int) -> int:
        """Return the dimension of codewords where none is given."""
        return max(round(math.log2(codebook_size) / cls.bits_per_dim), 1)

    def constrain(self, parts: Tensor) -> Tensor:
        """Bound what is quantized, see ``Codebook``."""
        return parts.tanh()

    def code(self, latents: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        """Round latents, see ``Codebook``."""
        parts = latents.unflatten(1, (-1, table.shape[2]))
        # The last dimension counts fastest, as in the table.
        indices = 0
        for values, number in zip(parts.unbind(2), self.levels, strict=True):
            level = torch.round((values + 1) / 2 * (number - 1))
            indices = indices * number + level.clamp(0, number - 1).long()
        return indices, parts


class LFQCodebook(FSQCodebook):
    """Codebooks that do not learn: the corners of a cube, the signs of a latent
    (lookup-free quantization: Yu et al., 2023, arXiv 2310.05737, section 3.1).

    The arguments are those of ``FSQCodebook``; K is two to the power of d.

    Example
    -------
    >>> LFQCodebook(1, 4, 2).weight.tolist()
    [[[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]]]
    """

    bits_per_dim = 1

    def constrain(self, parts: Tensor) -> Tensor:
        """Leave what is quantized as it is."""
        return parts


class SimVQCodebook(Codebook):
    """Codebooks of random vectors that stay, and a linear map that learns, so
    that each gradient moves all codewords (SimVQ: Zhu et al., 2024, arXiv
    2411.02038, section 3).

    The arguments are those of ``Codebook``.

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
        """The mapped vectors, [C, K, d]."""
        return self._scale(self.weight @ self.transform)


# By what ``VectorQuantizer`` calls them.
CODEBOOKS = {
    "gradient": Codebook,
    "ema": EMACodebook,
    "fsq": FSQCodebook,
    "lfq": LFQCodebook,
    "simvq": SimVQCodebook,
}


def _divide_levels(codebook_size: int, codebook_dim: int) -> list[int]:
    """Factor a number of codes into one of levels for each dimension, as evenly
    as it goes: for the sizes of Mentzer et al. (2023), table 1, theirs."""
    factors, rest, prime = [], codebook_size, 2
    while rest > 1:
        while rest % prime:
            prime += 1
        factors.append(prime)
        rest //= prime
    levels = [1] * codebook_dim
    for factor in reversed(factors):
        levels[levels.index(min(levels))] *= factor
    return sorted(levels, reverse=True)
