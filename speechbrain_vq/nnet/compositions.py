"""How several codebooks code a latent together.

Authors
 * speechbrain_vq authors 2026
"""

from typing import Protocol

import torch

from speechbrain_vq.nnet.codebooks import Codebook
from speechbrain_vq.nnet.reestimation import Reestimate, reestimate
from speechbrain_vq.nnet.search import nearest


class Composition(Protocol):
    """What a quantizer must know of it; N latents, C codebooks of K codewords
    of d dimensions."""

    def codebook_dim(self, input_dim: int, num_codebooks: int) -> int:
        """The d that needs no projection."""

    def latent_dim(self, num_codebooks: int, codebook_dim: int) -> int:
        """The dimension of what the codebooks code together."""

    def code(
        self, latents: torch.Tensor, codebook: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[N, latent_dim], [C, K, d] -> indices [N, C], and what each codebook
        was asked to code [N, C, d]."""

    def combine(self, codewords: torch.Tensor) -> torch.Tensor:
        """[N, C, d] -> [N, latent_dim]."""

    def total_error(self, sq_errors: torch.Tensor) -> torch.Tensor:
        """The squared error of the whole from those of the codebooks, [C]."""

    def reestimate(
        self,
        codewords: Codebook,
        vectors: torch.Tensor,
        scope: str,
        generator: torch.Generator | None,
    ) -> Reestimate:
        """Rewrites the codebooks from [N, latent_dim]."""


class Product:
    """Codebooks side by side, each for its slice of the latent (Jegou et al.,
    Product quantization for nearest neighbor search, 2011, section II-B)."""

    def codebook_dim(self, input_dim, num_codebooks):
        """An equal slice each."""
        if input_dim % num_codebooks:
            raise ValueError(
                f"input_dim={input_dim} does not divide into "
                f"{num_codebooks} codebooks: give codebook_dim."
            )
        return input_dim // num_codebooks

    def latent_dim(self, num_codebooks, codebook_dim):
        """That of all slices."""
        return num_codebooks * codebook_dim

    def code(self, latents, codebook):
        """Each slice by itself."""
        targets = latents.unflatten(1, (len(codebook), -1))
        indices = [
            nearest(targets[:, book], codebook[book])
            for book in range(len(codebook))
        ]
        return torch.stack(indices, dim=1), targets

    def combine(self, codewords):
        """One after the other."""
        return codewords.flatten(1)

    def total_error(self, sq_errors):
        """The squared distance of the whole is the sum of those of its
        parts."""
        return sq_errors.sum()

    def reestimate(self, codewords, vectors, scope, generator):
        """Each slice by itself."""
        books = len(codewords.weight)
        parts = vectors.unflatten(1, (books, -1))
        done = [
            reestimate(codewords, book, parts[:, book], scope, generator)
            for book in range(books)
        ]
        return Reestimate(
            torch.stack([d.rows for d in done]),
            sum(d.inertia for d in done),
            sum(d.previous_inertia for d in done),
            min(d.num_distinct for d in done),
        )


class Residual:
    """Codebooks in a row, each coding what those before it left over
    (Zeghidour et al., SoundStream, arXiv 2107.03312, section III-C)."""

    def codebook_dim(self, input_dim, num_codebooks):
        """Each codes the whole."""
        return input_dim

    def latent_dim(self, num_codebooks, codebook_dim):
        """Each codes the whole."""
        return codebook_dim

    def code(self, latents, codebook):
        """First the latents, then what is left of them."""
        residual, indices, targets = latents, [], []
        for words in codebook:
            targets.append(residual)
            indices.append(nearest(residual, words))
            # Detached: a straight-through path here would cancel the
            # commitment gradient of every later stage.
            residual = residual - words.detach()[indices[-1]]
        return torch.stack(indices, dim=1), torch.stack(targets, dim=1)

    def combine(self, codewords):
        """Their sum."""
        return codewords.sum(1)

    def total_error(self, sq_errors):
        """What is left after the last is the error of the row."""
        return sq_errors[-1]

    def reestimate(self, codewords, vectors, scope, generator):
        """First from the vectors, then from what the new codewords leave."""
        before, _ = self.code(vectors, codewords.weight)
        left = vectors - self.combine(codewords(before))
        done = []
        for book in range(len(codewords.weight)):
            done.append(reestimate(codewords, book, vectors, scope, generator))
            words = codewords.weight[book]
            vectors = vectors - words[nearest(vectors, words)]
        return Reestimate(
            torch.stack([d.rows for d in done]),
            done[-1].inertia,
            float(left.square().sum(1).mean()),
            min(d.num_distinct for d in done),
        )


COMPOSITIONS: dict[str, Composition] = {
    "product": Product(),
    "residual": Residual(),
}
