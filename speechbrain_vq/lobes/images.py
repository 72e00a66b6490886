"""The convolutional autoencoder of images of arXiv 2005.08520 (after van den
Oord et al., 2017): a quarter of the height and width between encoder and
decoder, and a distribution over the levels of every sub-pixel at the end.

Images are whole numbers [B, C, H, W], latents [B, H / 4, W / 4, dim], so that
a quantizer takes them as they are.
"""

import torch
from torch import nn

from speechbrain_vq.nnet import VectorQuantizer

LEVELS = 256


def to_unit(images: torch.Tensor) -> torch.Tensor:
    """Levels 0..255 to -0.5..0.5.

    Arguments
    ---------
    images : torch.Tensor
        Whole numbers of any shape.

    Returns
    -------
    torch.Tensor
        In fp32, of the same shape.
    """
    return images.to(torch.float32) / (LEVELS - 1) - 0.5


def truncated_levels(images: torch.Tensor) -> torch.Tensor:
    """The levels that the code of arXiv 2005.08520 predicts.

    It finds them by cutting (x + 0.5) * 255 to a whole number, where x is
    ``to_unit`` of a level. Rounding errors put 63 of the 256 levels one below
    their own, and two of them together, so likelihoods of these are not those
    of 8-bit images.

    Arguments
    ---------
    images : torch.Tensor
        Whole numbers of any shape.

    Returns
    -------
    torch.Tensor
        Whole numbers of the same shape.

    Example
    -------
    >>> len(truncated_levels(torch.arange(256)).unique())
    255
    """
    return ((to_unit(images) + 0.5) * (LEVELS - 1)).long()


class ResidualBlock(nn.Module):
    """A 3x3 and a 1x1 convolution with a residual connection.

    Arguments
    ---------
    channels : int
        Channels in and out.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            # The norms have a shift of their own.
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 1, bias=False),
            nn.BatchNorm2d(channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] to the same."""
        return x + self.layers(x)


class ImageEncoder(nn.Module):
    """Images to latents, a quarter as high and wide.

    Arguments
    ---------
    image_channels : int
        3 for colour, 1 for grey.
    output_dim : int
        Channels of the latents.
    channels : int
        Channels within.
    num_blocks : int
        Residual blocks after the striding.

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
        """Encodes.

        Arguments
        ---------
        images : torch.Tensor
            Levels 0..255, [B, image_channels, H, W], H and W divisible by 4.

        Returns
        -------
        torch.Tensor
            Latents, [B, H / 4, W / 4, output_dim].
        """
        return self.layers(to_unit(images)).permute(0, 2, 3, 1)


class ImageDecoder(nn.Module):
    """Latents to a distribution over the levels of every sub-pixel.

    Arguments
    ---------
    input_dim : int
        Channels of the latents.
    image_channels : int
        3 for colour, 1 for grey.
    channels : int
        Channels within.
    num_blocks : int
        Residual blocks before the size goes up.

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
        """Decodes.

        Arguments
        ---------
        latents : torch.Tensor
            Latents, [B, h, w, input_dim].

        Returns
        -------
        torch.Tensor
            Logits, [B, 256, image_channels, 4 h, 4 w].
        """
        # Contiguous, or the loss copies all logits to make them so.
        return self.layers(latents.permute(0, 3, 1, 2).contiguous())


class ImageQuantizer(VectorQuantizer):
    """A ``VectorQuantizer`` as the code of arXiv 2005.08520 has it on images:
    codebooks side by side without projections, and, where there is a norm,
    one whose statistics they share.

    Arguments
    ---------
    num_codebooks : int
        Codebooks, each for its slice of the latents.
    codebook_size : int
        Number of codewords of each.
    codebook_dim : int
        Dimension of a codeword.
    norm : str, optional
        ``"batch"`` or None.
    **options
        Others of ``VectorQuantizer``.

    Example
    -------
    >>> quantizer = ImageQuantizer(8, 128, 32)
    >>> quantizer(torch.randn(2, 8, 8, 256)).indices.shape
    torch.Size([2, 8, 8, 8])
    >>> quantizer.norm.weight.shape
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
