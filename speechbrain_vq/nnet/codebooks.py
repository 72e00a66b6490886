"""Codebooks: they hold the codewords and know how these learn.

Authors
 * speechbrain_vq authors 2026
"""

import math

import torch
from torch import nn

from speechbrain_vq.nnet.checks import check_choice
from speechbrain_vq.nnet.distributed import sum_over_ranks


def number_codes(indices: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Numbers the codes of all codebooks in one row.

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
    books = torch.arange(indices.shape[1], device=indices.device)
    return indices + books * codebook_size


class Codebook(nn.Module):
    """Codewords that learn by gradient.

    Arguments
    ---------
    num_codebooks : int
        Number of codebooks side by side.
    codebook_size : int
        Number of codewords in each.
    codebook_dim : int
        Dimension of a codeword.
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
        weight = torch.empty(num_codebooks, codebook_size, codebook_dim)
        if init == "uniform":
            weight.uniform_(-1 / codebook_size, 1 / codebook_size)
        elif init == "xavier":
            bound = math.sqrt(6 / (codebook_size + codebook_dim))
            weight.uniform_(-bound, bound)
        else:
            weight.normal_()
        self._hold(weight)

    def _hold(self, weight: torch.Tensor) -> None:
        self.weight = nn.Parameter(weight)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Looks codewords up.

        Arguments
        ---------
        indices : torch.Tensor
            Indices, [N, num_codebooks].

        Returns
        -------
        torch.Tensor
            Codewords, [N, num_codebooks, codebook_dim].
        """
        _, size, dim = self.weight.shape
        return nn.functional.embedding(
            number_codes(indices, size), self.weight.reshape(-1, dim)
        )

    def learn(
        self, vectors: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Called with each training batch; a gradient needs nothing here."""

    @torch.no_grad()
    def rewrite(
        self,
        book: int,
        rows: torch.Tensor,
        centroids: torch.Tensor,
        counts: torch.Tensor,
    ) -> None:
        """Replaces codewords.

        Arguments
        ---------
        book : int
            Which of the codebooks.
        rows : torch.Tensor
            Which codewords, booleans [codebook_size].
        centroids : torch.Tensor
            The new codewords, [codebook_size, codebook_dim]; only the rows
            marked are taken.
        counts : torch.Tensor
            How many of the vectors clustered belong to each row,
            [codebook_size].
        """
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
    the averages are those over all ranks.

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

    def _hold(self, weight: torch.Tensor) -> None:
        self.register_buffer("weight", weight)
        self.register_buffer("ema_sum", weight.clone())
        self.register_buffer("ema_count", torch.ones(weight.shape[:2]))

    @torch.no_grad()
    def learn(
        self, vectors: torch.Tensor, indices: torch.Tensor, mask: torch.Tensor
    ) -> None:
        """Moves the averages.

        Arguments
        ---------
        vectors : torch.Tensor
            What was quantized, [N, num_codebooks, codebook_dim].
        indices : torch.Tensor
            The codes chosen, [N, num_codebooks].
        mask : torch.Tensor
            Which of the N count, booleans [N].
        """
        books, size, dim = self.weight.shape
        flat = number_codes(indices, size).reshape(-1)
        mass = mask.to(vectors.dtype).unsqueeze(1).expand(-1, books)
        update = self.ema_sum.new_zeros(books * size, dim + 1)
        update.index_add_(
            0,
            flat,
            torch.cat(
                (vectors * mass.unsqueeze(2), mass.unsqueeze(2)), dim=2
            ).reshape(-1, dim + 1),
        )
        update = sum_over_ranks(update).view(books, size, dim + 1)
        # A batch that counts for nothing must not make the past fade.
        decay = torch.where(update[..., -1].sum() > 0, self.decay, 1.0)
        self.ema_sum.lerp_(update[..., :-1], 1 - decay)
        self.ema_count.lerp_(update[..., -1], 1 - decay)
        # The mean of a code that was not chosen moves by rounding alone, and
        # thousands of batches of rounding add up.
        chosen = update[..., -1:] > 0
        mean = self.ema_sum / self.ema_count.unsqueeze(2)
        self.weight.copy_(torch.where(chosen, mean, self.weight))

    @torch.no_grad()
    def rewrite(
        self,
        book: int,
        rows: torch.Tensor,
        centroids: torch.Tensor,
        counts: torch.Tensor,
    ) -> None:
        """Replaces codewords and rebuilds their averages: each new sum is
        centroid x count, the counts scaled to the present mass."""
        super().rewrite(book, rows, centroids, counts)
        share = counts.to(self.ema_count) / counts.sum().clamp(min=1)
        mass = (share * self.ema_count[book].sum()).clamp(min=self.min_mass)
        count = torch.where(rows, mass, self.ema_count[book])
        self.ema_count[book] = count
        self.ema_sum[book] = torch.where(
            rows.unsqueeze(1),
            self.weight[book] * count.unsqueeze(1),
            self.ema_sum[book],
        )


def make_codebook(
    kind: str,
    num_codebooks: int,
    codebook_size: int,
    codebook_dim: int,
    init: str,
    ema_decay: float | None = None,
) -> Codebook:
    """Builds a codebook by the name of how it learns.

    Arguments
    ---------
    kind : str
        ``"gradient"`` or ``"ema"``.
    num_codebooks, codebook_size, codebook_dim, init
        See ``Codebook``.
    ema_decay : float, optional
        For ``"ema"``, 0.99 where not given.

    Returns
    -------
    Codebook
        The codebook.

    Raises
    ------
    ValueError
        If the kind is not known, or a decay is given without averages.
    """
    shape = (num_codebooks, codebook_size, codebook_dim, init)
    check_choice("codebook", kind, ("gradient", "ema"))
    if kind == "ema":
        return EMACodebook(*shape, 0.99 if ema_decay is None else ema_decay)
    if ema_decay is not None:
        raise ValueError("ema_decay needs codebook='ema'.")
    return Codebook(*shape)
