"""A small convolutional autoencoder of speech features, with the speaker
given to the decoder so that the bottleneck need not carry it.

All modules take and return [batch, time, channel] and relative lengths, and
give the same for an utterance alone and in a padded batch.

Authors
 * speechbrain_vq authors 2026
"""

import torch
from torch import nn

from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.nnet.normalization import MaskedBatchNorm

from .jitter import TimeJitter


def utterance_moments(
    features: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each channel over the time of an
    utterance.

    Arguments
    ---------
    features : torch.Tensor
        Features, [B, T, C].
    lengths : torch.Tensor
        Relative lengths, [B].

    Returns
    -------
    tuple
        Means and standard deviations, [B, C] each.

    Example
    -------
    >>> mean, std = utterance_moments(torch.ones(2, 9, 4), torch.ones(2))
    >>> mean.shape, bool(std.max() < 0.01)
    (torch.Size([2, 4]), True)
    """
    mask = frame_mask(features, lengths).unsqueeze(2).to(features.dtype)
    count = mask.sum(1).clamp(min=1)
    mean = (features * mask).sum(1) / count
    variance = ((features - mean.unsqueeze(1)) * mask).square().sum(1)
    return mean, (variance / count + 1e-5).sqrt()


class ConvBlock(nn.Module):
    """Two convolutions with a residual connection.

    Arguments
    ---------
    channels : int
        Channels in and out.
    kernel_size : int
        Odd width of the convolutions, in frames.
    """

    def __init__(self, channels: int, kernel_size: int = 3):
        super().__init__()
        half = kernel_size // 2
        self.wide = nn.Conv1d(channels, channels, kernel_size, padding=half)
        self.narrow = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, C, T], zero beyond the mask [B, 1, T], to the same."""
        hidden = self.wide(torch.relu(x))
        return (x + self.narrow(torch.relu(hidden))) * mask


class ConvEncoder(nn.Module):
    """Features to latents, at a lower rate.

    Arguments
    ---------
    input_dim : int
        Channels of the features.
    output_dim : int
        Channels of the latents.
    channels : int
        Channels within.
    stride : int
        Frames for a latent: 2 makes 50 tokens a second of 100 frames, 4
        makes 25.
    num_blocks : int
        Residual blocks after the striding.
    utterance_norm : bool
        Whether to take mean and standard deviation over time out of each
        channel of an utterance's features, and so much of whose voice it is
        (instance normalization; Chou et al. 2019, arXiv 1904.05742). A latent
        then depends on the whole utterance.

    Example
    -------
    >>> encoder = ConvEncoder(80, 64)
    >>> latents, lengths = encoder(torch.randn(2, 101, 80), torch.ones(2))
    >>> latents.shape
    torch.Size([2, 51, 64])
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        channels: int = 256,
        stride: int = 2,
        num_blocks: int = 2,
        utterance_norm: bool = False,
    ):
        super().__init__()
        self.stride = stride
        self.utterance_norm = utterance_norm
        self.first = nn.Conv1d(input_dim, channels, 3, padding=1)
        self.down = nn.Conv1d(
            channels, channels, 2 * stride, stride, padding=stride // 2
        )
        self.blocks = nn.ModuleList(
            ConvBlock(channels) for _ in range(num_blocks)
        )
        self.last = nn.Conv1d(channels, output_dim, 1)

    @property
    def context(self) -> tuple[int, int] | None:
        """Frames that a latent depends on before and after its own stride;
        None: all of them."""
        if self.utterance_norm:
            return None
        around = sum(b.wide.kernel_size[0] // 2 for b in self.blocks)
        around = around * self.stride + self.first.kernel_size[0] // 2
        half = self.stride // 2
        return around + half, around + self.stride - half

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes.

        Arguments
        ---------
        features : torch.Tensor
            Features, [B, T, input_dim], zero beyond their lengths.
        lengths : torch.Tensor
            Relative lengths, [B].

        Returns
        -------
        tuple
            Latents [B, ceil(T / stride), output_dim] and their relative
            lengths [B].
        """
        frames = torch.round(lengths * features.shape[1])
        mask = frame_mask(features, lengths).unsqueeze(1)
        if self.utterance_norm:
            mean, std = utterance_moments(features, lengths)
            features = (features - mean.unsqueeze(1)) / std.unsqueeze(1)
            features = features * mask.transpose(1, 2)
        # Whole strides, and the margin that the strided kernel reaches over.
        extra = -features.shape[1] % self.stride
        x = self.first(features.transpose(1, 2)) * mask
        x = nn.functional.pad(torch.relu(x), (0, extra + self.stride))
        tokens = (features.shape[1] + extra) // self.stride
        x = self.down(x)[..., :tokens]
        lengths = torch.ceil(frames / self.stride) / tokens
        mask = frame_mask(x.transpose(1, 2), lengths).unsqueeze(1)
        x = x * mask
        for block in self.blocks:
            x = block(x, mask)
        return (self.last(x) * mask).transpose(1, 2), lengths


class ConvDecoder(nn.Module):
    """Latents and a speaker to features.

    Arguments
    ---------
    input_dim : int
        Channels of the latents.
    output_dim : int
        Channels of the features.
    speaker_dim : int
        Size of the speaker embedding.
    channels : int
        Channels within.
    stride : int
        Frames for a latent.
    num_blocks : int
        Residual blocks, the larger half of them before the rate goes up.
    jitter : float
        Probability for ``TimeJitter`` of the latents.

    Example
    -------
    >>> decoder = ConvDecoder(64, 80, speaker_dim=32)
    >>> decoder(torch.randn(2, 51, 64), torch.randn(2, 32)).shape
    torch.Size([2, 102, 80])
    """

    def __init__(
        self,
        input_dim: int,
        output_dim: int,
        speaker_dim: int,
        channels: int = 256,
        stride: int = 2,
        num_blocks: int = 3,
        jitter: float = 0.0,
    ):
        super().__init__()
        self.stride = stride
        self.jitter = TimeJitter(jitter)
        self.first = nn.Conv1d(input_dim, channels, 3, padding=1)
        self.speaker = nn.Linear(speaker_dim, channels)
        slow = (num_blocks + 1) // 2
        self.slow = nn.ModuleList(ConvBlock(channels) for _ in range(slow))
        self.up = nn.ConvTranspose1d(channels, channels, stride, stride)
        self.fast = nn.ModuleList(
            ConvBlock(channels) for _ in range(num_blocks - slow)
        )
        self.last = nn.Conv1d(channels, output_dim, 1)

    def forward(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None = None,
        wavs: torch.Tensor | None = None,
        wav_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decodes.

        Arguments
        ---------
        latents : torch.Tensor
            Latents, [B, T, input_dim], zero beyond their lengths.
        speaker : torch.Tensor
            Speaker embeddings, [B, speaker_dim].
        lengths : torch.Tensor, optional
            Relative lengths, [B].
        wavs, wav_lengths
            Not looked at: for decoders that write sample after sample.

        Returns
        -------
        torch.Tensor
            Features, [B, T * stride, output_dim], zero beyond their lengths.
        """
        # Convolutions take no length of 0.
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0, self.last.out_channels)
        latents = self.jitter(latents, lengths)
        mask = frame_mask(latents, lengths).unsqueeze(1)
        x = self.first(latents.transpose(1, 2))
        x = (x + self.speaker(speaker).unsqueeze(2)) * mask
        for block in self.slow:
            x = block(x, mask)
        mask = mask.repeat_interleave(self.stride, dim=2)
        x = self.up(torch.relu(x)) * mask
        for block in self.fast:
            x = block(x, mask)
        return (self.last(torch.relu(x)) * mask).transpose(1, 2)

    def errors(
        self,
        predictions: torch.Tensor,
        features: torch.Tensor,
        lengths: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Absolute errors over valid frames.

        Arguments
        ---------
        predictions : torch.Tensor
            What ``forward`` gave, at least as long as the features.
        features : torch.Tensor
            What it should be, [B, T, output_dim].
        lengths : torch.Tensor
            Relative lengths, [B].

        Returns
        -------
        tuple
            Their sum and their number.
        """
        decoded = predictions[:, : features.shape[1]]
        mask = frame_mask(features, lengths).unsqueeze(-1)
        error = ((decoded - features).abs() * mask).sum()
        return error, mask.sum() * features.shape[-1]

    def figures(self, error: float) -> dict[str, float]:
        """The mean error by the name under which it is reported."""
        return {"reconstruction_error": error}


class SpeakerEncoder(nn.Module):
    """A speaker embedding from the mean and standard deviation over time of
    an utterance's features: no labels, and no closed set of speakers.

    The embedding is batch-normalized without scale or shift, so that zeros
    stand for the average speaker.

    Arguments
    ---------
    input_dim : int
        Channels of the features.
    output_dim : int
        Size of the embedding.

    Example
    -------
    >>> encoder = SpeakerEncoder(80, 32)
    >>> encoder(torch.randn(4, 100, 80), torch.ones(4)).shape
    torch.Size([4, 32])
    """

    def __init__(self, input_dim: int, output_dim: int):
        super().__init__()
        self.linear = nn.Linear(2 * input_dim, output_dim)
        self.norm = MaskedBatchNorm(output_dim, affine=False)
        self.output_dim = output_dim

    def forward(
        self, features: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """[B, T, input_dim] with relative lengths [B] to [B, output_dim]."""
        moments = utterance_moments(features, lengths)
        return self.norm(self.linear(torch.cat(moments, dim=1)))
