"""Read audio files of any format, sampling rate and number of channels."""

import contextlib
import functools
import io
import logging
import math
import os
import pathlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from tqdm import tqdm

from .chunks import Span, in_pieces
from .containers import AudioError, check_ogg, check_size, check_sphere
from .logs import few_warnings
from .mp3 import quiet, with_length
from .waveforms import any_name

logger = logging.getLogger(__name__)

# Half the length of scipy's resampling filter, in samples at the lower rate.
_HALF_FILTER = 10
# Larger samples must be unscaled integers; float audio may slightly exceed 1.
_MAX_PEAK = 100.0
MIN_RATE, MAX_RATE = 1000, 400_000
# libsndfile returns 2^63 - 1 frames if the header lacks the length.
_UNKNOWN_LENGTH = 2**62
# First bytes of files that libsndfile does not try to decode as MP3.
_NOT_MP3 = (b"RIFF", b"fLaC", b"OggS", b"FORM", b".snd", b"riff", b"caff")
# Audio that libsndfile cannot read, listed so that it is reported.
_UNSUPPORTED = frozenset(
    ".aac .ac3 .amr .ape .m4a .m4b .mka .mp2 .mp4 .mpc .raw .spx .webm .wma "
    ".wv".split()
)


def audio_blocks(
    source: str | os.PathLike | BinaryIO,
    sample_rate: int,
    seconds: float = 60.0,
    start: float = 0.0,
    duration: float | None = None,
) -> Iterator[torch.Tensor]:
    """Read audio in blocks, as one channel at a given sampling rate.

    Yields blocks [T] in [-1, 1] of about ``seconds`` each. Concatenated, they
    are bit-identical to the whole file: the decoder does not seek between them,
    and each is resampled with its context. Reading starts ``start`` seconds
    into the file and stops after ``duration`` seconds, by default at the end.
    Raises AudioError if the file is missing, not audio, cut short, empty, or
    contains several recordings end to end."""
    # Segments are read in every epoch, from files that were already checked.
    whole = start == 0 and duration is None
    with _open(source, check=whole) as file:
        blocks = _mono(file, seconds, _name(source), start, duration, whole)
        if file.samplerate == sample_rate:
            yield from blocks
        else:
            yield from _resample(blocks, file.samplerate, sample_rate, seconds)


def read_audio(
    path: str | os.PathLike | BinaryIO,
    sample_rate: int,
    start: float = 0.0,
    duration: float | None = None,
) -> torch.Tensor:
    """Read a file or a segment of it as one channel at a given sampling rate;
    see ``audio_blocks``."""
    blocks = audio_blocks(path, sample_rate, start=start, duration=duration)
    return torch.cat(list(blocks))


def check_audio(
    path: str | os.PathLike | BinaryIO, decode: bool = True
) -> float:
    """Decode a whole file and return its length in seconds; raises AudioError
    as ``audio_blocks`` does. Without ``decode``, return the length stated in
    the header, if there is one."""
    with _open(path, check=decode) as file:
        if decode or file.frames >= _UNKNOWN_LENGTH:
            blocks = _mono(file, 10.0, _name(path))
            return sum(map(len, blocks)) / file.samplerate
        if file.frames == 0:
            raise AudioError("contains no sound.")
        return file.frames / file.samplerate


def check_files(
    paths: Iterable[str | os.PathLike], decode: bool = True
) -> tuple[dict, dict[str | os.PathLike, str]]:
    """Check many files in threads, with a progress bar on terminals. Return the
    lengths in seconds of readable files and the error messages of the others,
    both by path; see ``check_audio``."""

    def check(path):
        """Return the duration of a file in seconds, or the error."""
        try:
            return check_audio(path, decode)
        except AudioError as error:
            return str(error)

    paths = list(paths)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        progress = tqdm(
            pool.map(check, paths),
            "Checking recordings",
            total=len(paths),
            unit="file",
            leave=False,
            delay=1,  # Second; a short check needs no progress bar
            disable=None,
        )
        results = dict(zip(paths, progress, strict=True))
    errors = {p: r for p, r in results.items() if isinstance(r, str)}
    lengths = {p: r for p, r in results.items() if p not in errors}
    return lengths, errors


def usable_files(
    paths: Iterable[str | os.PathLike], decode: bool = True
) -> dict[str | os.PathLike, float]:
    """Return the lengths in seconds of the readable files by path. Warn about
    the first ten others of each kind, and log a summary."""
    with few_warnings(maximum=10):
        lengths, errors = check_files(paths, decode)
        for error in errors.values():
            logger.warning("Left out %s", error)
    if errors:
        logger.warning(
            "%d of %d files were left out: %s.",
            *(len(errors), len(lengths) + len(errors), count_reasons(errors)),
        )
    return lengths


def cell_source(cell: dict | str | None, name: str) -> str | BinaryIO:
    """Return the path or file in a cell of an audio column, for
    ``audio_blocks``. The cell is a path, or a dict of ``bytes`` and ``path`` as
    ``datasets`` returns it without decoding. ``name`` identifies the bytes in
    error messages. Raises AudioError if the cell is empty."""
    cell = cell if isinstance(cell, dict) else {"path": cell}
    if cell.get("bytes") is not None:
        file = io.BytesIO(cell["bytes"])
        file.name = name
        return file
    if cell.get("path") is None:
        raise AudioError(f"{name}: contains no audio.")
    return cell["path"]


@contextlib.contextmanager
def naming(source: str | os.PathLike | BinaryIO) -> Iterator[None]:
    """Turn a ValueError, for example for audio too short for a model, into an
    AudioError that names the file."""
    try:
        yield
    except AudioError:
        raise
    except ValueError as error:
        raise AudioError(f"{_name(source)}: {error}") from error


def _name(source):
    """Return the name of a path or an open file for error messages."""
    is_path = isinstance(source, str | os.PathLike)
    return str(source if is_path else getattr(source, "name", "audio"))


def count_reasons(errors: Mapping[str | os.PathLike, str]) -> str:
    """Summarize the error messages of skipped files: the number of files by
    reason, the most frequent first.

    Example
    -------
    >>> count_reasons({"a": "a: cut short, 1 of 2.", "b": "b: cut short."})
    '2 cut short'
    >>> count_reasons({"a": "a: no tokens in t2.jsonl: 3 lines"})
    '1 no tokens in t2.jsonl'
    """
    counts = Counter()
    for path, message in errors.items():
        reason = message.split(f"{path}: ", 1)[-1].removeprefix("there is ")
        # Punctuation within a word, as in a file name, does not end a clause.
        reason = re.split(r"[.,:;](?!\S)| \(", reason)[0]
        # Numbers differ between files with the same fault.
        counts[re.sub(r"(?<!\S)\d\S*", "N", reason)] += 1
    return ", ".join(f"{n} {reason}" for reason, n in counts.most_common())


def check_peak(peak: float, subject: str) -> None:
    """Raise an AudioError that starts with ``subject`` if the peak is far above
    1 or not finite."""
    if not math.isfinite(peak):
        raise AudioError(f"{subject} NaN or infinity.")
    if peak > _MAX_PEAK:
        raise AudioError(
            f"{subject} amplitudes beyond 1, up to {peak:.4g}. Divide "
            "16-bit integers by 32768."
        )


class _Forward(soundfile.SoundFile):
    """Sound file without soundfile's seek after each read, which would change
    the last bits of decoded MP3, and decode Opus twice."""

    def seekable(self):
        """Return False: the stream is only read forward."""
        return False


@contextlib.contextmanager
def _open(source, check=True):
    """Open audio, and until it is closed, turn any failure to read it into an
    AudioError that names it."""
    name, is_path = _name(source), isinstance(source, str | os.PathLike)
    try:
        if is_path and not os.path.exists(source):
            raise AudioError("there is no such file.")
        # A file that the caller opened stays open.
        null = contextlib.nullcontext(source)
        with open(source, "rb") if is_path else null as data:
            data.seek(0)
            head = data.read(4)
            if head[:3] == b"ID3" or head[:1] == b"\xff":
                content = head + data.read()
                complete = with_length(content)
                if complete is not content:
                    source, is_path = io.BytesIO(complete), False
            elif check and head == b"OggS":
                check_ogg(data)
            elif check and head == b"NIST":
                check_sphere(data)
            data.seek(0)
        if is_path:
            source = any_name(source)
        with quiet(name.endswith(".mp3") or head not in _NOT_MP3):
            file = _Forward(source)
        with file:
            # A damaged header may state an absurd rate, whose resampling filter
            # would take minutes to build.
            if not MIN_RATE <= file.samplerate <= MAX_RATE:
                raise AudioError(
                    f"sampling rate of {file.samplerate} Hz; {MIN_RATE} to "
                    f"{MAX_RATE} Hz are supported."
                )
            if check:
                check_size(file.extra_info)
            yield file
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error
    # soundfile raises TypeError for a name that ends in .raw.
    except (OSError, RuntimeError, TypeError, UnicodeError) as error:
        reason = str(getattr(error, "error_string", error)).rstrip(".")
        message = f"{name}: cannot be read: {reason}."
        if pathlib.Path(name).suffix.lower() in _UNSUPPORTED:
            message += " Convert it to wav or flac, for example with ffmpeg."
        raise AudioError(message) from error


def _mono(file, seconds, name, start=0.0, duration=None, whole=True):
    """Yield the mean of the channels in blocks. Check the length and, if a
    whole file is read, whether its channels cancel."""
    check_channels = whole and file.channels > 1
    first = round(start * file.samplerate)
    is_mp3 = file.format == "MP3"
    if first:
        with quiet(is_mp3):
            file.seek(first)
    stated = file.frames - first
    if duration is not None:
        stated = min(stated, round(duration * file.samplerate))
    size, total = max(1, round(seconds * file.samplerate)), 0
    power, mixed_power = np.zeros(file.channels), 0.0
    while total < stated:
        length = min(size, stated - total)
        with quiet(is_mp3):
            samples = file.read(length, dtype="float32", always_2d=True)
        total += len(samples)
        if len(samples):
            # abs() would copy the samples.
            peak = float(max(samples.max(), -samples.min()))
            check_peak(peak, "contains")
            mixed = samples.mean(axis=1)
            if check_channels:
                power += np.square(samples).sum(axis=0, dtype=np.float64)
                mixed_power += float(np.square(mixed).sum(dtype=np.float64))
            yield torch.from_numpy(mixed)
        if len(samples) < length:
            break
    if total < stated and file.frames < _UNKNOWN_LENGTH:
        raise AudioError(f"cut short, {total} of {stated} samples can be read.")
    if total == 0:
        raise AudioError("contains no sound.")
    if check_channels:
        _check_channels(name, power, mixed_power)


def _check_channels(name, power, mixed_power):
    """Warn if averaging the channels loses much of the recording."""
    silent = int((power < 1e-6 * power.max()).sum())
    if silent:
        _warn_once(
            "%s: %d of %d channels are silent, so the mean of all is quieter "
            "than the recording. Keep only the other channels.",
            *(name, silent, len(power)),
        )
    # The mean of C uncorrelated channels of equal power has 1 / C of the power.
    elif mixed_power < 0.1 / len(power) * power.max():
        _warn_once(
            "%s: the channels have opposite polarity and cancel in their mean, "
            "which is used. Keep one channel, or invert the other.",
            name,
        )


@functools.lru_cache(maxsize=10_000)
def _warn_once(message, *arguments):
    """Log a warning once, even if its file is read in every epoch."""
    logger.warning(message, *arguments)


def _resample(blocks, rate, sample_rate, seconds):
    """Resample blocks, each with as much context as the filter needs."""
    from scipy.signal import resample_poly  # Takes seconds to import

    common = math.gcd(rate, sample_rate)
    up, down = sample_rate // common, rate // common
    reach = math.ceil((_HALF_FILTER * max(up, down) / up + 1) / down)
    return in_pieces(
        lambda x: torch.from_numpy(resample_poly(x.numpy(), up, down)),
        blocks,
        Span(down, reach, reach),
        max(1, round(seconds * common)),
        up,
    )


def as_waveforms(wavs: torch.Tensor | np.ndarray) -> torch.Tensor:
    """Convert waveforms [B, T], [B, 1, T] or [T] to a batch [B, T] in fp32.
    They must be floating-point numbers in [-1, 1], or 16-bit integers, which
    are scaled to [-1, 1].

    Raises
    ------
    TypeError, ValueError
        If they are not a tensor or array, or have the wrong type or shape.

    Example
    -------
    >>> as_waveforms(np.array([0, -16384], dtype=np.int16))
    tensor([[ 0.0000, -0.5000]])
    """
    if isinstance(wavs, np.ndarray):
        # PyTorch has no negative strides, such as those of wavs[::-1].
        wavs = torch.from_numpy(np.ascontiguousarray(wavs))
    if not torch.is_tensor(wavs):
        raise TypeError(
            "Waveforms are a tensor or an array [B, samples], got "
            f"{type(wavs).__name__}."
        )
    if wavs.dim() == 1:
        wavs = wavs.unsqueeze(0)
    elif wavs.dim() == 3 and wavs.shape[1] == 1:
        wavs = wavs.squeeze(1)
    if wavs.dim() != 2 or not len(wavs):
        raise ValueError(
            "Waveforms are [B, samples], [B, 1, samples] or [samples], with B "
            f"of at least 1, got {list(wavs.shape)}. Average the channels of a "
            "multichannel recording."
        )
    if wavs.dtype is torch.int16:
        return wavs.to(torch.float32) / 2**15
    if not wavs.is_floating_point():
        raise TypeError(
            "Waveforms are floating-point numbers in [-1, 1] or int16, got "
            f"{wavs.dtype}. Divide integers by their full scale."
        )
    return wavs.to(torch.float32)


def listed(paths) -> list:
    """Return one path or several as a list."""
    return [paths] if isinstance(paths, str | os.PathLike) else list(paths)


def find_audio(
    places: str | os.PathLike | Iterable[str | os.PathLike],
) -> dict[pathlib.Path, pathlib.Path]:
    """Find the audio files among files and in folders.

    A folder is searched by file extension, including subfolders and links to
    folders, but not hidden files. A file given directly may have any name.
    Audio in unsupported formats is included, so that it can be reported.

    Returns for each file, once and in order, its path relative to the given
    folder, or its name. Raises FileNotFoundError if there are no files."""
    files, places = {}, [*map(pathlib.Path, listed(places))]
    endings = audio_endings() | _UNSUPPORTED
    for place in places:
        if place.is_dir():
            for path in sorted(files_below(place)):
                if path.suffix.lower() in endings:
                    files[path] = path.relative_to(place)
        else:
            files.setdefault(place, pathlib.Path(place.name))
    if not files:
        raise FileNotFoundError(
            f"There are no audio files in {', '.join(map(str, places))}: "
            f"none ends in {' '.join(sorted(audio_endings()))}."
        )
    return files


def files_below(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yield the files in a folder and its subfolders that are not hidden. Links
    to folders are followed, but each folder is visited once. Unreadable folders
    are skipped with a warning."""
    seen = set()

    def warn(error):
        """Warn about an unreadable folder."""
        logger.warning("Left out %s: %s.", error.filename, error.strerror)

    for parent, subfolders, names in os.walk(
        folder, onerror=warn, followlinks=True
    ):
        real = os.path.realpath(parent)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if name[0] != ".")
        for name in names:
            if name[0] != ".":
                yield pathlib.Path(parent, name)


def audio_endings() -> set[str]:
    """Return the file name extensions of the formats that can be read."""
    formats = {f".{name.lower()}" for name in soundfile.available_formats()}
    return formats.union(".aif .aifc .oga .opus .snd .sph".split()) - {".raw"}
