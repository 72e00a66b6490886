"""Vector quantizers with a bottleneck that does not collapse.

Authors
 * speechbrain_vq authors 2026
"""

from typing import Any

import torch

from speechbrain_vq.nnet.bottleneck import Bottleneck, VQOutput
from speechbrain_vq.nnet.checks import check_sizes
from speechbrain_vq.nnet.reestimation import Reestimate, reestimate
from speechbrain_vq.nnet.search import nearest

__all__ = ["ResidualVectorQuantizer", "VQOutput", "VectorQuantizer"]


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
    **options
        ``norm``, ``norm_position``, ``commitment_weight``,
        ``codebook_weight``, ``estimator``, ``codebook``, ``codebook_init``,
        ``ema_decay``, ``reservoir_size``: see ``Bottleneck``.

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
        **options: Any,
    ):
        check_sizes(
            input_dim=input_dim,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
        )
        if codebook_dim is None:
            if input_dim % num_codebooks:
                raise ValueError(
                    f"input_dim={input_dim} does not divide into "
                    f"{num_codebooks} codebooks: give codebook_dim."
                )
            codebook_dim = input_dim // num_codebooks
        check_sizes(codebook_dim=codebook_dim)
        super().__init__(
            input_dim,
            (num_codebooks, codebook_size, codebook_dim),
            num_codebooks * codebook_dim,
            **options,
        )

    def _code(self, latents):
        targets = latents.unflatten(1, (self.num_codebooks, -1))
        indices = [
            nearest(targets[:, book], self.codebook[book])
            for book in range(self.num_codebooks)
        ]
        return torch.stack(indices, dim=1), targets

    def _combine(self, codewords):
        return codewords.flatten(1)

    def _total_error(self, sq_errors):
        return sq_errors.sum()

    def _reestimate(self, vectors, scope, generator):
        parts = vectors.unflatten(1, (self.num_codebooks, -1))
        done = [
            reestimate(self.codewords, book, parts[:, book], scope, generator)
            for book in range(self.num_codebooks)
        ]
        # The squared distance of the whole is the sum of those of its parts.
        return Reestimate(
            torch.stack([d.rows for d in done]),
            sum(d.inertia for d in done),
            sum(d.previous_inertia for d in done),
            min(d.num_distinct for d in done),
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
    **options
        As for ``VectorQuantizer``.

    Example
    -------
    >>> quantizer = ResidualVectorQuantizer(4, input_dim=64, codebook_size=32)
    >>> quantizer(torch.randn(2, 50, 64)).indices.shape
    torch.Size([2, 50, 4])
    """

    # Codes keep their last dimension, whatever the number of quantizers.
    folds = False

    def __init__(
        self,
        num_quantizers: int,
        input_dim: int,
        codebook_size: int,
        codebook_dim: int | None = None,
        **options: Any,
    ):
        if codebook_dim is None:
            codebook_dim = input_dim
        check_sizes(
            num_quantizers=num_quantizers,
            input_dim=input_dim,
            codebook_size=codebook_size,
            codebook_dim=codebook_dim,
        )
        super().__init__(
            input_dim,
            (num_quantizers, codebook_size, codebook_dim),
            codebook_dim,
            **options,
        )

    def _code(self, latents):
        residual, indices, targets = latents, [], []
        for book in range(self.num_codebooks):
            targets.append(residual)
            indices.append(nearest(residual, self.codebook[book]))
            # Detached: a straight-through path here would cancel the
            # commitment gradient of every later stage.
            residual = residual - self.codebook[book].detach()[indices[-1]]
        return torch.stack(indices, dim=1), torch.stack(targets, dim=1)

    def _combine(self, codewords):
        return codewords.sum(1)

    def _total_error(self, sq_errors):
        # What is left after the last is the error of the row.
        return sq_errors[-1]

    def _reestimate(self, vectors, scope, generator):
        before, _ = self._code(vectors)
        left = vectors - self._combine(self.codewords(before))
        done = []
        for book in range(self.num_codebooks):
            done.append(
                reestimate(self.codewords, book, vectors, scope, generator)
            )
            codebook = self.codebook[book]
            vectors = vectors - codebook[nearest(vectors, codebook)]
        return Reestimate(
            torch.stack([d.rows for d in done]),
            done[-1].inertia,
            float(left.square().sum(1).mean()),
            min(d.num_distinct for d in done),
        )
