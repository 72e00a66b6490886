"""Lines of handwriting to latents, and latents to characters.

After the ScribbleLens model of arXiv 2005.08520 and its code. All modules take
and return [batch, time, channel] and relative lengths, where time is the
columns of an image, and give the same for a line alone and in a padded batch.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.nnet.normalization import MaskedBatchNorm

# Kernels and strides of the convolutions, (columns, rows): they halve the
# number of columns, and make one of 32 rows.
HEIGHT = 32
STRIDE = 2
KERNELS = ((3, 3), (5, 5), (3, 3), (3, 3), (3, 3), (3, 3), (3, 2))
STRIDES = ((1, 2), (2, 2), (1, 1), (1, 2), (1, 1), (1, 2), (1, 1))
CHANNELS = (64, 128, 256, 256, 512, 512, 512)


class LineConv(nn.Module):
    """A convolution over columns and rows, batch norm, and a leaky rectifier.

    Arguments
    ---------
    input_channels : int
        Channels in.
    channels : int
        Channels out.
    kernel_size, stride : tuple of int
        For columns and rows.

    Example
    -------
    >>> conv = LineConv(1, 4, (3, 3), (2, 2))
    >>> out, lengths = conv(torch.rand(2, 9, 32, 1), torch.tensor([1.0, 5 / 9]))
    >>> out.shape, (lengths * 5).tolist()
    (torch.Size([2, 5, 16, 4]), [5.0, 3.0])
    """

    def __init__(
        self,
        input_channels: int,
        channels: int,
        kernel_size: Sequence[int],
        stride: Sequence[int],
    ):
        super().__init__()
        padding = [(size - 1) // 2 for size in kernel_size]
        # The norm has a bias of its own.
        self.conv = nn.Conv2d(
            input_channels, channels, kernel_size, stride, padding, bias=False
        )
        self.norm = MaskedBatchNorm(channels)

    def forward(
        self, x: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """[B, T, H, C], zero beyond the lengths [B], to the same."""
        columns = torch.round(lengths * x.shape[1])
        x = self.conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        lengths = torch.ceil(columns / self.conv.stride[0]) / x.shape[1]
        mask = frame_mask(x, lengths)
        x = nn.functional.leaky_relu(self.norm(x, mask), 0.1)
        return x * mask.unsqueeze(-1), lengths


class ProjectedBLSTM(nn.Module):
    """A bidirectional LSTM and a linear projection of both directions.

    Arguments
    ---------
    input_dim : int
        Channels in.
    hidden_size : int
        Of each direction.
    output_dim : int
        Channels out.
    """

    def __init__(self, input_dim: int, hidden_size: int, output_dim: int):
        super().__init__()
        self.lstm = nn.LSTM(
            input_dim, hidden_size, batch_first=True, bidirectional=True
        )
        self.project = nn.Linear(2 * hidden_size, output_dim, bias=False)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """[B, T, input_dim] with lengths [B] to [B, T, output_dim], zero
        beyond the lengths."""
        time = x.shape[1]
        # Packed, so that the backward direction starts at the last column.
        frames = torch.round(lengths * time).long().clamp(min=1).cpu()
        packed = pack_padded_sequence(
            x, frames, batch_first=True, enforce_sorted=False
        )
        both, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=time
        )
        return self.project(both)


class LineEncoder(nn.Module):
    """Images of lines to latents, one for two columns: convolutions, and two
    bidirectional LSTMs, the second one residual.

    Arguments
    ---------
    output_dim : int
        Channels of the latents.
    channels : sequence of int
        Channels of the seven convolutions.
    hidden_size : int
        Of each direction of the LSTMs.

    Example
    -------
    >>> encoder = LineEncoder(channels=[4] * 7)
    >>> latents, lengths = encoder(torch.rand(2, 101, 32), torch.ones(2))
    >>> latents.shape
    torch.Size([2, 51, 32])
    """

    def __init__(
        self,
        output_dim: int = 32,
        channels: Sequence[int] = CHANNELS,
        hidden_size: int = 32,
    ):
        super().__init__()
        if len(channels) != len(KERNELS):
            raise ValueError(
                f"channels are those of {len(KERNELS)} convolutions, got "
                f"{list(channels)}."
            )
        self.convolutions = nn.ModuleList(
            LineConv(*shape)
            for shape in zip(
                [1, *channels[:-1]], channels, KERNELS, STRIDES, strict=True
            )
        )
        self.first = ProjectedBLSTM(channels[-1], hidden_size, output_dim)
        self.norm = MaskedBatchNorm(output_dim)
        self.second = ProjectedBLSTM(output_dim, hidden_size, output_dim)

    def forward(
        self, ink: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encodes.

        Arguments
        ---------
        ink : torch.Tensor
            Images [B, T, 32], a column after the other, 0 for paper and 1 for
            ink; zero beyond their lengths.
        lengths : torch.Tensor
            Relative lengths, [B].

        Returns
        -------
        tuple
            Latents [B, ceil(T / 2), output_dim] and their relative lengths
            [B].

        Raises
        ------
        ValueError
            If the images are not 32 high.
        """
        if ink.shape[-1] != HEIGHT:
            raise ValueError(
                f"Lines are [B, T, {HEIGHT}], got a tensor of shape "
                f"{tuple(ink.shape)}."
            )
        x = ink.unsqueeze(-1)
        for convolution in self.convolutions:
            x, lengths = convolution(x, lengths)
        x = self.first(x.squeeze(2), lengths)
        mask = frame_mask(x, lengths)
        normed = self.norm(x, mask) * mask.unsqueeze(-1)
        return torch.relu(x + self.second(normed, lengths)), lengths


class CTCProbe(nn.Module):
    """What can be read from latents: a linear map of three of them to
    characters, trained by CTC. Blank is 0.

    Arguments
    ---------
    input_dim : int
        Channels of the latents.
    characters : str
        Those that are told apart.

    Example
    -------
    >>> probe = CTCProbe(8, "abc ")
    >>> log_probs = probe(torch.randn(2, 10, 8))
    >>> log_probs.shape
    torch.Size([2, 10, 5])
    >>> bool(probe.loss(log_probs, torch.ones(2), ["ab", ""]) > 0)
    True
    """

    def __init__(self, input_dim: int, characters: str):
        super().__init__()
        self.characters = characters
        self.conv = nn.Conv1d(input_dim, 1 + len(characters), 3, padding=1)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """[B, T, input_dim], zero beyond their lengths, to logarithms of
        probabilities [B, T, 1 + characters]."""
        logits = self.conv(latents.transpose(1, 2)).transpose(1, 2)
        return nn.functional.log_softmax(logits.float(), dim=-1)

    def known(self, text: str) -> str:
        """A text without the characters that are not told apart."""
        return "".join(c for c in text if c in self.characters)

    def loss(
        self,
        log_probs: torch.Tensor,
        lengths: torch.Tensor,
        texts: Iterable[str],
    ) -> torch.Tensor:
        """The CTC loss.

        Arguments
        ---------
        log_probs : torch.Tensor
            What ``forward`` gave, [B, T, 1 + characters].
        lengths : torch.Tensor
            Relative lengths, [B].
        texts : iterable of str
            What is written; characters that are not known are left out.

        Returns
        -------
        torch.Tensor
            Nats a character, mean of the lines; 0 for lines that have more
            characters than frames.
        """
        indices = [
            [1 + self.characters.index(c) for c in self.known(text)]
            for text in texts
        ]
        frames = torch.round(lengths * log_probs.shape[1]).long()
        return nn.functional.ctc_loss(
            log_probs.transpose(0, 1),
            torch.tensor(sum(indices, []), dtype=torch.long).to(frames.device),
            frames,
            torch.tensor([len(i) for i in indices]).to(frames.device),
            zero_infinity=True,
        )

    def read(self, log_probs: torch.Tensor, lengths: torch.Tensor) -> list[str]:
        """The best path as text: repetitions become one, blanks go.

        Arguments
        ---------
        log_probs : torch.Tensor
            What ``forward`` gave, [B, T, 1 + characters].
        lengths : torch.Tensor
            Relative lengths, [B].

        Returns
        -------
        list of str
            A text for each line.
        """
        frames = torch.round(lengths * log_probs.shape[1]).long().tolist()
        paths = log_probs.argmax(-1).cpu()
        return [
            "".join(
                self.characters[i - 1]
                for i in path[:number].unique_consecutive().tolist()
                if i
            )
            for path, number in zip(paths, frames, strict=True)
        ]
