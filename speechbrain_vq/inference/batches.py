"""Encode audio files in batches."""

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
    has at most ``batch_seconds`` of audio, padding included."""
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
    batch_seconds: float,
    latents: bool = False,
) -> Iterator[tuple[str, tuple[torch.Tensor, int] | AudioError]]:
    """Encode a batch of audio files by name.

    Yields each name with its tokens (or latents) and number of samples, or
    with an error. A single file is encoded in chunks of ``batch_seconds``."""
    encode_batch, encode_long = tokenizer.encode_batch, tokenizer.tokenize
    if latents:
        encode_batch, encode_long = tokenizer.latents_batch, tokenizer.latents

    def alone(name):
        source, rate = sources[name], tokenizer.sample_rate
        return name, _encode_long(encode_long, source, rate, batch_seconds)

    if len(sources) == 1:
        yield from map(alone, sources)
        return
    wavs = {}
    for name, source in sources.items():
        try:
            wavs[name] = read_audio(source, tokenizer.sample_rate)
        except AudioError as error:
            yield name, error
    if not wavs:
        return
    lengths = torch.tensor([float(len(wav)) for wav in wavs.values()])
    padded = torch.nn.utils.rnn.pad_sequence(
        list(wavs.values()), batch_first=True
    )
    try:
        encoded, shares = encode_batch(padded, lengths / padded.shape[1])
        counts = torch.round(shares.cpu() * encoded.shape[1]).int().tolist()
    except ValueError:
        counts = [0] * len(wavs)
    for index, (name, wav) in enumerate(wavs.items()):
        if counts[index]:
            yield name, (encoded[index, : counts[index]], len(wav))
        else:
            # Encoded alone, so that an error concerns this file only.
            yield alone(name)


def _encode_long(encode, source, rate, batch_seconds):
    """Encode a file in chunks. Return its tokens or latents and number of
    samples, or an error."""
    num_samples = 0

    def counted():
        nonlocal num_samples
        for block in audio_blocks(source, rate, batch_seconds):
            num_samples += len(block)
            yield block

    try:
        with naming(source):
            return encode(counted(), batch_seconds), num_samples
    except AudioError as error:
        return error
