"""A phone recogniser around a bottleneck: convolutions and a BLSTM before it,
a stack of convolutions after it.

After the WSJ model of arXiv 2005.08520 and its code. All modules take and
return [batch, time, channel] and relative lengths, and give the same for an
utterance alone and in a padded batch.
"""

import torch
from torch import nn

from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.nnet.normalization import MaskedBatchNorm


def delta(x: torch.Tensor) -> torch.Tensor:
    """The slope over time of features, by regression over five frames.

    Beyond the ends there are zeros, as there are in a padded batch.

    Arguments
    ---------
    x : torch.Tensor
        Features, [B, T, D].

    Returns
    -------
    torch.Tensor
        Slopes, [B, T, D].

    Example
    -------
    >>> delta(torch.arange(7.0).view(1, 7, 1)).flatten()[2:5]
    tensor([1., 1., 1.])
    """
    time = x.shape[1]
    padded = nn.functional.pad(x, (0, 0, 2, 2))
    at = [padded[:, start : start + time] for start in range(5)]
    return (2 * (at[4] - at[0]) + at[3] - at[1]) / 10


class NormedConv2d(nn.Module):
    """A 7 x 7 convolution over time and frequency, batch norm, and a rectifier
    that is cut off at 20.

    Arguments
    ---------
    input_channels : int
        Channels in.
    channels : int
        Channels out.
    stride : tuple of int
        In time and in frequency.
    """

    def __init__(
        self, input_channels: int, channels: int, stride: tuple[int, int]
    ):
        super().__init__()
        # The norm has a bias of its own.
        self.conv = nn.Conv2d(
            input_channels, channels, 7, stride, padding=3, bias=False
        )
        self.norm = MaskedBatchNorm(channels)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, F, C], zero beyond the lengths [B], to the same."""
        stride, frames = self.conv.stride[0], torch.round(lengths * x.shape[1])
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        lengths = torch.ceil(frames / stride) / x.shape[1]
        mask = frame_mask(x, lengths)
        x = nn.functional.hardtanh(self.norm(x, mask), 0, 20)
        return x * mask.unsqueeze(-1), lengths


class SummedBLSTM(nn.Module):
    """Layers of bidirectional LSTM, the two directions added up after each.

    Arguments
    ---------
    input_dim : int
        Channels in.
    hidden_size : int
        Channels out, and of each direction.
    num_layers : int
        Number of layers.
    dropout : float
        Share of the outputs dropped between layers.

    Example
    -------
    >>> blstm = SummedBLSTM(8, 16, num_layers=2)
    >>> blstm(torch.randn(2, 5, 8), torch.tensor([1.0, 0.6])).shape
    torch.Size([2, 5, 16])
    """

    def __init__(
        self,
        input_dim: int,
        hidden_size: int,
        num_layers: int,
        dropout: float = 0.0,
    ):
        super().__init__()
        sizes = [input_dim] + [hidden_size] * (num_layers - 1)
        self.forwards, self.backwards = (
            nn.ModuleList(
                nn.LSTM(size, hidden_size, batch_first=True) for size in sizes
            )
            for _ in range(2)
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, T, input_dim] with lengths [B] to [B, T, hidden_size], zero
        beyond the lengths."""
        mask = frame_mask(x, lengths)
        # Turned round within its length, a sequence starts at its last frame.
        # (Packed sequences of different lengths take several times as long on
        # a CPU.)
        frames, place = mask.sum(1, keepdim=True), torch.arange(x.shape[1])
        place = place.to(x.device).expand(mask.shape)
        place = torch.where(mask, frames - 1 - place, place).unsqueeze(-1)
        for index, (onwards, back) in enumerate(
            zip(self.forwards, self.backwards, strict=True)
        ):
            if index:
                x = self.dropout(x)
            turned = back(_take(x, place))[0]
            x = (onwards(x)[0] + _take(turned, place)) * mask.unsqueeze(-1)
        return x


def _take(x: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """Frames [B, T, D] in another order, by their places [B, T, 1]."""
    return x.gather(1, place.expand(x.shape))


class PhoneEncoder(nn.Module):
    """Features to latents at a third of their rate: two convolutions over time
    and frequency, with slopes and slopes of slopes as channels, and a BLSTM.

    Arguments
    ---------
    input_dim : int
        Channels of the features.
    channels : int
        Channels of the convolutions.
    hidden_size : int
        Channels of the latents.
    num_layers : int
        Layers of the BLSTM.
    dropout : float
        Between and after these layers.

    Example
    -------
    >>> encoder = PhoneEncoder(40, 16, 64, num_layers=1)
    >>> latents, lengths = encoder(torch.randn(2, 100, 40), torch.ones(2))
    >>> latents.shape
    torch.Size([2, 34, 64])
    """

    def __init__(
        self,
        input_dim: int,
        channels: int = 32,
        hidden_size: int = 320,
        num_layers: int = 4,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.convolutions = nn.ModuleList(
            (
                NormedConv2d(3, channels, stride=(1, 2)),
                NormedConv2d(channels, channels, stride=(3, 1)),
            )
        )
        self.blstm = SummedBLSTM(
            (input_dim + 1) // 2 * channels, hidden_size, num_layers, dropout
        )
        self.dropout = nn.Dropout(dropout)

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
            Latents [B, ceil(T / 3), hidden_size] and their relative lengths
            [B].
        """
        mask = frame_mask(features, lengths).unsqueeze(-1)
        slope = delta(features) * mask
        x = torch.stack((features, slope, delta(slope) * mask), dim=-1)
        for convolution in self.convolutions:
            x, lengths = convolution(x, lengths)
        return self.dropout(self.blstm(x.flatten(2), lengths)), lengths


class LatentMixer(nn.Module):
    """Quantized latents to evidence for phones: convolutions, the first two
    dilated, with residual connections, and a linear layer.

    Arguments
    ---------
    input_dim : int
        Channels of the latents.
    output_dim : int
        Number of phones, and of what else is told apart.
    channels : int
        Channels within.

    Example
    -------
    >>> mixer = LatentMixer(320, 40)
    >>> mixer(torch.randn(2, 34, 320), torch.ones(2)).shape
    torch.Size([2, 34, 40])
    """

    def __init__(self, input_dim: int, output_dim: int, channels: int = 64):
        super().__init__()
        self.first = nn.Linear(input_dim, channels)
        self.convolutions = nn.ModuleList(
            nn.Conv1d(channels, channels, 3, padding=d, dilation=d, bias=False)
            for d in (2, 4, 1, 1)
        )
        self.norms = nn.ModuleList(
            MaskedBatchNorm(channels) for _ in self.convolutions
        )
        self.last = nn.Linear(channels, output_dim)

    def forward(
        self, latents: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """[B, T, input_dim] with lengths [B] to logits [B, T, output_dim],
        meaningless beyond the lengths."""
        mask = frame_mask(latents, lengths)
        x = self.first(latents) * mask.unsqueeze(-1)
        for convolution, norm in zip(
            self.convolutions, self.norms, strict=True
        ):
            y = convolution(x.transpose(1, 2)).transpose(1, 2)
            x = x + torch.relu(norm(y, mask)) * mask.unsqueeze(-1)
        return self.last(x)
