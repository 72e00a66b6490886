"""Write waveforms to audio files, and set their level."""

import contextlib
import os
import pathlib

import soundfile
import torch

from .atomic import atomic_write


def any_name(path: str | os.PathLike) -> str | bytes | os.PathLike:
    """Return a path for soundfile, which takes one that is no text as bytes,
    but on Windows."""
    return os.fsencode(path) if os.name == "posix" else path


def write_waveform(
    path: str | os.PathLike, wav: torch.Tensor, sample_rate: int, comment: str
) -> None:
    """Write samples [T] in [-1, 1] on the CPU, whole or not at all, in the
    format that the name ends in, by default wav; formats that have comments get
    one. An OSError tells if it cannot be written."""
    path = pathlib.Path(path)
    kind = path.suffix[1:] or "wav"
    try:
        with (
            atomic_write(path) as partial,
            soundfile.SoundFile(
                any_name(partial), "w", sample_rate, 1, format=kind
            ) as file,
        ):
            with contextlib.suppress(soundfile.LibsndfileError):
                file.comment = comment
            file.write(wav.numpy())
    except RuntimeError as error:
        raise OSError(
            f"{path} cannot be written: {error} Is there such a folder, and "
            "room in it?"
        ) from error
    # The name does not end in a format, or the format needs a subtype.
    except (TypeError, ValueError) as error:
        raise OSError(
            f"{path} cannot be written: {error}. Name a file that ends in .wav."
        ) from error


def read_comment(path: str | os.PathLike) -> str:
    """Return the comment in an audio file; empty if there is none."""
    try:
        with soundfile.SoundFile(any_name(path)) as file:
            return file.comment
    except (OSError, RuntimeError):
        return ""


def with_level_of(original: torch.Tensor, wav: torch.Tensor) -> torch.Tensor:
    """Scale a waveform [T] to the level of another, as far as its peak allows:
    decoders predict medians of log-mels, which are quieter than the mean."""
    level, peak = wav.square().mean().sqrt(), wav.abs().max()
    if not peak > 0:
        return wav
    gain = original.square().mean().sqrt().to(wav.device) / level
    return (wav * torch.minimum(gain, 1 / peak)).clamp(-1, 1)


def within_full_scale(wav: torch.Tensor) -> torch.Tensor:
    """Attenuate a waveform [T] as a whole where it would exceed [-1, 1]:
    clipping distorts."""
    return wav / wav.abs().amax().clamp(min=1) if len(wav) else wav
