"""Compositions: how several codebooks code one latent.

In the signatures, N latents of dimension D are coded by the first c of C
codebooks of K codewords of dimension d.
"""

import torch

from speechbrain_vq.nnet.codebooks import Codebook, Reinit
from speechbrain_vq.nnet.search import nearest


class Product:
    """Codebooks side by side, each for its slice of the latent (Jegou et al.,
    Product quantization for nearest neighbor search, 2011, section II-B)."""

    def codebook_dim(self, input_dim: int, num_codebooks: int) -> int:
        """Return the d that needs no projection."""
        if input_dim % num_codebooks:
            raise ValueError(
                f"input_dim={input_dim} does not divide into "
                f"{num_codebooks} codebooks: give codebook_dim."
            )
        return input_dim // num_codebooks

    def latent_dim(self, num_codebooks: int, codebook_dim: int) -> int:
        """Return the dimension of a latent, D."""
        return num_codebooks * codebook_dim

    def code(
        self, latents: torch.Tensor, codebook: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Code latents [N, D] by a codebook [c, K, d]: indices [N, c], and
        the vectors that each codebook quantizes, [N, c, d]."""
        targets = latents.unflatten(1, (len(codebook), -1))
        indices = map(nearest, targets.unbind(1), codebook)
        return torch.stack(list(indices), dim=1), targets

    def combine(self, codewords: torch.Tensor) -> torch.Tensor:
        """Combine codewords [N, C, d] to latents [N, D]."""
        return codewords.flatten(1)

    def total_error(self, sq_errors: torch.Tensor) -> torch.Tensor:
        """Sum the squared errors of the codebooks, [c], to that of all."""
        return sq_errors.sum()

    def reinitialize(
        self, codebook: Codebook, vectors: torch.Tensor, *options
    ) -> Reinit:
        """Re-initialize all codebooks from latents [N, D]; ``options`` are
        those of ``Codebook.reinitialize``."""
        parts = vectors.unflatten(1, (len(codebook.weight), -1)).unbind(1)
        each = [
            codebook.reinitialize(book, part, *options)
            for book, part in enumerate(parts)
        ]
        return Reinit(*map(sum, zip(*each, strict=True)))


class Residual:
    """Codebooks in a row, each coding what those before it left over
    (Zeghidour et al., SoundStream, arXiv 2107.03312, section III-C); the
    methods are those of ``Product``."""

    def codebook_dim(self, input_dim: int, num_codebooks: int) -> int:
        """Return the d that needs no projection."""
        return input_dim

    def latent_dim(self, num_codebooks: int, codebook_dim: int) -> int:
        """Return the dimension of a latent, D."""
        return codebook_dim

    def code(
        self, latents: torch.Tensor, codebook: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Code latents, then their residuals, and so on."""
        residual, indices, targets = latents, [], []
        for words in codebook:
            targets.append(residual)
            indices.append(nearest(residual, words))
            # Detached: a straight-through path here would cancel the
            # commitment gradient of every later stage.
            residual = residual - words.detach()[indices[-1]]
        return torch.stack(indices, dim=1), torch.stack(targets, dim=1)

    def combine(self, codewords: torch.Tensor) -> torch.Tensor:
        """Sum codewords."""
        return codewords.sum(1)

    def total_error(self, sq_errors: torch.Tensor) -> torch.Tensor:
        """Return the error of the last codebook, which is that of all."""
        return sq_errors[-1]

    def reinitialize(
        self, codebook: Codebook, vectors: torch.Tensor, *options
    ) -> Reinit:
        """Re-initialize the first codebook from latents, the second from what
        the new first leaves, and so on."""
        indices, _ = self.code(vectors, codebook.weight)
        error = vectors - self.combine(codebook(indices))
        for book, words in enumerate(codebook.weight):
            after = codebook.reinitialize(book, vectors, *options).inertia
            vectors = vectors - words[nearest(vectors, words)]
        return Reinit(after, float(error.square().sum(1).mean()))


COMPOSITIONS = {"product": Product(), "residual": Residual()}
