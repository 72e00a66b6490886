"""A gated PixelCNN (van den Oord et al., 2016, arXiv 1606.05328) that writes
an image a column after the other, each from the top, with latents to tell it
what.

As in the code of arXiv 2005.08520, one stream sees the columns before and
another, within a column, the pixels above.
"""

import torch
from torch import nn
from torch.nn.functional import pad


def grey_levels(ink: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Cuts 0..1 into levels of the same size.

    Arguments
    ---------
    ink : torch.Tensor
        Values in 0..1, of any shape.
    num_levels : int
        Number of levels.

    Returns
    -------
    torch.Tensor
        Whole numbers in 0..num_levels - 1.

    Example
    -------
    >>> grey_levels(torch.tensor([0.0, 0.24, 0.25, 1.0]), 4)
    tensor([0, 0, 1, 3])
    """
    return (ink * num_levels).long().clamp(max=num_levels - 1)


class ColumnPixelCNN(nn.Module):
    """The distribution of each pixel's level, given the pixels before it and
    the latents of the whole line.

    Arguments
    ---------
    cond_dim : int
        Channels of the latents.
    height : int
        Rows of the images.
    stride : int
        Columns for a latent.
    channels : int
        Channels of each stream.
    num_layers : int
        Gated layers.
    num_levels : int
        Levels of a pixel.

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
        # No mask is needed: each stream starts from an image moved by a
        # column or by a pixel, and from there on looks at itself and back.
        self.columns = nn.Conv2d(1, channels, (3, 7), padding=(0, 3))
        self.pixels = nn.Conv2d(1, channels, (1, 3))
        # What is written depends on the row, in every layer.
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
        """Predicts each pixel.

        Arguments
        ---------
        levels : torch.Tensor
            Images of whole numbers, [B, T, H].
        latents : torch.Tensor
            Latents, [B, ceil(T / stride), cond_dim].

        Returns
        -------
        torch.Tensor
            Logits of the levels, [B, T, H, num_levels]; those of a pixel
            depend on the columns before its own, the pixels above it in its
            own, and the latents of the columns up to its own.
        """
        time = levels.shape[1]
        image = (levels / (self.num_levels - 1)).to(latents).unsqueeze(1)
        columns = self.columns(pad(image, (0, 0, 3, 0))[:, :, : time + 2])
        pixels = self.pixels(pad(image, (3, 0))[..., :-1])
        total = pixels = pixels + columns + self.rows
        conditions = self.condition(latents).transpose(1, 2).unsqueeze(3)
        conditions = conditions.repeat_interleave(self.stride, 2)[:, :, :time]
        for layer, condition in zip(
            self.layers,
            conditions.chunk(len(self.layers), dim=1),
            strict=True,
        ):
            columns, pixels, skip = layer(columns, pixels, condition)
            total = total + skip
        hidden = torch.relu(self.hidden(torch.relu(total)))
        return self.last(hidden).permute(0, 2, 3, 1)


class ColumnGatedLayer(nn.Module):
    """A layer of both streams, gated; that of the pixels sees that of the
    columns.

    Arguments
    ---------
    channels : int
        Channels of each stream.
    height : int
        Rows of the images.
    """

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
        """Two streams [B, C, T, H] and what they are told, [B, 4 C, T, 1], to
        the streams and a third [B, C, T, H] for the output."""
        told = (condition + self.rows).chunk(2, dim=1)
        seen = self.columns(pad(columns, (0, 0, 1, 0)))
        above = self.pixels(pad(pixels, (1, 0))) + self.to_pixels(seen)
        columns = _gate(seen + told[0])
        written = _gate(above + told[1])
        skip = self.skip(torch.relu(written))
        return columns, pixels + self.residual(written), skip


def _gate(x: torch.Tensor) -> torch.Tensor:
    values, gates = x.chunk(2, dim=1)
    return torch.tanh(values) * torch.sigmoid(gates)
