"""Codebooks: they hold codewords, learn, and are re-initialized by k-means."""

import math
from typing import NamedTuple

import torch
from torch import nn

from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.nnet.search import nearest
from speechbrain_vq.nnet.utils import check_choice, sum_over_ranks


class Reinit(NamedTuple):
    """Result of a re-initialization of C codebooks.

    Arguments
    ---------
    inertia : float
        Mean squared distance of a vector to its quantization, after.
    previous_inertia : float
        The same before.
    """

    inertia: float
    previous_inertia: float


def number_codes(indices: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Number the codes [N, C] of all codebooks consecutively.

    >>> number_codes(torch.tensor([[0, 3], [1, 2]]), codebook_size=4)
    tensor([[0, 7],
            [1, 6]])
    """
    books = torch.arange(indices.shape[1], device=indices.device)
    return indices + books * codebook_size


class Codebook(nn.Module):
    """Codewords that learn by gradient.

    ``requires_grad_(False)`` or ``eval()`` freeze it, re-initialization
    included.

    Arguments
    ---------
    num_codebooks : int
        Number of codebooks, C.
    codebook_size : int
        Number of codewords of each, K.
    codebook_dim : int
        Dimension of a codeword, d.
    init : str
        ``"uniform"``: in (-1/K, 1/K), as van den Oord et al. (2017) and the
        code of arXiv 2005.08520 on images; ``"xavier"``: uniform as well, up
        to sqrt(6 / (K + d)) (Glorot and Bengio, 2010, equation 16), as that
        code on handwriting and speech; ``"normal"``: of unit variance, the
        scale of batch-normalized latents.

    Example
    -------
    >>> codebook = Codebook(1, 8, 4)
    >>> codebook(torch.tensor([[0], [7]])).shape
    torch.Size([2, 1, 4])
    """

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        codebook_dim: int,
        init: str = "normal",
    ):
        super().__init__()
        check_choice("codebook_init", init, ("uniform", "xavier", "normal"))
        weight = torch.empty(
            num_codebooks, codebook_size, codebook_dim, dtype=torch.float32
        )
        if init == "uniform":
            weight.uniform_(-1 / codebook_size, 1 / codebook_size)
        elif init == "xavier":
            bound = math.sqrt(6 / (codebook_size + codebook_dim))
            weight.uniform_(-bound, bound)
        else:
            weight.normal_()
        self._register(weight)

    def _register(self, weight: torch.Tensor) -> None:
        self.weight = nn.Parameter(weight)

    @property
    def learnable(self) -> bool:
        """Whether ``requires_grad_()`` lets the codewords learn."""
        return self.weight.requires_grad

    def table(self, recomputed: bool = False) -> torch.Tensor:
        """Return the codewords to search, [C, K, d]: where activation
        checkpointing recomputes a forward, those of its first run."""
        return self.weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Look up codewords [N, c, d] by codes [N, c] of the first c codebooks;
        -1 stands for no code, and gives zeros."""
        _, size, dim = self.weight.shape
        codewords = nn.functional.embedding(
            number_codes(indices.clamp(min=0), size),
            self.weight.reshape(-1, dim),
        )
        return codewords * (indices >= 0).unsqueeze(-1)

    def learn(
        self, vectors: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Update from vectors [N, c, d] with codes [N, c], of which those in
        the mask [N] count; here gradients do it."""

    @torch.no_grad()
    def reinitialize(
        self,
        book: int,
        vectors: torch.Tensor,
        start: str = "codebook",
        generator: torch.Generator | None = None,
    ) -> Reinit:
        """Replace the codewords of one codebook by centroids of the vectors
        [N, d] that it quantizes; see ``VectorQuantizer.reinitialize``."""
        old = self.weight[book].detach()
        before, chosen = _distortion(vectors, old)
        seeds, size = None, len(old)
        if start == "codebook":
            # Lloyd would send codes without vectors to the farthest ones,
            # which are rare.
            unused = torch.bincount(chosen, minlength=size) == 0
            seeds = _reseed(vectors, old, unused, generator)
        result = kmeans(vectors, size, generator=generator, init=seeds)
        self._replace(book, result.centroids, result.counts)
        return Reinit(float(result.inertia) / len(vectors), before)

    @torch.no_grad()
    def _replace(self, book, centroids, counts) -> None:
        """Write centroids [K, d] of so many vectors [K]."""
        self.weight[book] = centroids.to(self.weight)


class EMACodebook(Codebook):
    """Codewords that follow exponential moving averages of the vectors
    assigned to them (van den Oord et al., 2017, appendix A.1).

    Every codeword starts with a mass of one vector that lies on it: a code
    never chosen stays where it is, and one chosen for the first time moves by
    ``1 - decay`` of the way as any other. The averages are those over all
    ranks. They belong to training, so they are in no ``state_dict``, and start
    anew where only it is loaded.

    Arguments
    ---------
    num_codebooks, codebook_size, codebook_dim, init
        See ``Codebook``.
    decay : float
        Weight of the past at each batch.

    Example
    -------
    >>> codebook = EMACodebook(1, 2, 1, decay=0.5)
    >>> ones, zeros = torch.ones(3, 1, 1), torch.zeros(3, 1, dtype=torch.long)
    >>> for _ in range(50):
    ...     codebook.learn(ones, zeros, torch.ones(3, dtype=torch.bool))
    >>> codebook.weight[0, 0]
    tensor([1.])
    """

    # Mass of a new code without vectors: the first to choose it place it.
    min_mass = 1e-6

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        codebook_dim: int,
        init: str = "normal",
        decay: float = 0.99,
    ):
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}.")
        super().__init__(num_codebooks, codebook_size, codebook_dim, init)
        self.decay = decay

    def _register(self, weight: torch.Tensor) -> None:
        self.register_buffer("weight", weight)
        self._follow = True
        # The codewords before the last update.
        self._previous = None
        self._start_averages(weight.clone())

    def _start_averages(self, total: torch.Tensor) -> None:
        count = torch.ones_like(total[..., 0])
        self.register_buffer("ema_sum", total, persistent=False)
        self.register_buffer("ema_count", count, persistent=False)

    @property
    def learnable(self) -> bool:
        """Whether ``requires_grad_()`` lets the codewords learn."""
        return self._follow

    def requires_grad_(self, requires_grad: bool = True):
        """Let the codewords follow the averages, or freeze them."""
        self._follow = requires_grad
        return super().requires_grad_(requires_grad)

    def table(self, recomputed: bool = False) -> torch.Tensor:
        """Return the codewords to search, see ``Codebook``."""
        previous = self._previous if recomputed else None
        return self.weight if previous is None else previous

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}weight" in state_dict:
            self._start_averages(self.weight.detach().clone())

    @torch.no_grad()
    def learn(
        self, vectors: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Move the averages and with them the codewords, see ``Codebook``."""
        if not (self.training and self.learnable):
            return
        books, size, dim = self.weight.shape
        codes = number_codes(indices, size).flatten()
        mass = mask.to(vectors.dtype).view(-1, 1, 1).expand(*indices.shape, 1)
        rows = torch.cat((vectors * mass, mass), dim=2).flatten(0, 1)
        update = rows.new_zeros(books * size, dim + 1).index_add_(
            0, codes, rows
        )
        update = sum_over_ranks(update).view(books, size, dim + 1)
        # Where no vector counts, the past does not fade.
        counts = update[..., -1].sum(1, keepdim=True) > 0
        share = counts.to(update.dtype) * (1 - self.decay)
        self.ema_sum.lerp_(update[..., :-1], share.unsqueeze(2))
        self.ema_count.lerp_(update[..., -1], share)
        # The mean of a code not chosen moves by rounding alone, which adds up.
        chosen = update[..., -1:] > 0
        mean = self.ema_sum / self.ema_count.unsqueeze(2)
        self._previous = self.weight.clone()
        self.weight.copy_(torch.where(chosen, mean, self.weight))

    def _replace(self, book, centroids, counts) -> None:
        # Sums are centroid x count, with counts scaled to the old mass.
        super()._replace(book, centroids, counts)
        share = counts.to(self.ema_count) / counts.sum().clamp(min=1)
        mass = (share * self.ema_count[book].sum()).clamp(min=self.min_mass)
        self.ema_count[book] = mass
        self.ema_sum[book] = self.weight[book] * mass.unsqueeze(1)


def _distortion(vectors, codebook):
    """Mean squared distance to the nearest codeword, and its index."""
    chosen = nearest(vectors, codebook)
    return float((vectors - codebook[chosen]).square().sum(1).mean()), chosen


def _reseed(vectors, codebook, rows, generator):
    """The codebook [K, d] with seeds of k-means++ in the marked rows [K]."""
    centroids, kept = codebook.clone(), codebook[~rows]
    if rows.any():
        fixed = kept if len(kept) else None
        seeds = kmeans(vectors, len(codebook), 0, 0, generator, fixed)
        centroids[rows] = seeds.centroids[len(kept) :]
    return centroids


def make_codebook(kind: str, ema_decay: float | None, *arguments) -> Codebook:
    """Build a ``"gradient"`` or an ``"ema"`` codebook."""
    check_choice("codebook", kind, ("gradient", "ema"))
    if kind == "ema":
        return EMACodebook(*arguments, 0.99 if ema_decay is None else ema_decay)
    if ema_decay is not None:
        raise ValueError("ema_decay needs codebook='ema'.")
    return Codebook(*arguments)
