"""Invertible log-mel features that do not depend on padding."""

from collections.abc import Iterable

import torch
from torch import nn
from torchaudio.transforms import GriffinLim, InverseMelScale, MelSpectrogram

from speechbrain_vq.nnet.masks import frame_mask
from speechbrain_vq.precision import fp32_by_default

# Frames to transform at once.
_FRAMES = 6000

# Lower bound of the RMS level of a signal, 0.3 % of the 16-bit step.
_SILENCE = 1e-7


class LogMel(nn.Module):
    """Normalized log-mel spectrogram with a Griffin-Lim inverse.

    The signal is zero-padded at both ends, so padding does not change the
    features. Each mel band is normalized by the mean and standard deviation
    that ``fit()`` computes.

    If the settings match, ``denormalize`` returns the input of SpeechBrain's
    HiFi-GANs, with frames centered half a hop later. Their 16 kHz models use
    ``win_length=1024, hop_length=256``.

    Arguments
    ---------
    sample_rate, n_mels : int
        Sampling rate in Hz, and number of mel bands.
    n_fft, win_length, hop_length : int
        Size of the Fourier transform, window and step, in samples.
    floor : float
        Lower bound of the mel magnitudes before the logarithm.
    relative_floor : float, optional
        Lower bound as a fraction of the utterance's root mean square, instead
        of ``floor``. The level of a recording then only adds a constant to its
        features, and changes no token with ``ConvEncoder(utterance_norm=True)``.
        Each frame depends on the whole utterance.
    remove_offset : bool
        Whether to subtract the mean of each utterance, a constant offset of
        cheap microphones that would leak into the lowest bands and raise the
        level. Each frame then depends on the whole utterance, too.

    Example
    -------
    >>> features = LogMel()
    >>> wavs = torch.randn(2, 16000)
    >>> mels, lengths = features(wavs, torch.tensor([1.0, 0.5]))
    >>> mels.shape, lengths
    (torch.Size([2, 100, 80]), tensor([1.0000, 0.5000]))
    """

    def __init__(
        self,
        sample_rate: int = 16000,
        n_mels: int = 80,
        n_fft: int = 1024,
        win_length: int = 640,
        hop_length: int = 160,
        floor: float = 1e-5,
        relative_floor: float | None = None,
        remove_offset: bool = False,
    ):
        super().__init__()
        self.sample_rate = sample_rate
        self.hop_length = hop_length
        self.n_fft = n_fft
        self.floor = floor
        self.relative_floor = relative_floor
        self.remove_offset = remove_offset
        self._shape = {
            "n_fft": n_fft,
            "win_length": win_length,
            "hop_length": hop_length,
        }
        self._scale = {"norm": "slaney", "mel_scale": "slaney"}
        options = {**self._shape, **self._scale, "center": False, "power": 1.0}
        self.mel = MelSpectrogram(sample_rate, n_mels=n_mels, **options)
        self.register_buffer("mean", torch.zeros(n_mels))
        self.register_buffer("std", torch.ones(n_mels))

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.hop_length

    @property
    def settings(self) -> dict[str, float]:
        """Settings that a vocoder must share, by SpeechBrain's names."""
        return {
            "sample_rate": self.sample_rate,
            "n_mel_channels": len(self.mean),
            **self._shape,
            "mel_fmin": 0.0,
            "mel_fmax": self.sample_rate / 2,
        }

    @property
    def context(self) -> tuple[int, int] | None:
        """Samples of context before and after a frame's own hop; None if it
        depends on the whole utterance."""
        if self.relative_floor is not None or self.remove_offset:
            return None
        window = self._shape["win_length"]
        # The window is centered in the transform, and the transform on the
        # hop, both rounded down.
        before = (self.n_fft - self.hop_length) // 2
        before -= (self.n_fft - window) // 2
        return max(before, 0), max(window - self.hop_length - before, 0)

    def forward(
        self, wavs: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compute features [B, samples // hop_length, n_mels] and their
        relative lengths [B] from waveforms [B, samples] with relative lengths
        [B], zero at padding."""
        if wavs.shape[-1] < self.hop_length:
            raise ValueError(
                f"shorter than one frame: {wavs.shape[-1]} of "
                f"{self.hop_length} samples. Pad the signal."
            )
        samples = torch.round(lengths * wavs.shape[1])
        frames = torch.div(samples, self.hop_length, rounding_mode="floor")
        mels = self._log_mel(wavs, samples)
        # Beyond 2^24 samples, rounding may add a frame.
        lengths = (frames / mels.shape[1]).clamp(max=1)
        mels = (mels - self.mean) / self.std
        return mels * frame_mask(mels, lengths).unsqueeze(-1), lengths

    def _log_mel(self, wavs, samples):
        margin = self.n_fft - self.hop_length
        with torch.autocast(wavs.device.type, enabled=False):
            wavs = wavs.float()
            if self.remove_offset:
                wavs = self._without_offset(wavs, samples)
            padded = nn.functional.pad(
                wavs, (margin // 2, margin - margin // 2)
            )
            mels = self._mel(padded)
            if self.relative_floor is None:
                return mels.clamp(min=self.floor).log()
            energy = wavs.square().sum(1)
            level = (energy / samples.clamp(min=1)).sqrt()
            # The level of digital silence is 0, which has no logarithm.
            floor = self.relative_floor * level.clamp(min=_SILENCE)
            return mels.maximum(floor.view(-1, 1, 1)).log()

    def _without_offset(self, wavs, samples):
        """Subtract the mean of the valid samples, except at padding."""
        samples = samples.view(-1, 1).to(wavs.device)
        offset = wavs.sum(1, keepdim=True) / samples.clamp(min=1)
        valid = torch.arange(wavs.shape[1], device=wavs.device) < samples
        return wavs - offset * valid

    def _mel(self, padded):
        """Compute mel magnitudes [B, T, n_mels] in blocks, to bound the memory
        of the transform."""
        margin = self.n_fft - self.hop_length
        frames = (padded.shape[1] - margin) // self.hop_length
        blocks = []
        for start in range(0, frames, _FRAMES):
            end = min(start + _FRAMES, frames) * self.hop_length + margin
            block = padded[:, start * self.hop_length : end]
            blocks.append(self.mel(block).transpose(1, 2))
        return torch.cat(blocks, dim=1)

    @torch.no_grad()
    def fit(self, batches: Iterable[torch.Tensor]) -> None:
        """Compute normalization statistics from batches of waveforms
        [B, samples] without padding."""
        count, total, square = 0, 0.0, 0.0
        for wavs in batches:
            wavs = wavs.to(self.mean.device)
            samples = wavs.new_full(wavs.shape[:1], wavs.shape[1])
            mels = self._log_mel(wavs, samples)
            mels = mels.double().flatten(0, 1)
            count += len(mels)
            total = total + mels.sum(0)
            square = square + mels.square().sum(0)
        if count == 0:
            raise ValueError(
                "The feature normalization requires audio: pass at least one "
                "waveform."
            )
        mean = total / count
        self.mean.copy_(mean)
        # The bound keeps a silent band from being amplified.
        variance = (square / count - mean.square()).clamp(min=1e-4)
        self.std.copy_(variance.sqrt())

    def denormalize(self, mels: torch.Tensor) -> torch.Tensor:
        """Undo the normalization of features [..., n_mels]; returns natural
        logarithms of mel magnitudes."""
        return mels.float() * self.std + self.mean

    @torch.no_grad()
    def inverse(self, mels: torch.Tensor) -> torch.Tensor:
        """Synthesize waveforms [B, T * hop_length] from normalized features
        [B, T, n_mels] by 60 iterations of Griffin-Lim."""
        magnitude = self.denormalize(mels).exp()
        with fp32_by_default():
            to_linear = InverseMelScale(
                self.n_fft // 2 + 1,
                magnitude.shape[-1],
                self.sample_rate,
                **self._scale,
            ).to(mels.device)
            to_wave = GriffinLim(
                n_iter=60, power=1.0, rand_init=False, **self._shape
            ).to(mels.device)
        length = mels.shape[1] * self.hop_length
        # GriffinLim reflects half a transform at either end, which requires
        # enough frames.
        missing = self.n_fft // 2 // self.hop_length + 2 - mels.shape[1]
        magnitude = nn.functional.pad(magnitude, (0, 0, 0, max(missing, 0)))
        wavs = to_wave(to_linear(magnitude.transpose(1, 2)))
        # GriffinLim centers its frames half a hop before ours.
        wavs = nn.functional.pad(wavs, (self.hop_length // 2, length))
        return wavs[:, :length]
