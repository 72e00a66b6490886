"""Uniform sample of a stream of vectors."""

import numpy as np
import torch
from torch import Tensor, distributed

from speechbrain_vq.nnet.utils import check_sizes, sum_over_ranks, world_size


class Reservoir:
    """Uniform random sample, without replacement, of all vectors added since
    the last reset (Algorithm R of Vitter, 1985, for whole batches).

    It is not a module, so it is not part of a ``state_dict`` and DDP does not
    synchronize it. It stays in fp32, and moves to the device of added vectors.

    Arguments
    ---------
    capacity : int
        Maximum number of vectors kept; 0 keeps none.
    dim : int
        Dimension of a vector.

    Example
    -------
    >>> reservoir = Reservoir(capacity=4, dim=2)
    >>> reservoir.add(torch.arange(20.0).view(10, 2))
    >>> reservoir.contents().shape, int(reservoir.count)
    (torch.Size([4, 2]), 10)
    """

    def __init__(self, capacity: int, dim: int):
        check_sizes(dim=dim)
        check_sizes(least=0, capacity=capacity)
        self.capacity, self.dim = capacity, dim
        # Memory is allocated on the first add.
        self._rows = torch.zeros(0, dim, dtype=torch.float32, device="cpu")
        self.count = torch.zeros((), dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return min(int(self.count), self.capacity)

    @torch.no_grad()
    def add(self, vectors: Tensor, mask: Tensor | None = None) -> None:
        """Add vectors [..., dim] where a boolean mask [...] is True."""
        if vectors.shape[-1] != self.dim:
            raise ValueError(
                f"Reservoir holds vectors of dimension {self.dim}, got a "
                f"tensor of shape {tuple(vectors.shape)}."
            )
        if not self.capacity:
            return
        vectors = vectors.detach().reshape(-1, self.dim).float()
        self._allocate(vectors.device)
        if mask is None:
            mask = torch.ones_like(vectors[:, 0], dtype=torch.bool)
        if len(vectors):
            _add(self._rows, self.count, vectors, mask.reshape(-1))

    def contents(self) -> Tensor:
        """Return a copy of the sample, [min(count, capacity), dim]."""
        return self._rows[: len(self)].clone()

    def gather(self, seed: int) -> Tensor:
        """Return a uniform sample of the combined streams of all ranks, [at
        most capacity, dim], identical on every rank. All ranks must call it.
        Sample counts by rank are multivariate hypergeometric."""
        sample = self.contents()
        if world_size() == 1:
            return sample
        # Shuffled, because the first slots of a reservoir hold early vectors.
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(sample), generator=generator)
        # Padded, so that all ranks gather the same number of rows.
        rows = sample.new_zeros(self.capacity, self.dim)
        rows[: len(sample)] = sample[order.to(sample.device)]
        ranks = []
        for own in (rows, self.count.to(rows.device)):
            ranks.append([torch.empty_like(own) for _ in range(world_size())])
            distributed.all_gather(ranks[-1], own)
        counts = [int(count) for count in ranks[1]]
        # NumPy draws among less than 1e9 vectors; shares hardly change.
        divisor = sum(counts) // 10**9 + 1
        counts = [count // divisor for count in counts]
        shares = np.random.default_rng(seed).multivariate_hypergeometric(
            counts, min(sum(counts), self.capacity), method="marginals"
        )
        parts = zip(ranks[0], shares, strict=True)
        return torch.cat([part[:number] for part, number in parts])

    def reset(self) -> None:
        """Empty the sample, and start a new stream."""
        self.count.zero_()

    def state_dict(self, over_ranks: bool = False) -> dict[str, Tensor]:
        """Return the sample and the number of vectors in the stream. With
        ``over_ranks``, all ranks must call it, and the result covers all ranks:
        one rank can load it and the others start empty."""
        if not over_ranks:
            return {"rows": self.contents(), "count": self.count.clone()}
        count = sum_over_ranks(self.count)
        return {"rows": self.gather(int(count)), "count": count.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore a state returned by ``state_dict()``, if it fits."""
        rows, count = state["rows"], int(state["count"])
        if rows.shape != (min(count, self.capacity), self.dim):
            raise ValueError(
                f"A saved reservoir of shape {tuple(rows.shape)} after "
                f"{count} vectors does not fit a reservoir of capacity "
                f"{self.capacity} and dim {self.dim}."
            )
        self._allocate(rows.device)
        self._rows[: len(rows)] = rows
        self.count = state["count"].clone().to(rows.device)

    def _allocate(self, device: torch.device) -> None:
        if len(self._rows) == 0:
            # Discarded vectors go to an extra row, so that shapes stay fixed
            # and no host sync is needed. Tensors created in inference mode
            # could not be changed outside it.
            with torch.inference_mode(False):
                self._rows = self._rows.new_zeros(self.capacity + 1, self.dim)
        if self._rows.device != device:
            self._rows = self._rows.to(device)
            self.count = self.count.to(device)


# A custom operator, so that torch.compile does not break the graph.
@torch.library.custom_op(
    "speechbrain_vq::reservoir_add", mutates_args=("rows", "count")
)
def _add(rows: Tensor, count: Tensor, vectors: Tensor, mask: Tensor) -> None:
    """Add vectors [N, D] with a mask [N] to a sample [capacity + 1, D]."""
    capacity = len(rows) - 1
    arrival = torch.arange(len(vectors), device=vectors.device)
    number = mask.cumsum(0)
    rank = (number - 1).clamp(min=0)
    position = rank + count
    # With 2 ** 62 values, the bias of the modulo is below 1e-9 for any stream.
    # Draws are indexed by rank, so that they do not depend on padding.
    draw = torch.randint(2**62, rank.shape, device=rank.device)[rank]
    draw = draw % (position + 1)
    # A draw beyond the capacity discards the vector.
    slot = torch.where(position < capacity, position, draw).clamp(max=capacity)
    slot = slot.masked_fill(~mask, capacity)
    if rows.device.type == "cpu":  # Where selecting needs no sync
        kept = slot < capacity
        slot, arrival, vectors = slot[kept], arrival[kept], vectors[kept]
    # The last vector that drew a slot is kept, as if added one by one.
    last = slot.new_full((capacity + 1,), -1)
    last.scatter_reduce_(0, slot, arrival, "amax")
    slot = torch.where(last[slot] == arrival, slot, capacity)
    rows.index_copy_(0, slot, vectors)
    count += number[-1]


@_add.register_fake
def _(rows, count, vectors, mask) -> None:
    return None
