"""WaveNet (van den Oord et al. 2016, arXiv 1609.03499) conditioned on latents
and the speaker, as in Chorowski et al. (2019, arXiv 1901.08810)."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.functional import cross_entropy, linear, pad
from torchaudio.functional import mu_law_decoding, mu_law_encoding

from speechbrain_vq.nnet.masks import frame_mask

from .jitter import TimeJitter

# Number of mu-law levels.
LEVELS = 256
SILENCE = LEVELS // 2


class SampleErrors(NamedTuple):
    """Cross-entropy of each sample [B, N] in nats, 0 if invalid, and the mask
    of valid samples [B, N]."""

    nats: torch.Tensor
    valid: torch.Tensor


class GatedLayer(nn.Module):
    """Gated causal convolution with two taps, ``dilation`` samples apart (arXiv
    1609.03499, sections 2.3 to 2.5). The last layer has no residual output.

    Example
    -------
    >>> layer = GatedLayer(8, 16, 4, dilation=2, last=False)
    >>> x, skip = layer(torch.randn(2, 30, 8), torch.randn(2, 3, 4), 10)
    >>> x.shape, skip.shape
    (torch.Size([2, 30, 8]), torch.Size([2, 30, 16]))
    """

    def __init__(
        self,
        channels: int,
        skip_channels: int,
        condition_dim: int,
        dilation: int,
        last: bool,
    ):
        super().__init__()
        self.dilation = dilation
        self.past = nn.Linear(channels, 2 * channels, bias=False)
        self.now = nn.Linear(channels, 2 * channels, bias=False)
        # The attribute name is a state_dict key of published models.
        self.told = nn.Linear(condition_dim, 2 * channels)
        self.skip = nn.Linear(channels, skip_channels)
        # DistributedDataParallel rejects parameters without a gradient.
        self.residual = None
        if not last:
            self.residual = nn.Linear(channels, channels, bias=False)

    def forward(
        self, x: torch.Tensor, conditions: torch.Tensor, repeat: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map [B, N, C] and conditions [B, N / repeat, D] to the residual
        output [B, N, C], None in the last layer, and the skip output
        [B, N, S]."""
        time = x.shape[1]
        past = self.past(x[:, : max(time - self.dilation, 0)])
        past = pad(past, (0, 0, min(self.dilation, time), 0))
        bias = self.told(conditions).repeat_interleave(repeat, 1)
        values, gates = (past + self.now(x) + bias).chunk(2, 2)
        z = torch.tanh(values) * torch.sigmoid(gates)
        residual = None if self.residual is None else x + self.residual(z)
        return residual, self.skip(z)


class WaveNetDecoder(nn.Module):
    """WaveNet decoder with 256 mu-law levels. The default size is that of
    Chorowski et al. (2019) and requires a GPU.

    In training, it predicts a random window of each utterance, with only the
    one sample before it as context. In evaluation, it predicts whole utterances
    with full context, window by window.

    Arguments
    ---------
    input_dim, speaker_dim : int
        Channels of the latents, and of the speaker embedding.
    samples_per_token : int
        Samples per latent.
    channels : int
        Gated units per layer.
    num_layers, cycle : int
        Layers in total, and per cycle of dilations 1, 2, 4, ...
    skip_channels : int
        Channels of the skip connections and the hidden output layer.
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
        """Predict samples with teacher forcing; in training, only those in a
        random window. Takes latents [B, T, input_dim], speaker embeddings
        [B, speaker_dim], waveforms [B, samples] in -1..1, and the relative
        lengths [B] of latents and waveforms."""
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
        """Return the summed cross-entropy in nats of the output of ``forward``,
        and the number of valid samples. Features and lengths are ignored."""
        return predictions.nats.sum(), predictions.valid.sum()

    def metrics(self, error: float) -> dict[str, float]:
        """Return the mean error in bits, keyed by its name in the logs."""
        return {"bits_per_sample": error / math.log(2)}

    @torch.no_grad()
    def generate(
        self,
        latents: torch.Tensor,
        speaker: torch.Tensor,
        lengths: torch.Tensor | None = None,
        seed: int = 0,
    ) -> torch.Tensor:
        """Generate waveforms [B, T * samples_per_token] sample by sample, zero
        at padding, from latents [B, T, input_dim], speaker embeddings
        [B, speaker_dim] and relative lengths [B].

        All utterances share the random numbers of the seed, so batching does
        not change a waveform, unless rounding flips a sample. The global random
        state is unused."""
        if latents.shape[1] == 0:
            return latents.new_zeros(len(latents), 0, dtype=torch.float32)
        mask = frame_mask(latents, lengths)
        samples = mask.shape[1] * self.samples_per_token
        draws = torch.rand(
            samples, generator=torch.Generator().manual_seed(seed)
        ).to(latents.device)
        with torch.autocast(latents.device.type, enabled=False):
            conditions = self.conditions(latents.float(), speaker, lengths)
            levels = generate(self, conditions, draws)
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
        """Compute the logits [B, N, 256] of samples in parallel from the levels
        [B, N] of their previous samples and the conditions
        [B, N / samples_per_token, D]."""
        x, total = self.first(previous), 0.0
        for layer in self.layers:
            x, skip = layer(x, conditions, self.samples_per_token)
            total = total + skip
        return self.last(torch.relu(self.hidden(torch.relu(total))))

    def _samples(self, wavs, wav_lengths, mask):
        """Return levels, previous levels and the mask of valid samples,
        [B, T, samples_per_token] each."""
        valid = frame_mask(wavs.unsqueeze(2), wav_lengths)
        # NaN is detected in the features, not here.
        wavs = wavs.float().nan_to_num().clamp(-1, 1)
        levels = mu_law_encoding(wavs, LEVELS)
        shape = (*mask.shape, self.samples_per_token)
        extra = mask.shape[1] * self.samples_per_token - wavs.shape[1]
        levels = pad(levels, (0, extra), value=SILENCE)
        previous = pad(levels, (1, -1), value=SILENCE)
        # Samples after the last whole frame have no latent.
        valid = pad(valid, (0, extra)).view(shape) & mask.unsqueeze(2)
        return levels.view(shape), previous.view(shape), valid

    def _random_window(self, valid_latents, max_latents):
        """Draw the indices [B, W] of a window within the valid latents."""
        window = min(self.window, max_latents)
        num_starts = (valid_latents - window).clamp(min=0) + 1
        draw = torch.rand(len(valid_latents), device=valid_latents.device)
        starts = (draw * num_starts).long().unsqueeze(1)
        return starts + torch.arange(window, device=valid_latents.device)

    def _errors(self, conditions, levels, previous, valid):
        """Compute the cross-entropy of samples [B, N]."""
        logits = self.logits(previous.flatten(1), conditions).float()
        levels, valid = levels.flatten(1), valid.flatten(1)
        nats = cross_entropy(
            logits.flatten(0, 1), levels.flatten(), reduction="none"
        )
        return SampleErrors(nats.view_as(levels) * valid, valid)


@torch.inference_mode()
def generate(
    decoder: WaveNetDecoder, conditions: torch.Tensor, draws: torch.Tensor
) -> torch.Tensor:
    """Generate levels [B, N] autoregressively from conditions [B, T, D], by
    inverse transform sampling from uniform random numbers ``draws`` [N], which
    the batch shares.

    Each layer stores its past inputs in a ring buffer (Le Paine et al. 2016,
    arXiv 1611.09482). All layers share one matrix product for past taps, and
    one for skip connections."""
    layers, embedding = decoder.layers, decoder.first.weight
    past_weights = torch.stack([layer.past.weight.T for layer in layers])
    skip_weights = torch.cat([layer.skip.weight for layer in layers], 1)
    skip_bias = sum(layer.skip.bias for layer in layers)
    silence = embedding.new_zeros(len(conditions), embedding.shape[1])
    rings = [[silence] * layer.dilation for layer in layers]
    now_weights = [layer.now.weight.T for layer in layers]
    # The last layer has no residual output.
    residual_weights = [layer.residual.weight.T for layer in layers[:-1]]
    residual_weights.append(None)
    level = torch.full((len(conditions),), SILENCE, device=conditions.device)
    levels = []
    for time, draw in enumerate(draws.unbind()):
        token, sample = divmod(time, decoder.samples_per_token)
        if sample == 0:
            condition = conditions[:, token]
            biases = torch.stack([layer.told(condition) for layer in layers])
        past = torch.stack([ring[time % len(ring)] for ring in rings])
        sums = torch.baddbmm(biases, past, past_weights).unbind()
        x, gated = embedding[level], []
        for ring, bias, now, residual in zip(
            rings, sums, now_weights, residual_weights, strict=True
        ):
            ring[time % len(ring)] = x
            values, gates = torch.addmm(bias, x, now).chunk(2, 1)
            gated.append(values.tanh() * gates.sigmoid())
            if residual is not None:
                x = torch.addmm(x, gated[-1], residual)
        total = linear(torch.cat(gated, 1), skip_weights, skip_bias).relu()
        logits = decoder.last(decoder.hidden(total).relu())
        cumulative = logits.softmax(1).cumsum(1)
        # The last sum is omitted, because rounding may leave it below 1.
        level = (cumulative[:, :-1] < draw).sum(1)
        levels.append(level)
    return torch.stack(levels, 1)
