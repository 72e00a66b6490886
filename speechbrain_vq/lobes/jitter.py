"""Time-jitter (Chorowski et al. 2019, arXiv 1901.08810): what a latent says has
to last longer than its own time step.
"""

import torch
from torch import nn

from speechbrain_vq.nnet.masks import frame_mask


class TimeJitter(nn.Module):
    """In training, some latents are replaced by a neighbour, all channels
    alike.

    The first and the last latent of an utterance have one neighbour, and stay
    as they are where it would be the other.

    Arguments
    ---------
    probability : float
        Share of the latents, half of them by the left neighbour and half by
        the right one.

    Raises
    ------
    ValueError
        If the probability is not in 0..1.

    Example
    -------
    >>> jitter = TimeJitter(1.0)
    >>> x = torch.arange(5.0).view(1, 5, 1)
    >>> sorted({abs(d) for d in (jitter(x) - x)[0, 1:-1, 0].tolist()})
    [1.0]
    >>> torch.equal(jitter.eval()(x), x)
    True
    """

    def __init__(self, probability: float = 0.12):
        super().__init__()
        if not 0 <= probability <= 1:
            raise ValueError(
                f"The probability of a jitter must be in 0..1, got "
                f"{probability}."
            )
        self.probability = probability

    def forward(
        self, latents: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Jitters.

        Arguments
        ---------
        latents : torch.Tensor
            Latents, [B, T, H].
        lengths : torch.Tensor, optional
            Relative lengths, [B]; what is beyond stays, and goes nowhere.

        Returns
        -------
        torch.Tensor
            Latents, [B, T, H].
        """
        if not self.training or not self.probability:
            return latents
        number = frame_mask(latents, lengths).sum(1, keepdim=True)
        time = torch.arange(latents.shape[1], device=latents.device)
        chance = torch.rand(latents.shape[:2], device=latents.device)
        left = chance < self.probability / 2
        right = ~left & (chance < self.probability)
        source = time + right.long() - left.long()
        inside = (source >= 0) & (source < number) & (time < number)
        source = torch.where(inside, source, time)
        return latents.gather(1, source.unsqueeze(2).expand_as(latents))

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return f"probability={self.probability}"
