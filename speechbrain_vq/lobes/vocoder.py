"""Source-filter vocoder: a pulse train and noise, filtered by what a small network
reads off log-mels."""

import math
from typing import NamedTuple

import torch
from torch import nn
from torchaudio.functional import melscale_fbanks

functional = nn.functional

# Pitch classes: from the lowest F0 (Hz), in steps (cents), 3.5 octaves.
LOWEST, STEP, CLASSES = 50.0, 25.0, 168
# Log-mels below this, relative to the level of the utterance, tell nothing.
_QUIET = -10.0
# Most by which a band is amplified or attenuated to match the log-mels, nats.
_CORRECTION = 2.0
# Frames that are filtered at a time, which bounds the memory.
_BLOCK = 4096


class Controls(NamedTuple):
    """Controls of the synthesis, a frame each; K bands as the log-mels."""

    pitch: torch.Tensor  # Logits of the pitch classes, [B, T, CLASSES]
    voicing: torch.Tensor  # Logits of being voiced, [B, T]
    harmonic: torch.Tensor  # Log-magnitudes of the pulses' filter, [B, T, K]
    noise: torch.Tensor  # Log-magnitudes of the noise's filter, [B, T, K]
    mels: torch.Tensor  # Log-mels that the output is to have, [B, T, K]


class SourceFilterVocoder(nn.Module):
    """Vocoder from log-mels to waveforms by a source-filter model of speech.

    A convolutional network outputs pitch, voicing, and the spectral envelopes of
    a harmonic and of a noise part. A band-limited pulse train of that pitch
    and white noise go through minimum-phase filters of these envelopes, and
    their sum is scaled, band by band and frame by frame, to the log-mels. On a
    CPU it is several times as fast as Griffin-Lim. The level of the log-mels
    changes nothing but the level of the waveform.

    After "Neural source-filter-based waveform model for statistical parametric
    speech synthesis" (arXiv 1810.11946) and "DDSP: Differentiable Digital Signal
    Processing" (arXiv 2001.04643); scaling to the mel magnitudes is ours.

    Arguments
    ---------
    sample_rate, n_mels, n_fft, win_length, hop_length : int
        Settings of the log-mels, see ``LogMel``.
    channels : int
        Channels of the network.
    num_layers : int
        Layers of the network.
    kernel_size : int
        Width of their convolutions, in frames.

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
        # Differences from the log-mels: harmonic, noise, to be matched. They
        # begin at 0.
        self.bands = nn.Linear(channels, 3 * n_mels)
        nn.init.zeros_(self.bands.weight)
        nn.init.zeros_(self.bands.bias)
        shape = n_fft // 2 + 1, 0.0, sample_rate / 2, n_mels, sample_rate
        scale = {"mel_scale": "slaney"}
        # Padded as torch.stft does.
        before = (n_fft - win_length) // 2
        padding = before, n_fft - win_length - before
        buffers = {
            "fade": torch.hann_window(2 * hop_length),
            "window": functional.pad(torch.hann_window(win_length), padding),
            "to_mels": melscale_fbanks(*shape, norm="slaney", **scale),
            "to_bins": _between(melscale_fbanks(*shape, **scale)),
        }
        for name, value in buffers.items():
            self.register_buffer(name, value, persistent=False)

    @property
    def settings(self) -> dict[str, float]:
        """Settings of the log-mels, by the names of ``LogMel.settings``."""
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
        mel magnitudes [B, T, n_mels]; the same ones for the same input."""
        controls = self.controls(mels)
        generator = torch.Generator().manual_seed(0)
        return self.synthesize(controls, f0(controls.pitch), generator)

    def controls(self, mels: torch.Tensor) -> Controls:
        """Compute the controls of the synthesis from log-mels [B, T, K]."""
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
            *(mels + difference for difference in bands),
        )

    def synthesize(
        self,
        controls: Controls,
        pitch: torch.Tensor,
        generator: torch.Generator | None = None,
        match: bool = True,
    ) -> torch.Tensor:
        """Synthesize waveforms [B, T * hop_length] by an F0 in Hz of all frames
        [B, T], in training the true one, and noise of a generator on the CPU.
        With ``match``, their sum is scaled to the log-mels of the controls,
        which are those of their own pitch."""
        pulses = pulse_train(pitch, self.hop_length, self.sample_rate)
        noise = torch.randn(
            pulses.shape, generator=generator, dtype=pulses.dtype
        ).to(pulses.device)
        voiced = functional.logsigmoid(controls.voicing).unsqueeze(-1)
        wavs = self._filter(pulses, controls.harmonic + voiced)
        wavs = wavs + self._filter(noise, controls.noise)
        return self._match(wavs, controls.mels) if match else wavs

    def _filter(self, source, bands):
        """Filter a signal [B, samples] by log-magnitudes [B, T, K] in bands."""

        def filtered(frames, bands):
            spectra = torch.fft.rfft(frames * self.fade, self.n_fft)
            spectra = spectra * minimum_phase(bands @ self.to_bins)
            return torch.fft.irfft(spectra, self.n_fft)

        return self._by_frames(filtered, source, bands, 2 * self.hop_length)

    def _match(self, wavs, mels):
        """Scale the bands of waveforms to log-mels [B, T, K]."""

        def scaled(frames, mels):
            spectra = torch.fft.rfft(frames * self.window)
            # Digital silence has no logarithm.
            own = (spectra.abs().clamp(min=1e-7) @ self.to_mels).clamp(min=1e-6)
            change = (mels - own.log()).clamp(-_CORRECTION, _CORRECTION)
            spectra = spectra * (change @ self.to_bins).exp()
            return torch.fft.irfft(spectra) * self.window

        def squares(frames, _):
            return self.window.square().expand_as(frames)

        scaled = self._by_frames(scaled, wavs, mels, self.n_fft)
        weights = self._by_frames(squares, wavs[:1], mels[:1], self.n_fft)
        return scaled / weights.clamp(min=1e-3)

    def _by_frames(self, change, signal, controls, size):
        """Change a signal [B, T * hop_length] in overlapping frames of a size,
        each centred on its hop, that ``change`` maps with controls [B, T, K]
        to frames [B, T, size or longer], in blocks, and add them up."""
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
    """Residual layer: a convolution of each channel, then a mixing of them."""

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
        mixed = self.conv(frames.transpose(1, 2)).transpose(1, 2)
        return frames + self.scale * self.mix(mixed)


def f0(logits: torch.Tensor) -> torch.Tensor:
    """Compute F0 in Hz [...] from logits of the pitch classes [..., CLASSES]:
    the mean of the likeliest class and of those near it, weighted."""
    likeliest = logits.argmax(-1, keepdim=True)
    numbers = torch.arange(CLASSES, device=logits.device)
    far = (numbers - likeliest).abs() > 3
    weights = logits.masked_fill(far, -math.inf).softmax(-1)
    return LOWEST * 2 ** ((weights * numbers).sum(-1) * STEP / 1200)


def pitch_targets(f0: torch.Tensor) -> torch.Tensor:
    """Compute target distributions over the pitch classes [..., CLASSES], bells
    of a class's width, from F0 in Hz [...]."""
    place = 1200 / STEP * torch.log2(f0.clamp(min=LOWEST) / LOWEST)
    numbers = torch.arange(CLASSES, device=f0.device)
    return (-(numbers - place.unsqueeze(-1)).square() / 2).softmax(-1)


def pulse_train(
    f0: torch.Tensor, hop_length: int, sample_rate: int
) -> torch.Tensor:
    """Make band-limited pulses of unit power, [B, T * hop_length], of an F0 in
    Hz at the middle of each frame [B, T]: harmonics are cosines of one
    amplitude, up to half the sampling rate.

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
    # The sum of cosines in closed form: Dirichlet's kernel.
    peak = half.sin().abs() < 1e-4
    kernel = ((2 * number + 1) * half).sin() / half.sin().masked_fill(peak, 1.0)
    kernel = torch.where(peak, 2 * number + 1, kernel)
    return ((kernel - 1) / 2 * (2 / number).sqrt()).float()


def minimum_phase(log_magnitudes: torch.Tensor) -> torch.Tensor:
    """Compute the spectra [..., F] of the minimum-phase filters of
    log-magnitudes [..., F], natural logarithms, by folding the cepstrum."""
    size = 2 * (log_magnitudes.shape[-1] - 1)
    cepstrum = torch.fft.irfft(log_magnitudes, size)
    fold = cepstrum.new_zeros(size)
    fold[0] = fold[size // 2] = 1.0
    fold[1 : size // 2] = 2.0
    return torch.fft.rfft(cepstrum * fold).exp()


def _between(filters):
    """Make the matrix [K, F] that interpolates bands linearly between their
    centres, from triangular filters [F, K] of peak 1."""
    centres = filters.argmax(0)
    bins = torch.arange(len(filters))
    upper = torch.searchsorted(centres, bins).clamp(1, len(centres) - 1)
    left, right = centres[upper - 1], centres[upper]
    share = ((bins - left) / (right - left).clamp(min=1)).clamp(0, 1)
    matrix = torch.zeros(len(centres), len(bins))
    matrix[upper - 1, bins] = 1 - share
    matrix[upper, bins] += share
    return matrix
