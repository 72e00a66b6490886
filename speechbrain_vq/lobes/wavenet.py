"""An autoregressive decoder of waveforms: a WaveNet (van den Oord et al. 2016,
arXiv 1609.03499) that is told the quantized vectors and the speaker, as in
Chorowski et al. 2019, arXiv 1901.08810.
"""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from speechbrain_vq.nnet.masks import frame_mask

from .jitter import TimeJitter
from .wavenet_layers import GatedLayer
from .wavenet_steps import generate

# Of a sample, by the mu-law.
LEVELS = 256
SILENCE = LEVELS // 2


class SampleErrors(NamedTuple):
    """How well samples were foreseen.

    Attributes
    ----------
    nats : torch.Tensor
        Cross entropy of each sample, [B, N], 0 where it does not count.
    valid : torch.Tensor
        Which count, booleans [B, N].
    """

    nats: torch.Tensor
    valid: torch.Tensor


class WaveNetDecoder(nn.Module):
    """Latents and a speaker to a distribution of each sample, given those
    before it.

    Samples are mu-law coded in 256 levels. In training, a window of each
    utterance is foreseen, at a random place: memory grows with it. A window
    does not hear what is before it, but for one sample. In evaluation, all
    of an utterance is foreseen, a window after the other, each with all of its
    past.

    The size is that of the literature (Chorowski et al. 2019),
    which has a GPU for it.

    Arguments
    ---------
    input_dim : int
        Channels of the latents.
    speaker_dim : int
        Size of the speaker embedding.
    samples_per_token : int
        Samples for a latent.
    channels : int
        Gated units of each layer.
    num_layers : int
        Layers.
    cycle : int
        Layers after which the dilations 1, 2, 4, ... begin again.
    skip_channels : int
        Channels of the sum over layers, and of the layer before the last.
    condition_channels : int
        Channels that the latents are mixed to over time.
    window : int
        Latents in a window.
    jitter : float
        Probability for ``TimeJitter``.

    Example
    -------
    >>> decoder = WaveNetDecoder(64, 32, 320, channels=8, num_layers=4)
    >>> latents, speaker = torch.randn(2, 50, 64), torch.randn(2, 32)
    >>> full = torch.ones(2)
    >>> errors = decoder(latents, speaker, full, torch.rand(2, 16000), full)
    >>> errors.nats.shape
    torch.Size([2, 5120])
    >>> decoder.generate(latents[:, :1], speaker).shape
    torch.Size([2, 320])
    """

    def __init__(
        self,
        input_dim: int,
        speaker_dim: int,
        samples_per_token: int,
        channels: int = 368,
        num_layers: int = 20,
        cycle: int = 10,
        skip_channels: int = 256,
        condition_channels: int = 128,
        window: int = 16,
        jitter: float = 0.0,
    ):
        super().__init__()
        self.samples_per_token = samples_per_token
        self.window = window
        self.jitter = TimeJitter(jitter)
        self.mix = nn.Conv1d(input_dim, condition_channels, 3, padding=1)
        told = condition_channels + speaker_dim
        self.first = nn.Embedding(LEVELS, channels)
        self.layers = nn.ModuleList(
            GatedLayer(
                channels,
                skip_channels,
                told,
                dilation=2 ** (index % cycle),
                last=index == num_layers - 1,
            )
            for index in range(num_layers)
        )
        self.hidden = nn.Linear(skip_channels, skip_channels)
        self.last = nn.Linear(skip_channels, LEVELS)

    @property
    def receptive_field(self) -> int:
        """Samples before a sample that what is foreseen depends on."""
        return 1 + sum(layer.dilation for layer in self.layers)

    def forward(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None,
        wavs: torch.Tensor,
        wav_lengths: torch.Tensor,
    ) -> SampleErrors:
        """Foresees samples from the true ones before them.

        Arguments
        ---------
        latents : torch.Tensor
            Latents, [B, T, input_dim].
        speaker : torch.Tensor
            Speaker embeddings, [B, speaker_dim].
        lengths : torch.Tensor, optional
            Relative lengths of the latents, [B].
        wavs : torch.Tensor
            Waveforms in -1..1, [B, samples].
        wav_lengths : torch.Tensor
            Their relative lengths, [B].

        Returns
        -------
        SampleErrors
            Those of a window in training, of all samples in evaluation.
        """
        mask = frame_mask(latents, lengths)
        levels, before, valid = self._samples(wavs, wav_lengths, mask)
        conditions = self.conditions(
            self.jitter(latents, lengths), speaker, lengths
        )
        whole = [conditions, levels, before, valid]
        if self.training:
            taken = self._random_window(mask.sum(1), mask.shape[1])
            rows = torch.arange(len(mask), device=mask.device).unsqueeze(1)
            return self._errors(*(part[rows, taken] for part in whole))
        past = math.ceil((self.receptive_field - 1) / self.samples_per_token)
        pieces = []
        for start in range(0, mask.shape[1], self.window):
            begin, end = max(start - past, 0), start + self.window
            found = self._errors(*(part[:, begin:end] for part in whole))
            skip = (start - begin) * self.samples_per_token
            pieces.append([part[:, skip:] for part in found])
        return SampleErrors(
            *(torch.cat(p, 1) for p in zip(*pieces, strict=True))
        )

    def errors(
        self,
        predictions: SampleErrors,
        features: torch.Tensor,
        lengths: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The errors of a batch; what ``ConvDecoder.errors`` is, in nats.

        Arguments
        ---------
        predictions : SampleErrors
            What ``forward`` gave.
        features, lengths
            Not looked at: it is samples that are foreseen.

        Returns
        -------
        tuple
            Their sum and their number.
        """
        return predictions.nats.sum(), predictions.valid.sum()

    def figures(self, error: float) -> dict[str, float]:
        """The mean error by the name under which it is reported."""
        return {"bits_per_sample": error / math.log(2)}

    @torch.no_grad()
    def generate(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None = None,
        seed: int = 0,
    ) -> torch.Tensor:
        """Writes waveforms, a sample after the other.

        The dice of all items of a batch are the same, so that an utterance
        sounds the same alone and in a batch, unless rounding makes a sample
        another, and with it those after it.

        Arguments
        ---------
        latents : torch.Tensor
            Latents, [B, T, input_dim].
        speaker : torch.Tensor
            Speaker embeddings, [B, speaker_dim].
        lengths : torch.Tensor, optional
            Relative lengths, [B].
        seed : int
            Decides the dice; those of other parts are not touched.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, T * samples_per_token], zero beyond their lengths.
        """
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0, dtype=torch.float32)
        mask = frame_mask(latents, lengths)
        number = mask.shape[1] * self.samples_per_token
        dice = torch.rand(
            number, generator=torch.Generator().manual_seed(seed)
        ).to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            conditions = self.conditions(latents.float(), speaker, lengths)
            levels = generate(self, conditions, dice, SILENCE)
        wavs = mu_law_decoding(levels, LEVELS)
        return wavs * mask.repeat_interleave(self.samples_per_token, 1)

    def conditions(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """What every layer is told: latents mixed with their neighbours, and
        the speaker, [B, T, condition_channels + speaker_dim]."""
        mask = frame_mask(latents, lengths).unsqueeze(2)
        mixed = self.mix((latents * mask).transpose(1, 2)).transpose(1, 2)
        told = speaker.unsqueeze(1).expand(-1, mixed.shape[1], -1)
        return torch.cat([mixed, told], 2)

    def logits(
        self, before: torch.Tensor, conditions: torch.Tensor
    ) -> torch.Tensor:
        """Foresees all samples at once.

        Arguments
        ---------
        before : torch.Tensor
            For each sample the level of the one before it, [B, N]; N is
            ``samples_per_token`` for each latent.
        conditions : torch.Tensor
            See ``conditions``.

        Returns
        -------
        torch.Tensor
            Logits of the levels, [B, N, 256].
        """
        x, total = self.first(before), 0.0
        for layer in self.layers:
            x, skip = layer(x, conditions, self.samples_per_token)
            total = total + skip
        return self.last(torch.relu(self.hidden(torch.relu(total))))

    def _samples(self, wavs, wav_lengths, mask):
        """Levels, those before them, and which count, by latents:
        [B, T, samples_per_token] each."""
        valid = frame_mask(wavs.unsqueeze(2), wav_lengths)
        # What is not a number has no level; the features tell of it.
        wavs = wavs.float().nan_to_num().clamp(-1, 1)
        levels = mu_law_encoding(wavs, LEVELS)
        shape = (*mask.shape, self.samples_per_token)
        extra = mask.shape[1] * self.samples_per_token - wavs.shape[1]
        levels = pad(levels, (0, extra), value=SILENCE)
        before = pad(levels, (1, -1), value=SILENCE)
        # Less than a frame may be left that no latent stands for.
        valid = pad(valid, (0, extra)).view(shape) & mask.unsqueeze(2)
        return levels.view(shape), before.view(shape), valid

    def _random_window(self, numbers, longest):
        """Which latents, [B, W], of so many valid ones [B]."""
        window = min(self.window, longest)
        room = (numbers - window).clamp(min=0) + 1
        chance = torch.rand(len(numbers), device=numbers.device)
        starts = (chance * room).long().unsqueeze(1)
        return starts + torch.arange(window, device=numbers.device)

    def _errors(self, conditions, levels, before, valid):
        logits = self.logits(before.flatten(1), conditions).float()
        levels, valid = levels.flatten(1), valid.flatten(1)
        nats = cross_entropy(
            logits.flatten(0, 1), levels.flatten(), reduction="none"
        )
        return SampleErrors(nats.view_as(levels) * valid, valid)
