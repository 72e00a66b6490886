"""Re-initialization of codebooks: reservoir, k-means, optimizer state."""

import logging
import time

import numpy as np
import torch
from torch import distributed
from torch.optim import Optimizer

from speechbrain_vq.nnet.codebooks import Reinit
from speechbrain_vq.nnet.quantizers import VectorQuantizer
from speechbrain_vq.nnet.reservoir import Reservoir
from speechbrain_vq.nnet.utils import broadcast, is_first_rank, world_size

logger = logging.getLogger(__name__)


def reinitialize(
    name: str,
    quantizer: VectorQuantizer,
    optimizer: Optimizer | None,
    step: int,
    start: str = "kmeans++",
) -> Reinit | None:
    """Re-initialize a codebook from its reservoir, the same way on all ranks,
    and make the optimizer forget the old one.

    ``name`` is for the log, and the step seeds k-means; ``start`` is that of
    ``VectorQuantizer.reinitialize``. Return the result; None where the
    reservoirs were empty, and on ranks other than the first.

    Example
    -------
    >>> quantizer = VectorQuantizer(4, 8)
    >>> _ = quantizer(torch.randn(100, 4))
    >>> result = reinitialize("quantizer", quantizer, None, step=1)
    >>> result.inertia < result.previous_inertia
    True
    """
    begin = time.perf_counter()
    vectors = gather_sample(quantizer.reservoir, seed=step)
    result = None
    if is_first_rank():
        generator = torch.Generator(vectors.device).manual_seed(step)
        result = quantizer.reinitialize(vectors, start, generator)
        seconds = time.perf_counter() - begin
        _log(name, step, result, len(vectors), seconds)
    quantizer.reservoir.reset()
    broadcast([quantizer.codebook, *quantizer.embedding.buffers()])
    # What ranks gather they all have, or none.
    if optimizer is not None and len(vectors):
        optimizer.state.pop(quantizer.codebook, None)
    return result


def _log(name, step, result, number, seconds) -> None:
    if result is None:
        logger.warning(
            "Step %d: the reservoir of %s is empty, its codebook stays.",
            step,
            name,
        )
        return
    logger.info(
        "Step %d: re-initialized %s from %d vectors, mean squared distance "
        "%.4g -> %.4g, %.0f ms.",
        step,
        name,
        number,
        result.previous_inertia,
        result.inertia,
        1000 * seconds,
    )


def gather_sample(reservoir: Reservoir, seed: int) -> torch.Tensor:
    """Gather a uniform sample of the streams of all ranks, [at most capacity,
    dim], the same on every rank.

    The number of vectors from each rank is drawn as it would be from one urn
    with all the vectors that the ranks have seen.
    """
    sample = reservoir.contents()
    if world_size() == 1:
        return sample
    # Full rows, so that ranks with fewer vectors gather as many.
    rows = sample.new_zeros(reservoir.capacity, reservoir.dim)
    # In random order, as early slots of a reservoir hold early vectors.
    order = torch.randperm(
        len(sample), generator=torch.Generator().manual_seed(seed)
    ).to(sample.device)
    rows[: len(sample)] = sample[order]
    count = reservoir.count.to(sample.device)
    all_rows = [torch.empty_like(rows) for _ in range(world_size())]
    all_counts = [torch.empty_like(count) for _ in range(world_size())]
    distributed.all_gather(all_rows, rows)
    distributed.all_gather(all_counts, count)
    counts = [int(c) for c in all_counts]
    shares = np.random.default_rng(seed).multivariate_hypergeometric(
        counts, min(sum(counts), reservoir.capacity), method="marginals"
    )
    return torch.cat([r[:n] for r, n in zip(all_rows, shares, strict=True)])
