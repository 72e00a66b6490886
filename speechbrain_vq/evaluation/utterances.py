"""Encoded utterances: what metrics take, and a model that encodes a manifest.
``tokens`` reads those of token files."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from speechbrain_vq.dataio.audio import (
    AudioError,
    audio_blocks,
    check_audio,
    read_audio,
)
from speechbrain_vq.inference.engine import RayEngine

# Utterances of a manifest that are encoded at one place.
_PART = 32
# Decoded and compared seconds of an utterance: warping is quadratic.
MOST_DECODED = 20.0


class Utterance(NamedTuple):
    """An encoded utterance; the last three are of models only."""

    name: str
    entry: dict  # Of the manifest
    tokens: torch.Tensor  # [T, C]
    token_rate: float  # Frames per second
    seconds: float
    latents: torch.Tensor | None = None  # Before quantization, [T, D]
    codewords: torch.Tensor | None = None  # After it, [T, D]
    wav: torch.Tensor | None = None  # [samples]; of a long file the beginning


class EvaluatedModel:
    """Encode the audio of a manifest with a model, in batches of so many
    seconds with padding, and decode it again. An engine encodes parts of the
    manifest elsewhere."""

    def __init__(
        self,
        tokenizer,
        engine: RayEngine | None = None,
        batch_seconds: float = 60.0,
    ):
        self.tokenizer, self.batch_seconds = tokenizer, batch_seconds
        self.engine = engine
        self.codebook_size = tokenizer.codebook_size
        self.sample_rate = tokenizer.sample_rate
        self.errors: dict[str, str] = {}

    def utterances(self, manifest: dict[str, dict]) -> Iterator[Utterance]:
        """Encode the utterances of a manifest in its order, batch by batch;
        longer files in chunks. Unreadable ones are left out, with a message in
        ``errors``."""
        names = list(manifest)
        # Batches end with a part, whatever encodes it: the same bits.
        parts = [
            {name: manifest[name] for name in names[first : first + _PART]}
            for first in range(0, len(names), _PART)
        ]
        if self.engine is None:
            for part in parts:
                yield from self._encode(part)
            return
        encoded = self.engine.map(_encode_part, self.tokenizer, parts)
        for utterances, errors in encoded:
            self.errors |= errors
            yield from utterances

    def _encode(self, manifest):
        batch, longest = {}, 0
        for name, entry in manifest.items():
            try:
                if self._is_long(entry["wav"]):
                    yield from self._encode_batch(batch, manifest)
                    batch, longest = {}, 0
                    yield self._encode_long(name, entry)
                    continue
                wav = read_audio(entry["wav"], self.sample_rate)
            except AudioError as error:
                self.errors[name] = str(error)
                continue
            longest = max(longest, len(wav))
            samples = longest * (len(batch) + 1)
            if batch and samples > self.sample_rate * self.batch_seconds:
                yield from self._encode_batch(batch, manifest)
                batch, longest = {}, len(wav)
            batch[name] = wav
        yield from self._encode_batch(batch, manifest)

    def beginning(self, utterance: Utterance) -> Utterance:
        """Cut an utterance to the seconds that are decoded, 20."""
        if utterance.seconds <= MOST_DECODED:
            return utterance
        frames = math.ceil(MOST_DECODED * utterance.token_rate)
        return utterance._replace(
            tokens=utterance.tokens[:frames],
            latents=utterance.latents[:frames],
            codewords=utterance.codewords[:frames],
            wav=self._first_samples(utterance.wav),
            seconds=MOST_DECODED,
        )

    def settings(self) -> dict:
        """Return what decoded speech depends on, for the report."""
        return {
            "vocoder": self.vocoder,
            "seconds_heard": f"the first {MOST_DECODED:g} of an utterance",
        }

    @property
    def vocoder(self) -> str:
        """Name of what makes the waveforms."""
        if self.tokenizer.vocoder is not None:
            return self.tokenizer.vocoder.source
        if not self.tokenizer.decodes_to_samples:
            return "Griffin-Lim"
        decoder = type(self.tokenizer.mods.decoder).__name__
        return f"none: {decoder} writes samples"

    @property
    def speakers(self) -> list[str]:
        """Names of the speakers of the training set, where the model takes
        names; else empty."""
        return getattr(self.tokenizer.mods.speaker, "names", [])

    def reconstruct(self, utterance: Utterance) -> torch.Tensor:
        """Decode an utterance in its own voice, [samples]."""
        speaker = utterance.entry.get("spk_id")
        return self.convert(utterance, utterance.wav, speaker)

    @torch.no_grad()
    def convert(
        self, utterance: Utterance, voice: torch.Tensor, speaker: str | None
    ) -> torch.Tensor:
        """Decode an utterance in another voice, to samples [samples]: that of a
        speaker whose name the model takes, or else that of the first 20 s of
        a recording [samples]."""
        tokens = self.tokenizer.fold(utterance.tokens.unsqueeze(0))
        if speaker in self.speakers:
            embedding = self.tokenizer.mods.speaker([speaker])
        else:
            voice = self._first_samples(voice).unsqueeze(0)
            embedding = self.tokenizer.speaker_batch(voice)
        return self.tokenizer.decode_batch(tokens, None, embedding)[0].cpu()

    def tokens(self, wav: torch.Tensor) -> torch.Tensor:
        """Encode samples [samples] to tokens [T, C]."""
        return _as_columns(self.tokenizer.encode_batch(wav[None])[0][0].cpu())

    def _first_samples(self, wav):
        return wav[: round(MOST_DECODED * self.sample_rate)]

    def _is_long(self, path):
        # A model of unbounded context is given everything at once.
        if self.tokenizer.span is None:
            return False
        return check_audio(path, decode=False) > self.batch_seconds

    def _encode_long(self, name, entry):
        rate, number, start = self.sample_rate, 0, []

        def blocks():
            nonlocal number
            for block in audio_blocks(entry["wav"], rate, self.batch_seconds):
                if number < MOST_DECODED * rate:
                    start.append(block)
                number += len(block)
                yield block

        latents = self.tokenizer.latents(blocks(), self.batch_seconds)
        tokens, codewords = self._quantize(latents.unsqueeze(0))
        wav = self._first_samples(torch.cat(start))
        return self._utterance(
            name, entry, tokens[0], number, latents, codewords[0], wav
        )

    @torch.no_grad()
    def _encode_batch(self, batch, manifest):
        if not batch:
            return
        wavs = torch.nn.utils.rnn.pad_sequence(
            list(batch.values()), batch_first=True
        )
        lengths = torch.tensor([len(wav) for wav in batch.values()])
        try:
            latents, lengths = self.tokenizer.latents_batch(
                wavs, lengths / wavs.shape[1]
            )
            tokens, codewords = self._quantize(latents, lengths)
        except ValueError as error:
            if len(batch) == 1:
                self.errors |= dict.fromkeys(batch, str(error))
            else:
                # Alone, so that one does not take the others with it.
                for name, wav in batch.items():
                    yield from self._encode_batch({name: wav}, manifest)
            return
        frames = torch.round(lengths.cpu() * tokens.shape[1]).int().tolist()
        latents = latents.float().cpu()
        for i, (name, number) in enumerate(zip(batch, frames, strict=True)):
            if not number:
                self.errors[name] = "shorter than a token"
                continue
            yield self._utterance(
                name,
                manifest[name],
                tokens[i, :number].clone(),
                len(batch[name]),
                # Not views, which would keep the batch, or be sent with it.
                latents[i, :number].clone(),
                codewords[i, :number].clone(),
                batch[name],
            )

    @torch.no_grad()
    def _quantize(self, latents, lengths=None):
        """Return tokens [B, T, ...] and codewords [B, T, D] of latents."""
        quantizer = self.tokenizer.mods.quantizer
        tokens = quantizer.encode(latents.to(self.tokenizer.device), lengths)
        return tokens.cpu(), quantizer.decode(tokens).float().cpu()

    def _utterance(self, name, entry, tokens, samples, *vectors):
        rate = self.tokenizer.token_rate
        seconds = samples / self.sample_rate
        return Utterance(
            name, entry, _as_columns(tokens), rate, seconds, *vectors
        )


def _encode_part(tokenizer, manifest):
    """Return the utterances of a part of a manifest, and errors by name."""
    encoder = EvaluatedModel(tokenizer)
    return list(encoder.utterances(manifest)), encoder.errors


def _as_columns(tokens):
    return tokens.unsqueeze(1) if tokens.dim() == 1 else tokens
