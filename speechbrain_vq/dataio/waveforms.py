"""Write waveforms to audio files, and adjust their level."""

import contextlib
import hashlib
import os
import pathlib

import numpy as np
import soundfile
import torch

from .atomic import atomic_write

# Absolute value above which peaks are compressed.
_KNEE = 0.7


def any_name(path: str | os.PathLike) -> str | bytes | os.PathLike:
    """Return a path in a form that soundfile accepts: on POSIX, bytes, since a
    file name need not be valid text."""
    return os.fsencode(path) if os.name == "posix" else path


def write_waveform(
    path: str | os.PathLike, wav: torch.Tensor, sample_rate: int, comment: str
) -> None:
    """Write samples [T] in [-1, 1] on the CPU to a file, atomically.

    The file extension sets the format, by default wav. ``comment`` is written
    if the format supports comments. Raises OSError if writing fails, and
    ValueError if samples are not finite."""
    path = pathlib.Path(path)
    if not wav.isfinite().all():
        raise ValueError(
            "the decoded audio contains NaN or infinity. The training of the "
            "model probably diverged: see the reconstruction error of its run."
        )
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
            samples = wav.double().numpy()
            if file.subtype == "PCM_16":  # libsndfile would round down.
                samples = np.rint(samples * 2**15).clip(-(2**15), 2**15 - 1)
                samples = samples.astype(np.int16)
            file.write(samples)
    except RuntimeError as error:
        raise OSError(
            f"{path} cannot be written: {error} Does the folder exist, and has "
            "it room?"
        ) from error
    # The extension is not a known format, or the format needs a subtype.
    except (TypeError, ValueError) as error:
        raise OSError(
            f"{path} cannot be written: {error}. Use a name that ends in .wav."
        ) from error


def with_source(comment: str, path: str | os.PathLike) -> str:
    """Add the name and a checksum of the recording that a waveform was made
    from to the comment in its file."""
    path = pathlib.Path(path)
    # Names need not be valid text.
    name = path.name.encode(errors="replace").decode()
    checksum = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return f"{comment}, from {name} ({checksum})"


def read_comment(path: str | os.PathLike) -> str | None:
    """Return the comment in an audio file, empty if there is none, or None if
    it is not an audio file."""
    if not os.path.isfile(path):  # Opening a pipe would block forever.
        return None
    try:
        with soundfile.SoundFile(any_name(path)) as file:
            return file.comment
    except (OSError, RuntimeError):
        return None


def with_level_of(original: torch.Tensor, wav: torch.Tensor) -> torch.Tensor:
    """Scale a waveform [T] to the level (standard deviation) of ``original``,
    which is not raised by a constant offset. If its peaks then exceed full
    scale, compress them: the recording may itself have been compressed, and
    decoders restore its peaks."""
    own = wav.std(correction=0)
    if not own > 0:  # Also if it has no samples
        return wav
    wav = wav * (original.std(correction=0).to(wav.device) / own)
    size = wav.abs()
    if size.max() <= 1:
        return wav
    excess = (size - _KNEE).clamp(min=0) / (1 - _KNEE)
    return wav.sign() * torch.where(
        size > _KNEE, _KNEE + (1 - _KNEE) * excess.tanh(), size
    )


def within_full_scale(wav: torch.Tensor) -> torch.Tensor:
    """Attenuate a whole waveform [T] if it exceeds [-1, 1], since clipping
    would distort it."""
    return wav / wav.abs().amax().clamp(min=1) if len(wav) else wav
