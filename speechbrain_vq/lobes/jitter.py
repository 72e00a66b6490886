"""Time jitter of latents (Chorowski et al. 2019, arXiv 1901.08810)."""

import torch
from torch import nn

from speechbrain_vq.nnet.masks import frame_mask


class TimeJitter(nn.Module):
    """Random replacement of latents by a neighbor during training.

    It makes latents encode information that lasts longer than one time step.
    The first and last latent of an utterance are unchanged if the drawn
    neighbor does not exist.

    Arguments
    ---------
    probability : float
        Probability of a replacement, equally by the left or right neighbor.

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
        self.probability = probability

    def forward(
        self, latents: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Jitter latents [B, T, H] within their relative lengths [B]."""
        if not self.training or not self.probability:
            return latents
        frames = frame_mask(latents, lengths).sum(1, keepdim=True)
        time = torch.arange(latents.shape[1], device=latents.device)
        draw = torch.rand(latents.shape[:2], device=latents.device)
        left = draw < self.probability / 2
        right = ~left & (draw < self.probability)
        source = time + right.long() - left.long()
        inside = (source >= 0) & (source < frames) & (time < frames)
        source = torch.where(inside, source, time)
        return latents.gather(1, source.unsqueeze(2).expand_as(latents))
