"""Encode audio files in batches."""

import contextlib
from collections.abc import Iterator
from typing import BinaryIO

import torch

from speechbrain_vq.dataio.audio import (
    AudioError,
    audio_blocks,
    naming,
    read_audio,
)

from .tokenizer import VQTokenizer


def make_batches(
    seconds: dict[str, float], batch_seconds: float
) -> Iterator[list[str]]:
    """Yield batches of names, longest audio first. A batch of several files
    has at most ``batch_seconds`` of audio, including padding."""
    batch = []
    for name in sorted(seconds, key=seconds.get, reverse=True):
        if batch and seconds[batch[0]] * (len(batch) + 1) > batch_seconds:
            yield batch
            batch = []
        batch.append(name)
    if batch:
        yield batch


def encode(
    tokenizer: VQTokenizer,
    sources: dict[str, str | BinaryIO],
    seconds: dict[str, float],
    batch_seconds: float,
    errors: dict[str, str],
    latents: bool = False,
) -> Iterator[tuple[str, torch.Tensor, int]]:
    """Encode the audio files in ``seconds``, by name, in batches.

    Yields each name with its tokens (or latents) and number of samples. For a
    file that cannot be encoded, a message is added to ``errors``. A file that
    is alone in its batch, or fails in it, is encoded alone, in chunks of
    ``batch_seconds``."""
    for batch in make_batches(seconds, batch_seconds):
        together = {}
        if len(batch) > 1:
            audio = {name: sources[name] for name in batch}
            together = _encode_together(tokenizer, audio, latents)
        for name in batch:
            try:
                encoded, num_samples = together.get(name) or _encode_alone(
                    tokenizer, sources[name], batch_seconds, latents
                )
            except AudioError as error:
                errors[name] = str(error)
            else:
                yield name, encoded, num_samples


def _encode_together(tokenizer, sources, latents):
    """Encode files in one batch. Return tokens or latents and the number of
    samples by name, without the files that have errors."""
    encode = tokenizer.latents_batch if latents else tokenizer.encode_batch
    wavs = {}
    for name, source in sources.items():
        with contextlib.suppress(AudioError):
            wavs[name] = read_audio(source, tokenizer.sample_rate)
    if not wavs:
        return {}
    lengths = torch.tensor([float(len(wav)) for wav in wavs.values()])
    padded = torch.nn.utils.rnn.pad_sequence([*wavs.values()], batch_first=True)
    try:
        encoded, shares = encode(padded, lengths / padded.shape[1])
    except ValueError:
        return {}
    counts = torch.round(shares.cpu() * encoded.shape[1]).int().tolist()
    return {
        name: (encoded[row, :count], len(wavs[name]))
        for row, (name, count) in enumerate(zip(wavs, counts, strict=True))
        if count
    }


def _encode_alone(tokenizer, source, batch_seconds, latents):
    """Encode a file in chunks. Return its tokens or latents, and its number of
    samples."""
    encode = tokenizer.latents if latents else tokenizer.tokenize
    num_samples = 0

    def blocks():
        """Yield blocks of audio, and count their samples."""
        nonlocal num_samples
        for block in audio_blocks(source, tokenizer.sample_rate, batch_seconds):
            num_samples += len(block)
            yield block

    with naming(source):
        encoded = encode(blocks(), batch_seconds)
    return encoded, num_samples
