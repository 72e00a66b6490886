"""What a WaveNet is made of (van den Oord et al. 2016, arXiv 1609.03499,
sections 2.3 to 2.5).
"""

import torch
from torch import nn
from torch.nn.functional import pad


class GatedLayer(nn.Module):
    """A causal convolution of two taps, gated.

    Arguments
    ---------
    channels : int
        Channels in and out.
    skip_channels : int
        Channels for the sum over layers.
    told : int
        Channels of the conditions.
    dilation : int
        Samples between the taps.
    last : bool
        Whether no layer comes after it.

    Example
    -------
    >>> layer = GatedLayer(8, 16, 4, dilation=2, last=False)
    >>> x, skip = layer(torch.randn(2, 30, 8), torch.randn(2, 3, 4), 10)
    >>> x.shape, skip.shape
    (torch.Size([2, 30, 8]), torch.Size([2, 30, 16]))
    """

    def __init__(
        self,
        channels: int,
        skip_channels: int,
        told: int,
        dilation: int,
        last: bool,
    ):
        super().__init__()
        self.dilation = dilation
        self.past = nn.Linear(channels, 2 * channels, bias=False)
        self.now = nn.Linear(channels, 2 * channels, bias=False)
        self.told = nn.Linear(told, 2 * channels)
        self.skip = nn.Linear(channels, skip_channels)
        # Parameters without a gradient would stop training on several GPUs.
        self.residual = (
            None if last else nn.Linear(channels, channels, bias=False)
        )

    def forward(
        self, x: torch.Tensor, conditions: torch.Tensor, repeat: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, N, C] and the conditions, each for so many samples, to the same
        (or None, if it is the last) and the skip [B, N, S]."""
        time = x.shape[1]
        heard = self.past(x[:, : max(time - self.dilation, 0)])
        heard = pad(heard, (0, 0, min(self.dilation, time), 0))
        told = self.told(conditions).repeat_interleave(repeat, 1)
        values, gates = (heard + self.now(x) + told).chunk(2, 2)
        z = torch.tanh(values) * torch.sigmoid(gates)
        residual = self.residual and x + self.residual(z)
        return residual, self.skip(z)
