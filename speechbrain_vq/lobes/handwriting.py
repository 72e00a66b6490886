"""Encoder of handwriting lines and a CTC probe of characters, after the
ScribbleLens model of arXiv 2005.08520. Time runs along the image columns;
padding changes no output.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.nnet.normalization import MaskedBatchNorm

from .recogniser import NormedConv2d

# Kernel sizes and strides as (columns, rows). The convolutions halve the
# columns and reduce 32 rows to one.
STRIDE = 2
KERNELS = ((3, 3), (5, 5), (3, 3), (3, 3), (3, 3), (3, 3), (3, 2))
STRIDES = ((1, 2), (2, 2), (1, 1), (1, 2), (1, 1), (1, 2), (1, 1))
CHANNELS = (64, 128, 256, 256, 512, 512, 512)


class LineConv(NormedConv2d):
    """2-D convolution with masked batch norm and a leaky ReLU; kernel sizes
    and strides are (columns, rows)."""

    def activation(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the activation function."""
        return nn.functional.leaky_relu(x, 0.1)


class ProjectedBLSTM(nn.Module):
    """Bidirectional LSTM with a linear projection of both directions."""

    def __init__(self, input_dim: int, hidden_size: int, output_dim: int):
        super().__init__()
        self.lstm = nn.LSTM(
            input_dim, hidden_size, batch_first=True, bidirectional=True
        )
        self.project = nn.Linear(2 * hidden_size, output_dim, bias=False)

    def forward(self, x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Map [B, T, input_dim] with relative lengths [B] to
        [B, T, output_dim], zero at padding."""
        time = x.shape[1]
        # With packing, the backward direction starts at the last valid column.
        frames = torch.round(lengths * time).long().clamp(min=1).cpu()
        packed = pack_padded_sequence(
            x, frames, batch_first=True, enforce_sorted=False
        )
        hidden, _ = pad_packed_sequence(
            self.lstm(packed)[0], batch_first=True, total_length=time
        )
        return self.project(hidden)


class LineEncoder(nn.Module):
    """Encoder of line images with one latent per two columns: convolutions,
    then two bidirectional LSTMs, the second with a residual connection.

    Arguments
    ---------
    output_dim : int
        Channels of the latents.
    channels : sequence of int
        Channels of the seven convolutions.
    hidden_size : int
        Channels of each LSTM direction.

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
        self.convolutions = nn.ModuleList(
            LineConv(*shape)
            for shape in zip(
                [1, *channels[:-1]], channels, STRIDES, KERNELS, strict=True
            )
        )
        self.first = ProjectedBLSTM(channels[-1], hidden_size, output_dim)
        self.norm = MaskedBatchNorm(output_dim)
        self.second = ProjectedBLSTM(output_dim, hidden_size, output_dim)

    def forward(
        self, ink: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode columns of pixels [B, T, 32], from 0 (paper) to 1 (ink), with
        relative lengths [B], zero at padding. Returns latents
        [B, ceil(T / 2), output_dim] and their relative lengths [B]."""
        x = ink.unsqueeze(-1)
        for convolution in self.convolutions:
            x, lengths = convolution(x, lengths)
        x = self.first(x.squeeze(2), lengths)
        mask = frame_mask(x, lengths)
        normed = self.norm(x, mask) * mask.unsqueeze(-1)
        return torch.relu(x + self.second(normed, lengths)), lengths


class CTCProbe(nn.Module):
    """Linear probe of characters from three adjacent latents, trained by CTC
    with blank 0.

    Arguments
    ---------
    input_dim : int
        Channels of the latents.
    characters : str
        Alphabet, in the order of the classes 1, 2, ...

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
        """Map latents [B, T, input_dim], zero at padding, to log-probabilities
        [B, T, 1 + characters]."""
        logits = self.conv(latents.transpose(1, 2)).transpose(1, 2)
        return nn.functional.log_softmax(logits.float(), dim=-1)

    def in_alphabet(self, text: str) -> str:
        """Remove the characters that are not in the alphabet."""
        return "".join(c for c in text if c in self.characters)

    def loss(
        self,
        log_probs: torch.Tensor,
        lengths: torch.Tensor,
        texts: Iterable[str],
    ) -> torch.Tensor:
        """Compute the CTC loss of log-probabilities with relative lengths [B],
        in nats per character, averaged over lines. Characters outside the
        alphabet are ignored; the loss of a line with more characters than
        frames is 0."""
        indices = [
            [1 + self.characters.index(c) for c in self.in_alphabet(text)]
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
        """Decode log-probabilities with relative lengths [B] greedily."""
        from speechbrain.decoders import ctc_greedy_decode

        paths = ctc_greedy_decode(log_probs, lengths, blank_id=0)
        return ["".join(self.characters[i - 1] for i in path) for path in paths]
