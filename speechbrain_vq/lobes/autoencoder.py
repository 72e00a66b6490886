"""Convolutional autoencoder of speech features with a speaker-conditioned
decoder. All tensors are [batch, time, channel]; padding changes no output.
"""

import torch
from torch import nn

from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.nnet.normalization import MaskedBatchNorm

from .jitter import TimeJitter


def utterance_moments(
    features: torch.Tensor, lengths: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the mean and the standard deviation [B, C] of each channel over
    the valid frames of features [B, T, C] with relative lengths [B]."""
    mask = frame_mask(features, lengths).unsqueeze(2).to(features.dtype)
    count = mask.sum(1).clamp(min=1)
    mean = (features * mask).sum(1) / count
    variance = ((features - mean.unsqueeze(1)) * mask).square().sum(1)
    return mean, (variance / count + 1e-5).sqrt()


def normalize_utterances(
    features: torch.Tensor,
    lengths: torch.Tensor,
    moments: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Normalize each channel of features [B, T, C] with relative lengths [B]
    over the utterance; zero at padding. For pieces of utterances, pass the
    moments of the whole utterances, see ``utterance_moments``.

    Example
    -------
    >>> features = normalize_utterances(torch.rand(2, 9, 4), torch.ones(2))
    >>> bool(features.mean(1).abs().max() < 1e-5)
    True
    """
    mean, std = moments or utterance_moments(features, lengths)
    features = (features - mean.unsqueeze(1)) / std.unsqueeze(1)
    return features * frame_mask(features, lengths).unsqueeze(2)


def stack_frames(features: torch.Tensor, stride: int) -> torch.Tensor:
    """Concatenate every ``stride`` frames of [B, T, C] into
    [B, ceil(T / stride), stride * C], zero-padded at the end.

    Example
    -------
    >>> stack_frames(torch.ones(2, 5, 4), 2).shape
    torch.Size([2, 3, 8])
    """
    extra = -features.shape[1] % stride
    features = nn.functional.pad(features, (0, 0, 0, extra))
    return features.unflatten(1, (-1, stride)).flatten(2)


def stack_neighbors(x: torch.Tensor, window: int) -> torch.Tensor:
    """Concatenate each vector of [B, T, D] with ``window`` neighbors on either
    side, zero outside, into [B, T, (2 * window + 1) * D]."""
    padded = nn.functional.pad(x, (0, 0, window, window))
    return padded.unfold(1, 2 * window + 1, 1).transpose(2, 3).flatten(2)


class ConvBlock(nn.Module):
    """Residual block of a convolution over 3 frames and a pointwise
    convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.wide = nn.Conv1d(channels, channels, 3, padding=1)
        self.narrow = nn.Conv1d(channels, channels, 1)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Apply the block to [B, C, T]; zero outside the mask [B, 1, T]."""
        hidden = self.wide(torch.relu(x))
        return (x + self.narrow(torch.relu(hidden))) * mask


class ConvEncoder(nn.Module):
    """Strided convolutional encoder of speech features.

    Arguments
    ---------
    input_dim, output_dim : int
        Channels of the features, and of the latents.
    channels : int
        Hidden channels.
    stride : int
        Frames per latent: at 100 frames a second, 2 gives 50 latents a
        second and 4 gives 25.
    num_blocks : int
        Residual blocks after the strided convolution.
    utterance_norm : bool
        Whether to normalize each channel over the utterance, which removes
        much of the speaker's identity (Chou et al. 2019, arXiv 1904.05742).
        Each latent then depends on the whole utterance.
    linear : bool
        Whether to add to each latent a linear map of its own frames.

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
        linear: bool = False,
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
        self.linear = None
        if linear:
            self.linear = nn.Linear(stride * input_dim, output_dim)

    @property
    def context(self) -> tuple[int, int] | None:
        """Frames of context before and after a latent's own stride; None if
        it depends on the whole utterance."""
        if self.utterance_norm:
            return None
        around = sum(b.wide.kernel_size[0] // 2 for b in self.blocks)
        around = around * self.stride + self.first.kernel_size[0] // 2
        half = self.stride // 2
        return around + half, around + self.stride - half

    def forward(
        self,
        features: torch.Tensor,
        lengths: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode features [B, T, input_dim] with relative lengths [B], zero at
        padding. Returns latents [B, ceil(T / stride), output_dim] and their
        relative lengths [B]. With ``utterance_norm``, pieces of utterances need
        the moments of the whole utterances."""
        frames = torch.round(lengths * features.shape[1])
        mask = frame_mask(features, lengths).unsqueeze(1)
        if self.utterance_norm:
            features = normalize_utterances(features, lengths, moments)
        # Pad to whole strides, plus the overlap of the strided kernel.
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
        latents = (self.last(x) * mask).transpose(1, 2)
        if self.linear is not None:
            frames = stack_frames(features, self.stride)
            latents = latents + self.linear(frames) * mask.transpose(1, 2)
        return latents, lengths


class ConvDecoder(nn.Module):
    """Convolutional decoder conditioned on a speaker embedding.

    Arguments
    ---------
    input_dim, output_dim : int
        Channels of the latents, and of the features.
    speaker_dim : int
        Dimension of the speaker embedding, without moments.
    channels : int
        Hidden channels.
    stride : int
        Frames per latent.
    num_blocks : int
        Residual blocks. Half of them, rounded up, precede the upsampling.
    jitter : float
        Probability of ``TimeJitter`` on the latents.
    linear : bool
        Whether to add a linear map of each latent to its own frames.
    moments : bool
        Whether speaker embeddings end with the moments of the utterance, which
        scale and shift the output; see ``SpeakerEncoder(moments=True)``.

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
        linear: bool = False,
        moments: bool = False,
    ):
        super().__init__()
        self.stride = stride
        self.moments = moments
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
        self.linear = None
        if linear:
            self.linear = nn.Linear(input_dim, stride * output_dim)

    def forward(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None = None,
        wavs: torch.Tensor | None = None,
        wav_lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode latents [B, T, input_dim] with relative lengths [B], zero at
        padding, to features [B, T * stride, output_dim]. Speaker embeddings are
        [B, speaker_dim], with moments [B, speaker_dim + 2 * output_dim].
        Waveforms are ignored; autoregressive decoders require them."""
        # Conv1d rejects inputs without frames.
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0, self.last.out_channels)
        if self.moments:
            speaker, mean, log_std = speaker.split(
                [self.speaker.in_features, *[self.last.out_channels] * 2], 1
            )
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
        decoded = self.last(torch.relu(x)).transpose(1, 2)
        if self.linear is not None:
            frames = self.linear(latents).unflatten(2, (self.stride, -1))
            decoded = decoded + frames.flatten(1, 2)
        if self.moments:
            std = log_std.exp().unsqueeze(1)
            decoded = decoded * std + mean.unsqueeze(1)
        return decoded * mask.transpose(1, 2)

    def errors(
        self,
        predictions: torch.Tensor,
        features: torch.Tensor,
        lengths: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the sum of absolute errors over the valid frames of features
        [B, T, output_dim], and the number of summed values."""
        decoded = predictions[:, : features.shape[1]]
        mask = frame_mask(features, lengths).unsqueeze(-1)
        error = ((decoded - features).abs() * mask).sum()
        return error, mask.sum() * features.shape[-1]

    def metrics(self, error: float) -> dict[str, float]:
        """Return the mean error, keyed by its name in the logs."""
        return {"reconstruction_error": error}


class SpeakerEncoder(nn.Module):
    """Speaker encoder with statistics pooling, trained jointly with the decoder
    and without labels. Its embedding is batch-normalized without scale or
    shift, so the zero vector is the average speaker.

    Arguments
    ---------
    input_dim, output_dim : int
        Channels of the features, and of the trained embedding.
    moments : bool
        Whether to append the mean and the log standard deviation of each
        channel over the utterance, for ``ConvDecoder(moments=True)``. The
        attribute ``output_dim`` includes them.

    Example
    -------
    >>> encoder = SpeakerEncoder(80, 32)
    >>> encoder(torch.randn(4, 100, 80), torch.ones(4)).shape
    torch.Size([4, 32])
    """

    def __init__(self, input_dim: int, output_dim: int, moments: bool = False):
        super().__init__()
        self.linear = nn.Linear(2 * input_dim, output_dim)
        self.norm = MaskedBatchNorm(output_dim, affine=False)
        self.moments = moments
        self.output_dim = output_dim + 2 * input_dim * moments

    def forward(
        self,
        features: torch.Tensor,
        lengths: torch.Tensor,
        moments: tuple[torch.Tensor, torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """Embed features [B, T, input_dim] with relative lengths [B] as
        [B, output_dim]. For pieces of utterances, pass the moments of the whole
        utterances."""
        mean, std = moments or utterance_moments(features, lengths)
        voice = self.norm(self.linear(torch.cat([mean, std], dim=1)))
        if not self.moments:
            return voice
        return torch.cat([voice, mean, std.log()], dim=1)


class WindowPredictor(nn.Module):
    """Linear predictor of the frames around each token from its quantized
    vector, an auxiliary training task: phones are longer than a token.

    Arguments
    ---------
    input_dim, output_dim : int
        Channels of the quantized vectors, and of the features.
    stride, window : int
        Frames per token, and tokens to predict on either side.

    Example
    -------
    >>> predictor = WindowPredictor(64, 80)
    >>> features, lengths = torch.randn(2, 101, 80), torch.ones(2)
    >>> predictor(torch.randn(2, 51, 64), features, lengths).shape
    torch.Size([])
    """

    def __init__(
        self, input_dim: int, output_dim: int, stride: int = 2, window: int = 2
    ):
        super().__init__()
        self.stride = stride
        self.window = window
        width = (2 * window + 1) * stride
        self.linear = nn.Linear(input_dim, width * output_dim)

    def forward(
        self,
        quantized: torch.Tensor,
        features: torch.Tensor,
        lengths: torch.Tensor,
    ) -> torch.Tensor:
        """Predict features [B, T, output_dim] with relative lengths [B] from
        quantized vectors [B, ceil(T / stride), input_dim]. Returns the mean
        absolute error over the valid frames in the windows of valid tokens."""
        mask = frame_mask(features, lengths).unsqueeze(2)
        mask = stack_frames(mask.to(features.dtype), self.stride)
        targets = stack_frames(features, self.stride)
        targets = stack_neighbors(targets, self.window)
        mask = stack_neighbors(mask, self.window) * mask[..., :1]
        errors = (self.linear(quantized) - targets).abs()
        errors = errors.unflatten(2, (mask.shape[2], -1)) * mask.unsqueeze(3)
        return errors.sum() / (mask.sum() * features.shape[2]).clamp(min=1)
