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
    """Yield lists of names, the longest audio first, of so many seconds with
    padding."""
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
) -> Iterator[tuple[str, tuple[torch.Tensor, int] | AudioError]]:
    """Encode a batch of audio, files by name; yield names with tokens and
    number of samples, or with an error."""
    if len(sources) == 1:
        for name, source in sources.items():
            yield name, _encode_long(tokenizer, source, batch_seconds)
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
        tokens, shares = tokenizer.encode_batch(
            padded, lengths / padded.shape[1]
        )
        counts = torch.round(shares.cpu() * tokens.shape[1]).int().tolist()
    except ValueError:
        counts = [0] * len(wavs)
    for index, (name, wav) in enumerate(wavs.items()):
        if counts[index]:
            yield name, (tokens[index, : counts[index]], len(wav))
        else:
            # Alone, so that the error is about this file and no other.
            yield name, _encode_long(tokenizer, sources[name], batch_seconds)


def _encode_long(tokenizer, source, batch_seconds):
    num_samples = 0

    def counted():
        nonlocal num_samples
        rate = tokenizer.sample_rate
        for block in audio_blocks(source, rate, batch_seconds):
            num_samples += len(block)
            yield block

    try:
        with naming(source):
            return tokenizer.tokenize(counted(), batch_seconds), num_samples
    except AudioError as error:
        return error
