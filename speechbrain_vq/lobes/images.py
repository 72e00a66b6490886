"""Convolutional image autoencoder of arXiv 2005.08520, after van den Oord et
al. (2017), with latents at a quarter of the resolution and a categorical
distribution over the levels of each sub-pixel.
"""

import torch
from torch import nn

from speechbrain_vq.nnet import VectorQuantizer
from speechbrain_vq.presets import quantizer_options

LEVELS = 256


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Scale integer levels in 0..255, of any shape, to fp32 in -0.5..0.5."""
    return images.to(torch.float32) / (LEVELS - 1) - 0.5


def truncated_levels(images: torch.Tensor) -> torch.Tensor:
    """Compute target levels as the reference code of arXiv 2005.08520 does, by
    truncating (``to_unit`` + 0.5) * 255. Rounding errors lower 63 of the 256
    levels by one, so likelihoods are not those of the 8-bit images.

    Example
    -------
    >>> len(truncated_levels(torch.arange(256)).unique())
    255
    """
    return ((to_unit(images) + 0.5) * (LEVELS - 1)).long()


class ResidualBlock(nn.Module):
    """Residual block with a 3x3 and a 1x1 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            # The bias of the batch norms suffices.
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the block to [B, C, H, W]."""
        return x + self.layers(x)


class ImageEncoder(nn.Module):
    """Image encoder that reduces height and width by a factor of 4.

    Arguments
    ---------
    image_channels : int
        3 for color, 1 for grayscale.
    output_dim, channels : int
        Channels of the latents, and hidden channels.
    num_blocks : int
        Residual blocks after the strided convolutions.

    Example
    -------
    >>> encoder = ImageEncoder(3, 256, channels=32)
    >>> encoder(torch.randint(256, (2, 3, 32, 32))).shape
    torch.Size([2, 8, 8, 256])
    """

    def __init__(
        self,
        image_channels: int,
        output_dim: int,
        channels: int = 256,
        num_blocks: int = 2,
    ):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(image_channels, channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            *(ResidualBlock(channels) for _ in range(num_blocks)),
            nn.Conv2d(channels, output_dim, 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Encode levels [B, image_channels, H, W] in 0..255, with H and W
        divisible by 4, as latents [B, H / 4, W / 4, output_dim]."""
        return self.layers(to_unit(images)).permute(0, 2, 3, 1)


class ImageDecoder(nn.Module):
    """Decoder of latents to logits over the levels of each sub-pixel.

    Arguments
    ---------
    input_dim : int
        Channels of the latents.
    image_channels, channels, num_blocks : int
        As in ``ImageEncoder``. The residual blocks precede the upsampling.

    Example
    -------
    >>> decoder = ImageDecoder(256, 3, channels=32)
    >>> decoder(torch.randn(2, 8, 8, 256)).shape
    torch.Size([2, 256, 3, 32, 32])
    """

    def __init__(
        self,
        input_dim: int,
        image_channels: int,
        channels: int = 256,
        num_blocks: int = 2,
    ):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(input_dim, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
            *(ResidualBlock(channels) for _ in range(num_blocks)),
            nn.ConvTranspose2d(channels, channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.ConvTranspose2d(channels, channels, 4, 2, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, LEVELS * image_channels, 1),
            nn.Unflatten(1, (LEVELS, image_channels)),
        )

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """Decode latents [B, h, w, input_dim] to logits
        [B, 256, image_channels, 4 h, 4 w]."""
        # Otherwise the logits are not contiguous, and the loss copies them.
        return self.layers(latents.permute(0, 3, 1, 2).contiguous())


class ImageQuantizer(VectorQuantizer):
    """Product quantizer for images as in the code of arXiv 2005.08520: without
    projections, and with one norm whose statistics all codebooks share.

    Arguments
    ---------
    num_codebooks : int
        Number of codebooks, one for each slice of the channels.
    codebook_size, codebook_dim, norm, **options
        See ``VectorQuantizer``.

    Example
    -------
    >>> quantizer = ImageQuantizer(8, 128, 32)
    >>> quantizer(torch.randn(2, 8, 8, 256)).indices.shape
    torch.Size([2, 8, 8, 8])
    >>> quantizer.norm.running_mean.shape
    torch.Size([32])
    """

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        codebook_dim: int,
        norm: str | None = "batch",
        **options,
    ):
        super().__init__(
            num_codebooks * codebook_dim,
            codebook_size,
            codebook_dim,
            num_codebooks,
            norm=norm,
            norm_position="input" if norm is None else "latent",
            **options,
        )

    @classmethod
    def preset_arguments(
        cls, preset, num_codebooks, codebook_size, codebook_dim, **changes
    ):
        """See ``VectorQuantizer.preset_arguments``."""
        options = quantizer_options(preset)
        number, composition = map(options.pop, ("num_codebooks", "composition"))
        if (number, composition) != (1, "product"):
            raise ValueError(
                "ImageQuantizer defines its own codebooks and cannot use a "
                f"preset with num_codebooks={number}, "
                f"composition={composition!r}. "
                "Choose another preset or another recipe."
            )
        options |= {
            "num_codebooks": num_codebooks,
            "codebook_size": codebook_size,
            "codebook_dim": codebook_dim,
        }
        return options | changes
