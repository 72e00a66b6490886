"""Images and audio of a page as ``data:`` URLs."""

import base64
import io
import os
import pathlib

import PIL.Image
import torch

# Range of mel spectrograms, in dB below the maximum.
DYNAMIC_RANGE = 65.0
N_MELS = 80


def png(pixels: torch.Tensor) -> str:
    """Encode an image with values in [0, 1] as a ``data:`` URL of a PNG.

    ``pixels`` are RGB colors [height, width, 3], or opacities [height, width]
    of a CSS mask.

    Example
    -------
    >>> png(torch.ones(1, 1))[:22]
    'data:image/png;base64,'
    """
    values = (255 * pixels.clamp(0, 1)).round().to(torch.uint8)
    if values.dim() == 2:
        # CSS masks use the alpha channel of a gray image.
        values = torch.stack([torch.zeros_like(values), values], 2)
    file = io.BytesIO()
    PIL.Image.fromarray(values.numpy()).save(file, "PNG", optimize=True)
    return _url("image/png", file.getvalue())


def mel_spectrogram(wav: torch.Tensor, sample_rate: int) -> torch.Tensor:
    """Compute the mel spectrogram of samples [T] as opacities [80, frames],
    highest band first."""
    from torchaudio.transforms import MelSpectrogram

    window = round(0.025 * sample_rate)
    extract = MelSpectrogram(
        sample_rate,
        n_fft=2 ** (window - 1).bit_length(),
        win_length=window,
        hop_length=round(0.008 * sample_rate),
        n_mels=N_MELS,
    )
    level = 10 * extract(wav).clamp(min=1e-10).log10()
    opacity = (1 + (level - level.max()) / DYNAMIC_RANGE).clamp(min=0)
    # 24 levels compress well, without visible differences.
    return ((24 * opacity).round() / 24).flip(0)


def mel_ticks(sample_rate: int) -> list[tuple[str, float]]:
    """Return tick labels in kHz, with their heights in [0, 1] on the mel
    axis."""

    def mel(frequency):
        """Convert Hz to mel."""
        return torch.tensor(1 + frequency / 700).log()

    return [
        (f"{khz:g}", float(mel(1000 * khz) / mel(sample_rate / 2)))
        for khz in (0.5, 1, 2, 4, 8, 16)
        if 1000 * khz < 0.48 * sample_rate
    ]


def audio(path: str | os.PathLike) -> str:
    """Encode a FLAC file as a ``data:`` URL."""
    return _url("audio/flac", pathlib.Path(path).read_bytes())


def _url(media_type, content):
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"
