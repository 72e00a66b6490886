"""Vector quantizers with a bottleneck that does not collapse.

Authors
 * speechbrain_vq authors 2026
"""

from typing import Any

from speechbrain_vq.nnet.bottleneck import Bottleneck, VQOutput
from speechbrain_vq.nnet.checks import check_choice, check_sizes
from speechbrain_vq.nnet.compositions import COMPOSITIONS

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
        Dimension of a codeword, d. Where what the codebooks code together
        (``num_codebooks * d`` of a product, d of a row of residuals) is not of
        ``input_dim`` there is a linear projection before and after. By default
        as without projections.
    num_codebooks : int
        Codebooks that code a latent together, C.
    composition : str
        ``"product"``: side by side, each for its slice of the latent;
        ``"residual"``: in a row, each coding what those before it left over.
    **options
        ``norm``, ``norm_position``, ``commitment_weight``,
        ``codebook_weight``, ``estimator``, ``codebook``, ``codebook_init``,
        ``ema_decay``, ``reservoir_size``: see ``Bottleneck``.

    Example
    -------
    >>> import torch
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
        **options: Any,
    ):
        check_choice("composition", composition, tuple(COMPOSITIONS))
        check_sizes(
            input_dim=input_dim,
            codebook_size=codebook_size,
            num_codebooks=num_codebooks,
        )
        way = COMPOSITIONS[composition]
        if codebook_dim is None:
            codebook_dim = way.codebook_dim(input_dim, num_codebooks)
        check_sizes(codebook_dim=codebook_dim)
        super().__init__(
            input_dim,
            (num_codebooks, codebook_size, codebook_dim),
            way.latent_dim(num_codebooks, codebook_dim),
            **options,
        )
        self.composition = composition

    @property
    def _way(self):
        return COMPOSITIONS[self.composition]

    def _code(self, latents):
        return self._way.code(latents, self.codebook)

    def _combine(self, codewords):
        return self._way.combine(codewords)

    def _total_error(self, sq_errors):
        return self._way.total_error(sq_errors)

    def _reestimate(self, vectors, scope, generator):
        return self._way.reestimate(self.codewords, vectors, scope, generator)


class ResidualVectorQuantizer(VectorQuantizer):
    """A ``VectorQuantizer`` of codebooks in a row, each coding what the ones
    before it left over.

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
    >>> import torch
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
        check_sizes(num_quantizers=num_quantizers)
        super().__init__(
            input_dim,
            codebook_size,
            codebook_dim,
            num_quantizers,
            "residual",
            **options,
        )
