"""The re-estimation of codebooks: reservoir -> k-means -> codebook ->
optimizer rows.

Authors
 * speechbrain_vq authors 2026
"""

import logging
import time

import numpy as np
import torch
from torch import distributed
from torch.optim import Optimizer

from speechbrain_vq.nnet.distributed import world_size
from speechbrain_vq.nnet.reestimation import Reestimate
from speechbrain_vq.nnet.reservoir import Reservoir
from speechbrain_vq.training.optimizers import reset_rows

logger = logging.getLogger(__name__)


class CodebookReinitializer:
    """Re-estimates the codebooks of quantizers from their reservoirs, the
    same way on all ranks, and makes the optimizer forget the old ones.

    Arguments
    ---------
    quantizers : dict
        The quantizers by name.
    optimizer : torch.optim.Optimizer, optional
        The optimizer that holds the codebooks which learn by gradient.
    scope : str
        ``"all"`` or ``"dead"``; see ``ReinitSchedule``.

    Raises
    ------
    ValueError
        If a quantizer keeps no reservoir.

    Example
    -------
    >>> from speechbrain_vq.nnet import VectorQuantizer
    >>> quantizer = VectorQuantizer(4, 8)
    >>> _ = quantizer(torch.randn(100, 4))
    >>> reinitialize = CodebookReinitializer({"quantizer": quantizer})
    >>> bool(reinitialize(step=1)["quantizer"].rows.all())
    True
    """

    def __init__(
        self,
        quantizers: dict[str, torch.nn.Module],
        optimizer: Optimizer | None = None,
        scope: str = "all",
    ):
        for name, quantizer in quantizers.items():
            if quantizer.reservoir is None:
                raise ValueError(
                    f"There is a re-estimation schedule, but '{name}' keeps "
                    "no reservoir: set its reservoir_size above 0 or leave "
                    "reinit_schedule out."
                )
        self.quantizers = quantizers
        self.optimizer = optimizer
        self.scope = scope

    def __call__(self, step: int) -> dict[str, Reestimate | None]:
        """Re-estimates all codebooks now.

        Arguments
        ---------
        step : int
            Optimizer steps so far; it seeds k-means.

        Returns
        -------
        dict
            What was done, by name; None where a reservoir was empty. On ranks
            other than the first all values are None.
        """
        return {
            name: self._reestimate(name, quantizer, step)
            for name, quantizer in self.quantizers.items()
        }

    def reset(self) -> None:
        """Empties the reservoirs."""
        for quantizer in self.quantizers.values():
            quantizer.reservoir.reset()

    def _reestimate(self, name, quantizer, step) -> Reestimate | None:
        start = time.perf_counter()
        vectors = gather_sample(quantizer.reservoir, seed=step)
        report = None
        if _is_main():
            generator = torch.Generator(vectors.device).manual_seed(step)
            report = quantizer.reestimate(vectors, self.scope, generator)
            self._tell(name, step, report, len(vectors), start)
        quantizer.reservoir.reset()
        rows = torch.zeros_like(quantizer.codebook[..., 0], dtype=torch.bool)
        if report is not None:
            rows |= report.rows
        _broadcast([rows, *quantizer.codewords.state_dict().values()])
        if self.optimizer is not None and rows.any():
            reset_rows(self.optimizer, quantizer.codebook, rows)
        return report

    def _tell(self, name, step, report, number, start) -> None:
        if report is None:
            logger.warning(
                "Step %d: the reservoir of %s is empty, its codebook stays.",
                step,
                name,
            )
            return
        logger.info(
            "Step %d: re-estimated %d of %d codes of %s from %d vectors, mean "
            "squared distance %.4g -> %.4g, %.0f ms.",
            step,
            int(report.rows.sum()),
            report.rows.numel(),
            name,
            number,
            report.previous_inertia,
            report.inertia,
            1000 * (time.perf_counter() - start),
        )


def gather_sample(reservoir: Reservoir, seed: int) -> torch.Tensor:
    """A uniform sample of the streams of all ranks.

    How many of its vectors come from which rank is drawn as it would be from
    one urn with all the vectors that the ranks have seen.

    Arguments
    ---------
    reservoir : Reservoir
        This rank's.
    seed : int
        Seed of the draw, the same on all ranks.

    Returns
    -------
    torch.Tensor
        The sample on every rank, [at most capacity, dim].
    """
    sample = reservoir.contents()
    if world_size() == 1:
        return sample
    # Full rows, so that ranks with fewer vectors gather as many.
    rows = sample.new_zeros(reservoir.capacity, reservoir.dim)
    # Early slots of a reservoir hold early vectors: any share of it must be
    # taken in random order.
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
    return torch.cat([r[:n] for r, n in zip(all_rows, shares, strict=False)])


def agree(quantizers: dict[str, torch.nn.Module]) -> None:
    """Gives the codebooks of the first rank to all."""
    for quantizer in quantizers.values():
        _broadcast(quantizer.codewords.state_dict().values())


def _is_main() -> bool:
    return world_size() == 1 or distributed.get_rank() == 0


def _broadcast(tensors) -> None:
    if world_size() > 1:
        for tensor in tensors:
            # gloo has no broadcast of booleans on every device.
            wire = (
                tensor.to(torch.uint8)
                if tensor.dtype is torch.bool
                else (tensor.detach().clone())
            )
            distributed.broadcast(wire, src=0)
            tensor.copy_(wire)
