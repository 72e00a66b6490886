"""Phone recognizer with a bottleneck, after the WSJ model of arXiv 2005.08520:
convolutions and a BLSTM before the bottleneck, dilated convolutions after it.
Padding changes no output.
"""

from collections.abc import Sequence

import torch
from torch import nn
from torchaudio.functional import compute_deltas

from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.nnet.normalization import MaskedBatchNorm


def delta(x: torch.Tensor) -> torch.Tensor:
    """Compute delta features of [B, T, D] by regression over five frames. Both
    ends are zero-padded, like the end of an utterance in a batch.

    Example
    -------
    >>> delta(torch.arange(7.0).view(1, 7, 1)).flatten()[2:5]
    tensor([1., 1., 1.])
    """
    return compute_deltas(x.transpose(1, 2), mode="constant").transpose(1, 2)


class NormedConv2d(nn.Module):
    """2-D convolution with masked batch norm and a ReLU clipped at 20. Strides
    and kernel sizes are (time, frequency)."""

    def __init__(
        self,
        input_channels: int,
        channels: int,
        stride: Sequence[int],
        kernel_size: Sequence[int] = (7, 7),
    ):
        super().__init__()
        padding = [(size - 1) // 2 for size in kernel_size]
        # The bias of the batch norm suffices.
        self.conv = nn.Conv2d(
            input_channels, channels, kernel_size, stride, padding, bias=False
        )
        self.norm = MaskedBatchNorm(channels)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Apply the layer to [B, T, F, C] with relative lengths [B], zero at
        padding."""
        stride, frames = self.conv.stride[0], torch.round(lengths * x.shape[1])
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        lengths = torch.ceil(frames / stride) / x.shape[1]
        mask = frame_mask(x, lengths)
        x = self.activation(self.norm(x, mask))
        return x * mask.unsqueeze(-1), lengths

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the activation function."""
        return nn.functional.hardtanh(x, 0, 20)


class SummedBLSTM(nn.Module):
    """Bidirectional LSTM that sums both directions after each layer.

    Arguments
    ---------
    input_dim, hidden_size : int
        Channels of the input, and of each direction and the output.
    num_layers : int
        Number of layers.
    dropout : float
        Dropout probability between layers.

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
        """Map [B, T, input_dim] with relative lengths [B] to
        [B, T, hidden_size], zero at padding."""
        mask = frame_mask(x, lengths)
        # Reversing each sequence within its length is several times faster on
        # a CPU than packed sequences of different lengths.
        frames, times = mask.sum(1, keepdim=True), torch.arange(x.shape[1])
        times = times.to(x.device).expand(mask.shape)
        order = torch.where(mask, frames - 1 - times, times).unsqueeze(-1)

        def reverse(x):
            """Reverse each sequence within its length."""
            return x.gather(1, order.expand(x.shape))

        layers = zip(self.forwards, self.backwards, strict=True)
        for index, (forward_lstm, backward_lstm) in enumerate(layers):
            if index:
                x = self.dropout(x)
            backward = reverse(backward_lstm(reverse(x))[0])
            x = (forward_lstm(x)[0] + backward) * mask.unsqueeze(-1)
        return x


class PhoneEncoder(nn.Module):
    """Encoder with a third of the input frame rate: convolutions over features,
    deltas and delta-deltas, then a BLSTM.

    Arguments
    ---------
    input_dim, channels, hidden_size : int
        Channels of the features, the convolutions and the latents.
    num_layers : int
        BLSTM layers.
    dropout : float
        Dropout probability between and after the BLSTM layers.

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
        """Encode features [B, T, input_dim] with relative lengths [B], zero at
        padding, as latents [B, ceil(T / 3), hidden_size] and their relative
        lengths [B]."""
        mask = frame_mask(features, lengths).unsqueeze(-1)
        deltas = delta(features) * mask
        x = torch.stack((features, deltas, delta(deltas) * mask), dim=-1)
        for convolution in self.convolutions:
            x, lengths = convolution(x, lengths)
        return self.dropout(self.blstm(x.flatten(2), lengths)), lengths


class LatentMixer(nn.Module):
    """Residual stack of 1-D convolutions from latents to logits. The first two
    convolutions are dilated.

    Arguments
    ---------
    input_dim, output_dim, channels : int
        Channels of the latents, output classes, and hidden channels.

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
        """Map [B, T, input_dim] with relative lengths [B] to logits
        [B, T, output_dim], undefined at padding."""
        mask = frame_mask(latents, lengths)
        x = self.first(latents) * mask.unsqueeze(-1)
        for convolution, norm in zip(
            self.convolutions, self.norms, strict=True
        ):
            y = convolution(x.transpose(1, 2)).transpose(1, 2)
            x = x + torch.relu(norm(y, mask)) * mask.unsqueeze(-1)
        return self.last(x)
