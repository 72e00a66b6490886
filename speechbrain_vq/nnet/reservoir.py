"""A uniform sample of a stream of vectors.

Authors
 * speechbrain_vq authors 2026
"""

import torch
from torch import nn


class Reservoir(nn.Module):
    """Keeps a uniform random sample, without replacement, of all the vectors
    added since the last reset (Algorithm R of Vitter, 1985, one whole batch at
    a time).

    The contents are extra state rather than buffers: they are saved with the
    module, count included, but stay out of the way of DDP, which would replace
    every rank's sample by that of rank 0 at each forward, and of ``.half()``.

    Arguments
    ---------
    capacity : int
        Largest number of vectors kept.
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
        super().__init__()
        if capacity < 1 or dim < 1:
            raise ValueError(
                "Reservoir needs a capacity and a dim of at least 1, got "
                f"capacity={capacity}, dim={dim}."
            )
        self.capacity = capacity
        self.dim = dim
        # One row more than the capacity: what is not kept is written there,
        # which keeps every shape fixed and so needs no host sync.
        self._rows = torch.zeros(capacity + 1, dim)
        self.count = torch.zeros((), dtype=torch.int64)

    def __len__(self) -> int:
        return min(int(self.count), self.capacity)

    @torch.no_grad()
    def add(
        self, vectors: torch.Tensor, mask: torch.Tensor | None = None
    ) -> None:
        """Offers vectors to the sample.

        Arguments
        ---------
        vectors : torch.Tensor
            Vectors, [..., dim].
        mask : torch.Tensor, optional
            Booleans, [...]; only the vectors marked True are part of the
            stream.
        """
        if vectors.shape[-1] != self.dim:
            raise ValueError(
                f"Reservoir holds vectors of dimension {self.dim}, got a "
                f"tensor of shape {tuple(vectors.shape)}."
            )
        vectors = vectors.detach().reshape(-1, self.dim).float()
        self._follow(vectors.device)
        number = len(vectors)
        if number == 0:
            return
        arrival = torch.arange(number, device=vectors.device)
        rank, added = arrival, number
        if mask is not None:
            seen = mask.reshape(-1).cumsum(0)
            rank, added = (seen - 1).clamp(min=0), seen[-1]
        slot = self._draw_slots(rank)
        if mask is not None:
            slot = slot.masked_fill(~mask.reshape(-1), self.capacity)
        # Where two vectors drew the same slot the later one stays, as it
        # would had they come one by one.
        last = slot.new_full((self.capacity + 1,), -1)
        last.scatter_reduce_(0, slot, arrival, "amax")
        slot = torch.where(last[slot] == arrival, slot, self.capacity)
        self._rows.index_copy_(0, slot, vectors)
        self.count += added

    def contents(self) -> torch.Tensor:
        """Returns a copy of the sample, [min(count, capacity), dim]."""
        return self._rows[: len(self)].clone()

    def reset(self) -> None:
        """Empties the sample; the stream starts anew."""
        self.count.zero_()

    def tensors(self) -> list[torch.Tensor]:
        """The tensors that hold all of its state."""
        return [self._rows, self.count]

    def _draw_slots(self, rank: torch.Tensor) -> torch.Tensor:
        """The row for the vector of each rank in the batch: its own position
        in the stream while there is room, then any of ``position + 1``, of
        which those beyond the capacity mean that it is not kept."""
        position = rank + self.count
        # 2 ** 62 values leave the modulo a bias below 1e-9 for any stream.
        # By rank, so that padding between vectors changes no one's draw.
        draw = torch.randint(2**62, rank.shape, device=rank.device)[rank]
        draw = draw % (position + 1)
        slot = torch.where(position < self.capacity, position, draw)
        return slot.clamp(0, self.capacity)

    def _follow(self, device: torch.device) -> None:
        if self._rows.device != device:
            self._rows = self._rows.to(device)
            self.count = self.count.to(device)

    def get_extra_state(self) -> dict:
        """The filled rows and the length of the stream so far."""
        return {"rows": self.contents(), "count": self.count.clone()}

    def set_extra_state(self, state: dict) -> None:
        """Restores what ``get_extra_state`` returned.

        Raises
        ------
        ValueError
            If the saved vectors do not fit this reservoir.
        """
        rows = state["rows"]
        expected = min(int(state["count"]), self.capacity)
        if rows.shape != (expected, self.dim):
            raise ValueError(
                f"A saved reservoir of shape {tuple(rows.shape)} after "
                f"{int(state['count'])} vectors does not fit one of capacity "
                f"{self.capacity} and dim {self.dim}."
            )
        self._rows[: len(rows)] = rows.to(self._rows.device)
        self.count.copy_(state["count"])
