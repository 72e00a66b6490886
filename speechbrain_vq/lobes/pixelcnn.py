"""Gated PixelCNN (van den Oord et al., 2016, arXiv 1606.05328) conditioned on
latents. It scans columns from top to bottom. One stream covers the previous
columns, and the other the pixels above, as in the code of arXiv 2005.08520.
"""

import torch
from torch import nn
from torch.nn.functional import pad


def grey_levels(ink: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Quantize values in 0..1, of any shape, to integer gray levels in
    0..num_levels - 1, uniformly.

    Example
    -------
    >>> grey_levels(torch.tensor([0.0, 0.24, 0.25, 1.0]), 4)
    tensor([0, 0, 1, 3])
    """
    return (ink * num_levels).long().clamp(max=num_levels - 1)


class ColumnPixelCNN(nn.Module):
    """Autoregressive decoder of line images conditioned on latents.

    Arguments
    ---------
    cond_dim, channels : int
        Channels of the latents, and of each stream.
    height, stride : int
        Rows of an image, and its columns per latent.
    num_layers : int
        Number of gated layers.
    num_levels : int
        Gray levels of a pixel.

    Example
    -------
    >>> decoder = ColumnPixelCNN(16, channels=4, num_layers=2)
    >>> levels = torch.randint(4, (2, 9, 32))
    >>> decoder(levels, torch.randn(2, 5, 16)).shape
    torch.Size([2, 9, 32, 4])
    """

    def __init__(
        self,
        cond_dim: int,
        height: int = 32,
        stride: int = 2,
        channels: int = 64,
        num_layers: int = 7,
        num_levels: int = 4,
    ):
        super().__init__()
        self.stride = stride
        self.num_levels = num_levels
        # The inputs are shifted by a column and by a pixel, so that causal
        # kernels need no mask.
        self.columns = nn.Conv2d(1, channels, (3, 7), padding=(0, 3))
        self.pixels = nn.Conv2d(1, channels, (1, 3))
        # Row embeddings, because strokes depend on their height in the line.
        self.rows = nn.Parameter(torch.randn(1, channels, 1, height))
        self.condition = nn.Linear(
            cond_dim, num_layers * 4 * channels, bias=False
        )
        self.layers = nn.ModuleList(
            ColumnGatedLayer(channels, height) for _ in range(num_layers)
        )
        self.hidden = nn.Conv2d(channels, channels, 1)
        self.last = nn.Conv2d(channels, num_levels, 1)

    def forward(
        self, levels: torch.Tensor, latents: torch.Tensor
    ) -> torch.Tensor:
        """Compute logits [B, T, H, num_levels] of images [B, T, H] given
        latents [B, ceil(T / stride), cond_dim]. The logits of a pixel depend on
        previous pixels and on the latents up to its column."""
        time = levels.shape[1]
        image = (levels / (self.num_levels - 1)).to(latents).unsqueeze(1)
        columns = self.columns(pad(image, (0, 0, 3, 0))[:, :, : time + 2])
        pixels = self.pixels(pad(image, (3, 0))[..., :-1])
        total = pixels = pixels + columns + self.rows
        conditions = self.condition(latents).transpose(1, 2).unsqueeze(3)
        conditions = conditions.repeat_interleave(self.stride, 2)[:, :, :time]
        chunks = conditions.chunk(len(self.layers), dim=1)
        for layer, condition in zip(self.layers, chunks, strict=True):
            columns, pixels, skip = layer(columns, pixels, condition)
            total = total + skip
        hidden = torch.relu(self.hidden(torch.relu(total)))
        return self.last(hidden).permute(0, 2, 3, 1)


class ColumnGatedLayer(nn.Module):
    """Gated layer of both streams. The column stream feeds the pixel stream."""

    def __init__(self, channels: int, height: int):
        super().__init__()
        twice = 2 * channels
        self.columns = nn.Conv2d(
            channels, twice, (2, 3), padding=(0, 1), bias=False
        )
        self.pixels = nn.Conv2d(channels, twice, (1, 2), bias=False)
        self.to_pixels = nn.Conv2d(twice, twice, 1, bias=False)
        self.residual = nn.Conv2d(channels, channels, 1, bias=False)
        self.skip = nn.Conv2d(channels, channels, 1)
        self.rows = nn.Parameter(torch.zeros(1, 2 * twice, 1, height))

    def forward(
        self,
        columns: torch.Tensor,
        pixels: torch.Tensor,
        condition: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Map both streams [B, C, T, H] and a condition [B, 4 C, T, 1] to new
        streams and a skip connection [B, C, T, H]."""
        biases = (condition + self.rows).chunk(2, dim=1)
        previous = self.columns(pad(columns, (0, 0, 1, 0)))
        above = self.pixels(pad(pixels, (1, 0))) + self.to_pixels(previous)
        columns = _gate(previous + biases[0])
        gated = _gate(above + biases[1])
        skip = self.skip(torch.relu(gated))
        return columns, pixels + self.residual(gated), skip


def _gate(x):
    values, gates = x.chunk(2, dim=1)
    return torch.tanh(values) * torch.sigmoid(gates)
