"""New codewords for a codebook from a sample of what it codes.

Authors
 * speechbrain_vq authors 2026
"""

from typing import NamedTuple

import torch

from speechbrain_vq.nnet.codebooks import Codebook
from speechbrain_vq.nnet.kmeans import kmeans
from speechbrain_vq.nnet.search import nearest


class Reestimate(NamedTuple):
    """What a re-estimation did to each of C codebooks.

    Arguments
    ---------
    rows : torch.Tensor
        The codewords rewritten, booleans [C, K].
    inertia : float
        Mean squared distance of a vector to what it is quantized to, after.
    previous_inertia : float
        The same before.
    num_distinct : int
        Distinct vectors found, the smallest number over the codebooks.
    """

    rows: torch.Tensor
    inertia: float
    previous_inertia: float
    num_distinct: int


def reestimate(
    codewords: Codebook,
    book: int,
    vectors: torch.Tensor,
    scope: str,
    generator: torch.Generator | None,
) -> Reestimate:
    """Clusters vectors and rewrites the rows of one codebook.

    Arguments
    ---------
    codewords : Codebook
        Holds the codebooks.
    book : int
        Which of them.
    vectors : torch.Tensor
        What it codes, [N, d].
    scope : str
        ``"all"`` or ``"dead"``: only codes that are the nearest of none of
        the vectors.
    generator : torch.Generator, optional
        Source of the seeds of k-means.

    Returns
    -------
    Reestimate
        What was done, for this codebook.
    """
    old = codewords.weight[book].detach()
    before, chosen = _distortion(vectors, old)
    rows = torch.ones(len(old), dtype=torch.bool, device=old.device)
    if scope == "dead":
        rows[chosen] = False
    centroids, distinct = old.clone(), len(old)
    if rows.any():
        kept = old[~rows]
        found = kmeans(
            vectors,
            len(old),
            generator=generator,
            fixed=kept if len(kept) else None,
        )
        centroids[rows] = found.centroids[len(kept) :]
        distinct = found.num_distinct
    after, chosen = _distortion(vectors, centroids)
    counts = torch.bincount(chosen, minlength=len(old))
    codewords.rewrite(book, rows, centroids, counts)
    return Reestimate(rows, after, before, distinct)


def _distortion(vectors, codebook):
    """Mean squared distance to the nearest codeword, and its index."""
    chosen = nearest(vectors, codebook)
    return float((vectors - codebook[chosen]).square().sum(1).mean()), chosen
