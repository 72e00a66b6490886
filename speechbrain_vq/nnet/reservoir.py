"""A uniform sample of a stream of vectors."""

import numpy as np
import torch
from torch import Tensor, distributed

from speechbrain_vq.nnet.utils import check_sizes, sum_over_ranks, world_size


class Reservoir:
    """Uniform random sample, without replacement, of all vectors added since
    the last reset (Algorithm R of Vitter, 1985, a whole batch at a time).

    It is no module, so in no ``state_dict`` and not synchronised by DDP. It
    follows the device of what is added and stays in fp32.

    Arguments
    ---------
    capacity : int
        Largest number of vectors kept; 0: none.
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
        # No memory before there is something to keep.
        self._rows = torch.zeros(0, dim, dtype=torch.float32, device="cpu")
        self.count = torch.zeros((), dtype=torch.int64, device="cpu")

    def __len__(self) -> int:
        return min(int(self.count), self.capacity)

    @torch.no_grad()
    def add(self, vectors: Tensor, mask: Tensor | None = None) -> None:
        """Add vectors [..., dim] to the stream, those where a mask [...] of
        booleans is True."""
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
        """Gather a uniform sample of the streams of all ranks, [at most
        capacity, dim], the same on every rank, which all must ask: as many
        vectors of each as drawn from one urn with all that the ranks saw."""
        sample = self.contents()
        if world_size() == 1:
            return sample
        # In random order, as early slots of a reservoir hold early vectors.
        generator = torch.Generator().manual_seed(seed)
        order = torch.randperm(len(sample), generator=generator)
        # Full rows, so that ranks with fewer vectors gather as many.
        rows = sample.new_zeros(self.capacity, self.dim)
        rows[: len(sample)] = sample[order.to(sample.device)]
        ranks = []
        for own in (rows, self.count.to(rows.device)):
            ranks.append([torch.empty_like(own) for _ in range(world_size())])
            distributed.all_gather(ranks[-1], own)
        counts = [int(count) for count in ranks[1]]
        shares = np.random.default_rng(seed).multivariate_hypergeometric(
            counts, min(sum(counts), self.capacity), method="marginals"
        )
        parts = zip(ranks[0], shares, strict=True)
        return torch.cat([part[:number] for part, number in parts])

    def reset(self) -> None:
        """Empty the sample; the stream starts anew."""
        self.count.zero_()

    def state_dict(self, over_ranks: bool = False) -> dict[str, Tensor]:
        """Return the sample and the length of the stream so far; or those of
        all ranks' streams together, which all must ask: loaded on one of
        them, with the others empty, they count as before."""
        if not over_ranks:
            return {"rows": self.contents(), "count": self.count.clone()}
        count = sum_over_ranks(self.count)
        return {"rows": self.gather(int(count)), "count": count.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore what ``state_dict()`` returned; raise ValueError where it
        does not fit."""
        rows, count = state["rows"], int(state["count"])
        if rows.shape != (min(count, self.capacity), self.dim):
            raise ValueError(
                f"A saved reservoir of shape {tuple(rows.shape)} after "
                f"{count} vectors does not fit one of capacity "
                f"{self.capacity} and dim {self.dim}."
            )
        self._allocate(rows.device)
        self._rows[: len(rows)] = rows
        self.count = state["count"].clone().to(rows.device)

    def _allocate(self, device: torch.device) -> None:
        if len(self._rows) == 0:
            # One row more than the capacity: what is not kept is written
            # there, which keeps shapes fixed and so needs no host sync.
            self._rows = self._rows.new_zeros(self.capacity + 1, self.dim)
        if self._rows.device != device:
            self._rows = self._rows.to(device)
            self.count = self.count.to(device)


# An operator of its own, which torch.compile keeps whole.
@torch.library.custom_op(
    "speechbrain_vq::reservoir_add", mutates_args=("rows", "count")
)
def _add(rows: Tensor, count: Tensor, vectors: Tensor, mask: Tensor) -> None:
    """Offer `vectors` [N, D] where `mask` [N] to `rows` [capacity + 1, D]."""
    capacity = len(rows) - 1
    arrival = torch.arange(len(vectors), device=vectors.device)
    number = mask.cumsum(0)
    rank = (number - 1).clamp(min=0)
    position = rank + count
    # 2 ** 62 values leave the modulo a bias below 1e-9 for any stream. By
    # rank, so that padding between vectors changes no one's draw.
    draw = torch.randint(2**62, rank.shape, device=rank.device)[rank]
    draw = draw % (position + 1)
    # A draw beyond the capacity means that the vector is not kept.
    slot = torch.where(position < capacity, position, draw).clamp(max=capacity)
    slot = slot.masked_fill(~mask, capacity)
    if rows.device.type == "cpu":  # Which waits for nothing
        kept = slot < capacity
        slot, arrival, vectors = slot[kept], arrival[kept], vectors[kept]
    # Of vectors that drew the same slot the last one stays, as if they had
    # come one by one.
    last = slot.new_full((capacity + 1,), -1)
    last.scatter_reduce_(0, slot, arrival, "amax")
    slot = torch.where(last[slot] == arrival, slot, capacity)
    rows.index_copy_(0, slot, vectors)
    count += number[-1]


@_add.register_fake
def _(rows, count, vectors, mask) -> None:
    return None
