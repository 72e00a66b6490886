"""Gated layer of a WaveNet (van den Oord et al. 2016, arXiv 1609.03499,
sections 2.3 to 2.5).
"""

import torch
from torch import nn
from torch.nn.functional import pad


class GatedLayer(nn.Module):
    """Gated causal convolution of two taps, ``dilation`` samples apart. The
    last layer has no residual output.

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
        condition_dim: int,
        dilation: int,
        last: bool,
    ):
        super().__init__()
        self.dilation = dilation
        self.past = nn.Linear(channels, 2 * channels, bias=False)
        self.now = nn.Linear(channels, 2 * channels, bias=False)
        # The attribute name is a state_dict key of published models.
        self.told = nn.Linear(condition_dim, 2 * channels)
        self.skip = nn.Linear(channels, skip_channels)
        # DistributedDataParallel rejects parameters without a gradient.
        self.residual = (
            None if last else nn.Linear(channels, channels, bias=False)
        )

    def forward(
        self, x: torch.Tensor, conditions: torch.Tensor, repeat: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map [B, N, C] and conditions [B, N / repeat, D] to the residual
        output [B, N, C], None in the last layer, and the skip [B, N, S]."""
        time = x.shape[1]
        past = self.past(x[:, : max(time - self.dilation, 0)])
        past = pad(past, (0, 0, min(self.dilation, time), 0))
        bias = self.told(conditions).repeat_interleave(repeat, 1)
        values, gates = (past + self.now(x) + bias).chunk(2, 2)
        z = torch.tanh(values) * torch.sigmoid(gates)
        residual = self.residual and x + self.residual(z)
        return residual, self.skip(z)
