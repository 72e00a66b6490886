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


class Steps:
    """State of a WaveNet during generation. Each layer stores its past inputs
    in a ring buffer (Le Paine et al. 2016, arXiv 1611.09482). All layers share
    one matrix product for past taps, and one for skip connections.
    """

    def __init__(self, decoder: WaveNetDecoder, batch: int):
        layers = decoder.layers
        self._decoder = decoder
        self._embedding = decoder.first.weight
        self._past = torch.stack([layer.past.weight.T for layer in layers])
        self._skip = torch.cat([layer.skip.weight for layer in layers], 1)
        self._skip_bias = sum(layer.skip.bias for layer in layers)
        channels, new = self._embedding.shape[1], self._embedding.new_zeros
        number = len(layers)
        self._past_inputs = new(number, batch, channels)
        self._inputs = new(number, batch, channels)
        self._sums = new(number, batch, 2 * channels)
        self._gated = new(batch, number * channels)
        dilations = torch.tensor([layer.dilation for layer in layers])
        # The ring buffers of all layers, one after the other.
        self._rings = new(int(dilations.sum()), batch, channels)
        self._begins = (dilations.cumsum(0) - dilations).to(self._rings.device)
        self._dilations = dilations.to(self._rings.device)
        values, gates = self._sums.chunk(2, 2)
        self._first = self._inputs[0]
        # Creating views in each step would be slow.
        self._layer_views = list(
            zip(
                self._sums,
                values,
                gates,
                self._gated.chunk(number, 1),
                self._inputs,
                [layer.now.weight.T for layer in layers],
                [layer.residual.weight.T for layer in layers[:-1]] + [None],
                [*self._inputs[1:], None],
                strict=True,
            )
        )

    def ring_positions(self, times: torch.Tensor) -> list[torch.Tensor]:
        """Compute the ring buffer positions [L] of each sample index."""
        offsets = times.unsqueeze(1).remainder(self._dilations)
        return list((self._begins + offsets).unbind())

    def biases(self, condition: torch.Tensor) -> torch.Tensor:
        """Compute the biases [L, B, 2 C] of all layers for a condition
        [B, D]."""
        layers = self._decoder.layers
        return torch.stack([layer.told(condition) for layer in layers])

    def step(
        self,
        previous: torch.Tensor,
        positions: torch.Tensor,
        biases: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the logits [B, 256] of a sample from the levels [B] of the
        previous sample, its ``ring_positions`` and its ``biases``."""
        torch.index_select(self._rings, 0, positions, out=self._past_inputs)
        torch.baddbmm(biases, self._past_inputs, self._past, out=self._sums)
        torch.index_select(self._embedding, 0, previous, out=self._first)
        for sums, values, gates, z, x, now, residual, out in self._layer_views:
            sums.addmm_(x, now)
            torch.mul(values.tanh_(), gates.sigmoid_(), out=z)
            if out is not None:
                torch.addmm(x, z, residual, out=out)
        self._rings.index_copy_(0, positions, self._inputs)
        total = linear(self._gated, self._skip, self._skip_bias).relu_()
        return self._decoder.last(self._decoder.hidden(total).relu_())


@torch.inference_mode()
def generate(
    decoder: WaveNetDecoder, conditions: torch.Tensor, draws: torch.Tensor
) -> torch.Tensor:
    """Generate levels [B, N] autoregressively from conditions [B, T, D], by
    inverse transform sampling from uniform random numbers ``draws`` [N], which
    the batch shares."""
    batch, number = len(conditions), decoder.samples_per_token
    steps = Steps(decoder, batch)
    level = torch.full((batch,), SILENCE, device=conditions.device)
    levels = []
    for index, condition in enumerate(conditions.unbind(1)):
        times = torch.arange(number, device=draws.device) + index * number
        biases = steps.biases(condition)
        for positions, draw in zip(
            steps.ring_positions(times), draws[times].unbind(), strict=True
        ):
            logits = steps.step(level, positions, biases)
            cumulative = logits.softmax(1).cumsum_(1)
            # The last sum is omitted, because rounding may leave it below 1.
            level = (cumulative[:, :-1] < draw).sum(1)
            levels.append(level)
    return torch.stack(levels, 1)
