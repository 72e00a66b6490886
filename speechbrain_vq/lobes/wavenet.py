"""Autoregressive waveform decoder: a WaveNet (van den Oord et al. 2016, arXiv
1609.03499) conditioned on latents and the speaker, as in Chorowski et al.
2019, arXiv 1901.08810.
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

# Mu-law levels of a sample.
LEVELS = 256
SILENCE = LEVELS // 2


class SampleErrors(NamedTuple):
    """Cross-entropy of samples.

    Attributes
    ----------
    nats : torch.Tensor
        Cross-entropy of each sample in nats, [B, N], 0 where not valid.
    valid : torch.Tensor
        Mask of the valid samples, booleans [B, N].
    """

    nats: torch.Tensor
    valid: torch.Tensor


class WaveNetDecoder(nn.Module):
    """WaveNet decoder of 256 mu-law levels.

    Training predicts a random window of each utterance, since memory grows
    with its length; the window's context is the one sample before it.
    Evaluation predicts whole utterances, window by window, with full context.
    The default size is that of Chorowski et al. (2019) and requires a GPU.

    Arguments
    ---------
    input_dim : int
        Channels of the latents.
    speaker_dim : int
        Dimension of the speaker embedding.
    samples_per_token : int
        Samples per latent.
    channels : int
        Gated units per layer.
    num_layers : int
        Number of layers.
    cycle : int
        Layers per cycle of the dilations 1, 2, 4, ...
    skip_channels : int
        Channels of the skip connections and of the hidden output layer.
    condition_channels : int
        Channels of the latents after mixing with their neighbors.
    window : int
        Latents per window.
    jitter : float
        Probability of ``TimeJitter`` on the latents.

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
        self.first = nn.Embedding(LEVELS, channels)
        self.layers = nn.ModuleList(
            GatedLayer(
                channels,
                skip_channels,
                condition_channels + speaker_dim,
                dilation=2 ** (index % cycle),
                last=index == num_layers - 1,
            )
            for index in range(num_layers)
        )
        self.hidden = nn.Linear(skip_channels, skip_channels)
        self.last = nn.Linear(skip_channels, LEVELS)

    @property
    def receptive_field(self) -> int:
        """Number of previous samples that a prediction depends on."""
        return 1 + sum(layer.dilation for layer in self.layers)

    def forward(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None,
        wavs: torch.Tensor,
        wav_lengths: torch.Tensor,
    ) -> SampleErrors:
        """Predict samples with teacher forcing: those of a random window in
        training, all of them in evaluation. Takes latents [B, T, input_dim],
        speaker embeddings [B, speaker_dim], waveforms in -1..1 [B, samples],
        and the relative lengths [B] of latents and waveforms."""
        mask = frame_mask(latents, lengths)
        levels, previous, valid = self._samples(wavs, wav_lengths, mask)
        conditions = self.conditions(
            self.jitter(latents, lengths), speaker, lengths
        )
        tensors = [conditions, levels, previous, valid]
        if self.training:
            window = self._random_window(mask.sum(1), mask.shape[1])
            rows = torch.arange(len(mask), device=mask.device).unsqueeze(1)
            return self._errors(*(tensor[rows, window] for tensor in tensors))
        past = math.ceil((self.receptive_field - 1) / self.samples_per_token)
        windows = []
        for start in range(0, mask.shape[1], self.window):
            begin, end = max(start - past, 0), start + self.window
            errors = self._errors(*(t[:, begin:end] for t in tensors))
            context = (start - begin) * self.samples_per_token
            windows.append([tensor[:, context:] for tensor in errors])
        return SampleErrors(
            *(torch.cat(w, 1) for w in zip(*windows, strict=True))
        )

    def errors(
        self,
        predictions: SampleErrors,
        features: torch.Tensor,
        lengths: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute the summed cross-entropy in nats of the output of
        ``forward`` and the number of valid samples. The features and lengths
        are ignored."""
        return predictions.nats.sum(), predictions.valid.sum()

    def metrics(self, error: float) -> dict[str, float]:
        """Return the mean error under the name it is logged by."""
        return {"bits_per_sample": error / math.log(2)}

    @torch.no_grad()
    def generate(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None = None,
        seed: int = 0,
    ) -> torch.Tensor:
        """Generate waveforms sample by sample.

        All utterances of a batch share their random numbers, so that batching
        does not change a waveform, except where rounding flips a sample. The
        global random state is not used.

        Arguments
        ---------
        latents : torch.Tensor
            Latents, [B, T, input_dim].
        speaker : torch.Tensor
            Speaker embeddings, [B, speaker_dim].
        lengths : torch.Tensor, optional
            Relative lengths, [B].
        seed : int
            Seed of the random numbers.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, T * samples_per_token], zero beyond their lengths.
        """
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0, dtype=torch.float32)
        mask = frame_mask(latents, lengths)
        samples = mask.shape[1] * self.samples_per_token
        draws = torch.rand(
            samples, generator=torch.Generator().manual_seed(seed)
        ).to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            conditions = self.conditions(latents.float(), speaker, lengths)
            levels = generate(self, conditions, draws, SILENCE)
        wavs = mu_law_decoding(levels, LEVELS)
        return wavs * mask.repeat_interleave(self.samples_per_token, 1)

    def conditions(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the conditions [B, T, condition_channels + speaker_dim] of
        all layers: latents mixed with their neighbors, and the speaker."""
        mask = frame_mask(latents, lengths).unsqueeze(2)
        mixed = self.mix((latents * mask).transpose(1, 2)).transpose(1, 2)
        speakers = speaker.unsqueeze(1).expand(-1, mixed.shape[1], -1)
        return torch.cat([mixed, speakers], 2)

    def logits(
        self, previous: torch.Tensor, conditions: torch.Tensor
    ) -> torch.Tensor:
        """Compute the logits [B, N, 256] of samples in parallel from the
        level of the previous sample of each [B, N] and the conditions
        [B, N / samples_per_token, D]."""
        x, total = self.first(previous), 0.0
        for layer in self.layers:
            x, skip = layer(x, conditions, self.samples_per_token)
            total = total + skip
        return self.last(torch.relu(self.hidden(torch.relu(total))))

    def _samples(self, wavs, wav_lengths, mask):
        """Compute levels, previous levels, mask: [B, T, samples_per_token]."""
        valid = frame_mask(wavs.unsqueeze(2), wav_lengths)
        # The features report NaNs.
        wavs = wavs.float().nan_to_num().clamp(-1, 1)
        levels = mu_law_encoding(wavs, LEVELS)
        shape = (*mask.shape, self.samples_per_token)
        extra = mask.shape[1] * self.samples_per_token - wavs.shape[1]
        levels = pad(levels, (0, extra), value=SILENCE)
        previous = pad(levels, (1, -1), value=SILENCE)
        # A remainder shorter than a frame has no latent.
        valid = pad(valid, (0, extra)).view(shape) & mask.unsqueeze(2)
        return levels.view(shape), previous.view(shape), valid

    def _random_window(self, valid_latents, max_latents):
        """Draw the indices [B, W] of a window of the valid latents [B]."""
        window = min(self.window, max_latents)
        num_starts = (valid_latents - window).clamp(min=0) + 1
        draw = torch.rand(len(valid_latents), device=valid_latents.device)
        starts = (draw * num_starts).long().unsqueeze(1)
        return starts + torch.arange(window, device=valid_latents.device)

    def _errors(self, conditions, levels, previous, valid):
        """Compute the cross-entropy of samples, [B, N]."""
        logits = self.logits(previous.flatten(1), conditions).float()
        levels, valid = levels.flatten(1), valid.flatten(1)
        nats = cross_entropy(
            logits.flatten(0, 1), levels.flatten(), reduction="none"
        )
        return SampleErrors(nats.view_as(levels) * valid, valid)
