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
    rows : torch.Tensor
        The codewords replaced, booleans [C, K].
    inertia : float
        Mean squared distance of a vector to its quantization, after.
    previous_inertia : float
        The same before.
    num_distinct : int
        Number of distinct vectors, the least over the codebooks.
    """

    rows: torch.Tensor
    inertia: float
    previous_inertia: float
    num_distinct: int


def number_codes(indices: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Number the codes of all codebooks consecutively.

    Arguments
    ---------
    indices : torch.Tensor
        Codes, [N, num_codebooks].
    codebook_size : int
        Number of codes of each codebook.

    Returns
    -------
    torch.Tensor
        The same codes, those of each codebook after those of the one before,
        [N, num_codebooks].

    Example
    -------
    >>> number_codes(torch.tensor([[0, 3], [1, 2]]), codebook_size=4)
    tensor([[0, 7],
            [1, 6]])
    """
    if indices.shape[1] == 1:
        return indices
    books = torch.arange(indices.shape[1], device=indices.device)
    return indices + books * codebook_size


class Codebook(nn.Module):
    """Codewords that learn by gradient.

    It is frozen, in training and in re-initialization, by
    ``requires_grad_(False)`` or ``eval()``.

    Arguments
    ---------
    num_codebooks : int
        Number of codebooks side by side, C.
    codebook_size : int
        Number of codewords in each, K.
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
        """Return the codewords to search, [C, K, d].

        Arguments
        ---------
        recomputed : bool
            Whether a forward is run again for its backward pass, and wants
            the codewords of the first run.

        Returns
        -------
        torch.Tensor
            Codewords, [C, K, d].
        """
        return self.weight

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Look codewords up.

        Arguments
        ---------
        indices : torch.Tensor
            Indices, [N, c], of the first c of the C codebooks; -1 stands for
            no code.

        Returns
        -------
        torch.Tensor
            Codewords, [N, c, d]; zero where there is no code.
        """
        _, size, dim = self.weight.shape
        codewords = nn.functional.embedding(
            number_codes(indices.clamp(min=0), size),
            self.weight.reshape(-1, dim),
        )
        return codewords * (indices >= 0).unsqueeze(-1)

    def learn(
        self, vectors: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Update from a training batch; a gradient needs nothing here."""

    @torch.no_grad()
    def reinitialize(
        self,
        book: int,
        vectors: torch.Tensor,
        scope: str = "all",
        start: str = "codebook",
        generator: torch.Generator | None = None,
    ) -> Reinit:
        """Replace the codewords of one codebook by centroids of vectors.

        Arguments
        ---------
        book : int
            Number of the codebook.
        vectors : torch.Tensor
            Vectors that it quantizes, [N, d].
        scope : str
            ``"all"``, or ``"dead"``: only codes that are the nearest of none
            of the vectors.
        start : str
            Start of k-means for ``"all"``: ``"codebook"``, the present
            codewords, whose codes thereby keep their meaning, or
            ``"kmeans++"``.
        generator : torch.Generator, optional
            Source of random numbers.

        Returns
        -------
        Reinit
            What was done to this codebook.
        """
        old = self.weight[book].detach()
        before, chosen = _distortion(vectors, old)
        rows = torch.ones(len(old), dtype=torch.bool, device=old.device)
        if scope == "dead":
            rows[chosen] = False
        centroids, distinct = old.clone(), len(old)
        if rows.any():
            kept, init = old[~rows], None
            if scope == "all" and start == "codebook":
                init = _reseeded(old, chosen, vectors, generator)
            found = kmeans(
                vectors,
                len(old),
                generator=generator,
                fixed=kept if len(kept) else None,
                init=init,
            )
            centroids[rows] = found.centroids[len(kept) :]
            distinct = found.num_distinct
        after, chosen = _distortion(vectors, centroids)
        counts = torch.bincount(chosen, minlength=len(old))
        self._replace(book, rows, centroids, counts)
        return Reinit(rows, after, before, distinct)

    @torch.no_grad()
    def _replace(
        self,
        book: int,
        rows: torch.Tensor,
        centroids: torch.Tensor,
        counts: torch.Tensor,
    ) -> None:
        """Write the rows [K] marked of centroids [K, d] with counts [K]."""
        new = centroids.to(self.weight)
        old = self.weight[book]
        old.copy_(torch.where(rows.unsqueeze(1), new, old))


class EMACodebook(Codebook):
    """Codewords that follow exponential moving averages of the vectors
    assigned to them (van den Oord et al., 2017, appendix A.1).

    Every codeword starts with a mass of one vector that lies on it: a code
    never chosen stays where it is, and one chosen for the first time moves by
    ``1 - decay`` of the way as any other. (Starts from zero counts fling the
    codes that the first batch does not choose far away.) In a distributed run
    the averages are those over all ranks. Sums and masses belong to training:
    they are in no ``state_dict``, and start anew where only it is loaded.
    Frozen by ``requires_grad_(False)`` or ``eval()``.

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

    # What a new code that no vector belongs to counts for: next to nothing,
    # so that the first vectors to choose it say where it goes.
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
        self._start_averages(weight.clone(), None)

    def _start_averages(self, total, count) -> None:
        if count is None:
            count = torch.ones_like(total[..., 0])
        self.register_buffer("ema_sum", total, persistent=False)
        self.register_buffer("ema_count", count, persistent=False)

    @property
    def learnable(self) -> bool:
        """Whether ``requires_grad_()`` lets the codewords learn."""
        return self._follow

    def requires_grad_(self, requires_grad: bool = True):
        """Freeze the codewords, or let them learn, though not by gradient.

        Arguments
        ---------
        requires_grad : bool
            Whether they follow the averages.

        Returns
        -------
        EMACodebook
            This codebook.
        """
        self._follow = requires_grad
        return super().requires_grad_(requires_grad)

    def table(self, recomputed: bool = False) -> torch.Tensor:
        """See ``Codebook``."""
        if recomputed and self._previous is not None:
            return self._previous
        return self.weight

    def _load_from_state_dict(self, state_dict, prefix, *args):
        # Checkpoints of version 0.1 have the averages.
        total = state_dict.pop(f"{prefix}ema_sum", None)
        count = state_dict.pop(f"{prefix}ema_count", None)
        super()._load_from_state_dict(state_dict, prefix, *args)
        if f"{prefix}weight" in state_dict:
            total = self.weight if total is None else total.to(self.weight)
            count = count if count is None else count.to(self.weight)
            self._start_averages(total.detach().clone(), count)

    @torch.no_grad()
    def learn(
        self, vectors: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Move the averages and with them the codewords.

        Arguments
        ---------
        vectors : torch.Tensor
            Vectors quantized, [N, c, d], by the first c codebooks.
        indices : torch.Tensor
            The codes chosen, [N, c].
        mask : torch.Tensor
            Vectors that count, booleans [N].
        """
        if not (self.training and self.learnable):
            return
        books, size, dim = self.weight.shape
        flat = number_codes(indices, size).reshape(-1)
        mass = mask.to(vectors.dtype).unsqueeze(1).expand_as(indices)
        update = self.ema_sum.new_zeros(books * size, dim + 1)
        update.index_add_(
            0,
            flat,
            torch.cat(
                (vectors * mass.unsqueeze(2), mass.unsqueeze(2)), dim=2
            ).reshape(-1, dim + 1),
        )
        update = sum_over_ranks(update).view(books, size, dim + 1)
        # Where no vector counts, the past does not fade.
        counts = update[..., -1].sum(1, keepdim=True) > 0
        share = counts.to(update.dtype) * (1 - self.decay)
        self.ema_sum.lerp_(update[..., :-1], share.unsqueeze(2))
        self.ema_count.lerp_(update[..., -1], share)
        # The mean of a code that was not chosen moves by rounding alone, and
        # thousands of batches of rounding add up.
        chosen = update[..., -1:] > 0
        mean = self.ema_sum / self.ema_count.unsqueeze(2)
        self._previous = self.weight.clone()
        self.weight.copy_(torch.where(chosen, mean, self.weight))

    @torch.no_grad()
    def _replace(
        self,
        book: int,
        rows: torch.Tensor,
        centroids: torch.Tensor,
        counts: torch.Tensor,
    ) -> None:
        # The new sums are centroid x count, the counts scaled to the present
        # mass.
        super()._replace(book, rows, centroids, counts)
        share = counts.to(self.ema_count) / counts.sum().clamp(min=1)
        mass = (share * self.ema_count[book].sum()).clamp(min=self.min_mass)
        count = torch.where(rows, mass, self.ema_count[book])
        self.ema_count[book] = count
        self.ema_sum[book] = torch.where(
            rows.unsqueeze(1),
            self.weight[book] * count.unsqueeze(1),
            self.ema_sum[book],
        )


def _reseeded(codebook, chosen, vectors, generator):
    """The codewords [K, d], those that are the nearest of no vector replaced
    by k-means++ seeds; far vectors, where Lloyd would put them, are rare."""
    dead = torch.ones(len(codebook), dtype=torch.bool, device=codebook.device)
    dead[chosen] = False
    if not dead.any():
        return codebook
    live = codebook[~dead]
    found = kmeans(vectors, len(codebook), 0, generator=generator, fixed=live)
    codebook = codebook.clone()
    codebook[dead] = found.centroids[len(live) :]
    return codebook


def _distortion(vectors, codebook):
    """Mean squared distance to the nearest codeword, and its index."""
    chosen = nearest(vectors, codebook)
    return float((vectors - codebook[chosen]).square().sum(1).mean()), chosen


def make_codebook(
    kind: str, *shape_and_init, ema_decay: float | None = None
) -> Codebook:
    """Build a codebook, ``"gradient"`` or ``"ema"``; see ``Codebook``."""
    check_choice("codebook", kind, ("gradient", "ema"))
    if kind == "ema":
        decay = 0.99 if ema_decay is None else ema_decay
        return EMACodebook(*shape_and_init, decay)
    if ema_decay is not None:
        raise ValueError("ema_decay needs codebook='ema'.")
    return Codebook(*shape_and_init)
