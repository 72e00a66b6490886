"""Source-filter vocoder: a small network predicts, from log-mels, filters for a
pulse train and for noise."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torchaudio.functional import melscale_fbanks

functional = nn.functional

# Pitch classes: lowest F0 (Hz), step (cents), and number; 3.5 octaves.
LOWEST, STEP, CLASSES = 50.0, 25.0, 168
# Log-mels are clipped to this minimum, relative to the level of the utterance.
_QUIET = -10.0
# Maximum amplification or attenuation of a band to match the log-mels, in nats.
_CORRECTION = 2.0
# Number of frames to filter at once, which bounds the memory.
_BLOCK = 4096


class Controls(NamedTuple):
    """Synthesis controls of each frame, with K bands as in the log-mels."""

    pitch: torch.Tensor  # Logits of the pitch classes, [B, T, CLASSES]
    voicing: torch.Tensor  # Logits of being voiced, [B, T]
    harmonic: torch.Tensor  # Log-magnitudes of the pulse filter, [B, T, K]
    noise: torch.Tensor  # Log-magnitudes of the noise filter, [B, T, K]
    mels: torch.Tensor  # Target log-mels of the output, [B, T, K]


class SourceFilterVocoder(nn.Module):
    """Vocoder from log-mels to waveforms with a source-filter model of speech.

    A convolutional network predicts pitch, voicing, and the spectral envelopes
    of a harmonic and a noise part. Minimum-phase filters with these envelopes
    are applied to a band-limited pulse train of that pitch and to white noise.
    Their sum is scaled to match the log-mels in each band and frame. On a CPU,
    this is several times as fast as Griffin-Lim. The level of the log-mels only
    changes the level of the waveform.

    After "Neural source-filter-based waveform model for statistical parametric
    speech synthesis" (arXiv 1810.11946) and "DDSP: Differentiable Digital
    Signal Processing" (arXiv 2001.04643). The scaling to mel magnitudes is our
    addition.

    Arguments
    ---------
    sample_rate, n_mels, n_fft, win_length, hop_length : int
        Settings of the log-mels, see ``LogMel``.
    channels, num_layers : int
        Channels and layers of the network.
    kernel_size : int
        Width of the convolutions, in frames.

    Example
    -------
    >>> vocoder = SourceFilterVocoder(channels=8, num_layers=1)
    >>> vocoder(torch.randn(2, 50, 80)).shape
    torch.Size([2, 8000])
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 80,
        n_fft: int = 1024,
        win_length: int = 640,
        hop_length: int = 160,
        channels: int = 256,
        num_layers: int = 6,
        kernel_size: int = 7,
    ):
        super().__init__()
        self.sample_rate, self.hop_length = sample_rate, hop_length
        self.n_fft, self.win_length = n_fft, win_length
        self.first = nn.Conv1d(
            n_mels, channels, kernel_size, padding=kernel_size // 2
        )
        self.layers = nn.ModuleList(
            _Layer(channels, kernel_size, dilation=2 ** (index % 3))
            for index in range(num_layers)
        )
        self.norm = nn.LayerNorm(channels)
        self.pitch = nn.Linear(channels, CLASSES)
        self.voicing = nn.Linear(channels, 1)
        # Offsets from the log-mels to the controls harmonic, noise and mels,
        # initially 0.
        self.bands = nn.Linear(channels, 3 * n_mels)
        nn.init.zeros_(self.bands.weight)
        nn.init.zeros_(self.bands.bias)
        shape = n_fft // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate
        scale = {"mel_scale": "slaney"}
        # The window is padded as in torch.stft.
        before = (n_fft - win_length) // 2
        padding = before, n_fft - win_length - before
        # Models are built on the meta device, where these had no values.
        weight = self.norm.weight
        with torch.device("cpu" if weight.is_meta else weight.device):
            buffers = {
                "fade": torch.hann_window(2 * hop_length),
                "window": functional.pad(
                    torch.hann_window(win_length), padding
                ),
                "to_mels": melscale_fbanks(*shape, norm="slaney", **scale),
                "to_bins": _between(melscale_fbanks(*shape, **scale)),
            }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def settings(self) -> dict[str, float]:
        """Settings of the log-mels, named as in ``LogMel.settings``."""
        return {
            "sample_rate": self.sample_rate,
            "n_mel_channels": self.to_mels.shape[1],
            "n_fft": self.n_fft,
            "win_length": self.win_length,
            "hop_length": self.hop_length,
            "mel_fmin": 0.0,
            "mel_fmax": self.sample_rate / 2,
        }

    def forward(self, mels: torch.Tensor) -> torch.Tensor:
        """Synthesize waveforms [B, T * hop_length] from natural logarithms of
        mel magnitudes [B, T, n_mels]; deterministic."""
        controls = self.controls(mels)
        generator = torch.Generator().manual_seed(0)
        return self.synthesize(controls, f0(controls.pitch), generator)

    def controls(self, mels: torch.Tensor) -> Controls:
        """Compute the synthesis controls from log-mels [B, T, K]."""
        level = mels.mul(2).exp().mean((1, 2), keepdim=True).log() / 2
        frames = (mels - level).clamp(min=_QUIET) / 2
        frames = self.first(frames.transpose(1, 2)).transpose(1, 2)
        for layer in self.layers:
            frames = layer(frames)
        frames = self.norm(frames)
        bands = self.bands(frames).chunk(3, -1)
        return Controls(
            self.pitch(frames),
            self.voicing(frames).squeeze(-1),
            *(mels + offsets for offsets in bands),
        )

    def synthesize(
        self,
        controls: Controls,
        pitch: torch.Tensor,
        generator: torch.Generator | None = None,
        match: bool = True,
    ) -> torch.Tensor:
        """Synthesize waveforms [B, T * hop_length].

        ``pitch`` [B, T] is the F0 in Hz; in training, the true one. Noise is
        drawn from a generator on the CPU. With ``match``, the output is scaled
        to the log-mels of the controls, which fit only the original pitch.
        """
        pulses = pulse_train(pitch, self.hop_length, self.sample_rate)
        noise = torch.randn(
            pulses.shape, generator=generator, dtype=pulses.dtype
        ).to(pulses.device)
        voiced = functional.logsigmoid(controls.voicing).unsqueeze(-1)
        wavs = self._filter(pulses, controls.harmonic + voiced)
        wavs = wavs + self._filter(noise, controls.noise)
        return self._match(wavs, controls.mels) if match else wavs

    def _filter(self, source, bands):
        """Filter a signal [B, samples] with band log-magnitudes [B, T, K]."""

        def filtered(frames, bands):
            """Filter frames in the frequency domain."""
            spectra = torch.fft.rfft(frames * self.fade, self.n_fft)
            spectra = spectra * minimum_phase(bands @ self.to_bins)
            return torch.fft.irfft(spectra, self.n_fft)

        return self._by_frames(filtered, source, bands, 2 * self.hop_length)

    def _match(self, wavs, mels):
        """Scale the bands of waveforms to match log-mels [B, T, K]."""

        def scaled(frames, mels):
            """Scale the bands of frames."""
            spectra = torch.fft.rfft(frames * self.window)
            # Digital silence has no logarithm.
            magnitudes = spectra.abs().clamp(min=1e-7) @ self.to_mels
            gain = mels - magnitudes.clamp(min=1e-6).log()
            gain = gain.clamp(-_CORRECTION, _CORRECTION)
            spectra = spectra * (gain @ self.to_bins).exp()
            return torch.fft.irfft(spectra) * self.window

        def squares(frames, _):
            """Return the squared window for each frame."""
            return self.window.square().expand_as(frames)

        scaled = self._by_frames(scaled, wavs, mels, self.n_fft)
        weights = self._by_frames(squares, wavs[:1], mels[:1], self.n_fft)
        return scaled / weights.clamp(min=1e-3)

    def _by_frames(self, change, signal, controls, size):
        """Process a signal [B, T * hop_length] by overlap-add, in blocks.

        ``change`` maps frames [B, T, size], centered on their hops, and
        controls [B, T, K] to frames [B, T, size or more].
        """
        hop, (batch, number, _) = self.hop_length, controls.shape
        before = (size - hop) // 2
        padded = functional.pad(signal, (before, size - hop - before))
        frames = padded.unfold(1, size, hop)
        output = signal.new_zeros(batch, number * hop + self.n_fft)
        for start in range(0, number, _BLOCK):
            block = slice(start, start + _BLOCK)
            changed = change(frames[:, block], controls[:, block])
            width = (changed.shape[1] - 1) * hop + changed.shape[2]
            added = functional.fold(
                changed.transpose(1, 2),
                (1, width),
                (1, changed.shape[2]),
                stride=(1, hop),
            )[:, 0, 0]
            output[:, start * hop : start * hop + width] += added
        return output[:, before : before + number * hop]


class _Layer(nn.Module):
    """Residual layer with a depthwise convolution and channel mixing."""

    def __init__(self, channels, kernel_size, dilation):
        super().__init__()
        self.conv = nn.Conv1d(
            channels,
            channels,
            kernel_size,
            padding=kernel_size // 2 * dilation,
            dilation=dilation,
            groups=channels,
        )
        self.mix = nn.Sequential(
            nn.LayerNorm(channels),
            nn.Linear(channels, 2 * channels),
            nn.GELU(),
            nn.Linear(2 * channels, channels),
        )
        self.scale = nn.Parameter(torch.full((channels,), 0.2))

    def forward(self, frames):
        """Apply the layer to [B, T, C]."""
        mixed = self.conv(frames.transpose(1, 2)).transpose(1, 2)
        return frames + self.scale * self.mix(mixed)


def f0(logits: torch.Tensor) -> torch.Tensor:
    """Compute F0 [...] in Hz from pitch class logits [..., CLASSES], as the
    weighted mean of the most probable class and its neighbors."""
    best = logits.argmax(-1, keepdim=True)
    classes = torch.arange(CLASSES, device=logits.device)
    far = (classes - best).abs() > 3
    weights = logits.masked_fill(far, -math.inf).softmax(-1)
    return LOWEST * 2 ** ((weights * classes).sum(-1) * STEP / 1200)


def pitch_targets(f0: torch.Tensor) -> torch.Tensor:
    """Compute target distributions over pitch classes [..., CLASSES] from F0
    [...] in Hz: Gaussians with a standard deviation of one class."""
    mean = 1200 / STEP * torch.log2(f0.clamp(min=LOWEST) / LOWEST)
    classes = torch.arange(CLASSES, device=f0.device)
    return (-(classes - mean.unsqueeze(-1)).square() / 2).softmax(-1)


def pulse_train(
    f0: torch.Tensor, hop_length: int, sample_rate: int
) -> torch.Tensor:
    """Generate band-limited pulses [B, T * hop_length] of unit power from the
    F0 [B, T] in Hz at the center of each frame. They are sums of cosines of
    equal amplitude, up to half the sampling rate.

    Example
    -------
    >>> pulses = pulse_train(torch.full((1, 100), 125.0), 160, 16000)
    >>> bool(pulses[0, 128 + 64] < pulses[0, 127 + 128])
    True
    """
    f0 = functional.interpolate(
        f0.unsqueeze(1), scale_factor=hop_length, mode="linear"
    ).squeeze(1)
    f0 = f0.double()
    half = torch.pi * (torch.cumsum(f0 / sample_rate, 1) % 1)
    number = (sample_rate / 2 / f0).floor()
    # The Dirichlet kernel is the sum of cosines in closed form.
    peak = half.sin().abs() < 1e-4
    kernel = ((2 * number + 1) * half).sin() / half.sin().masked_fill(peak, 1.0)
    kernel = torch.where(peak, 2 * number + 1, kernel)
    return ((kernel - 1) / 2 * (2 / number).sqrt()).float()


def minimum_phase(log_magnitudes: torch.Tensor) -> torch.Tensor:
    """Compute the spectra [..., F] of minimum-phase filters from natural
    log-magnitudes [..., F], by folding the cepstrum."""
    size = 2 * (log_magnitudes.shape[-1] - 1)
    cepstrum = torch.fft.irfft(log_magnitudes, size)
    fold = cepstrum.new_zeros(size)
    fold[0] = fold[size // 2] = 1.0
    fold[1 : size // 2] = 2.0
    return torch.fft.rfft(cepstrum * fold).exp()


def _between(filters):
    """Return the matrix [K, F] that interpolates linearly between the centers
    of bands, given triangular filters [F, K] of peak 1."""
    centers = filters.argmax(0)
    bins = torch.arange(len(filters))
    upper = torch.searchsorted(centers, bins).clamp(1, len(centers) - 1)
    left, right = centers[upper - 1], centers[upper]
    share = ((bins - left) / (right - left).clamp(min=1)).clamp(0, 1)
    matrix = torch.zeros(len(centers), len(bins))
    matrix[upper - 1, bins] = 1 - share
    matrix[upper, bins] += share
    return matrix
