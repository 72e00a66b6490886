"""Encoded utterances, the input of metrics, and models that encode a manifest.
For token files, see ``tokens``."""

import functools
import math
from collections.abc import Iterator
from typing import NamedTuple

import torch

from speechbrain_vq.dataio.audio import AudioError, check_audio, read_audio
from speechbrain_vq.inference.batches import encode
from speechbrain_vq.inference.engine import RayEngine

# Number of utterances that an engine encodes in one task.
_PART = 32
# Maximum seconds of an utterance to decode. DTW has quadratic cost.
MAX_DECODED = 20.0


class Utterance(NamedTuple):
    """Encoded utterance. Token files have no latents, codewords or audio."""

    name: str
    entry: dict  # Manifest entry
    tokens: torch.Tensor  # [T, C]
    token_rate: float  # Frames per second
    seconds: float
    latents: torch.Tensor | None = None  # Before quantization, [T, D]
    codewords: torch.Tensor | None = None  # After quantization, [T, D]
    wav: torch.Tensor | None = None  # [samples], only if it is to be decoded


class EvaluatedModel:
    """Model that encodes and decodes the audio of a manifest.

    Batches have ``batch_seconds`` of audio, including padding. The workers of
    an engine encode parts of the manifest.
    """

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
        """Yield the utterances of a manifest in its order. Files longer than a
        batch are encoded in chunks. For each unreadable file, a message is
        added to ``errors``."""
        entries = list(manifest.items())
        # Batches do not cross parts, so that engines give identical results.
        starts = range(0, len(entries), _PART)
        parts = [dict(entries[start : start + _PART]) for start in starts]
        encode_part = functools.partial(_encode_part, self.batch_seconds)
        if self.engine is None:
            encoded = (encode_part(self.tokenizer, part) for part in parts)
        else:
            encoded = self.engine.map(encode_part, self.tokenizer, parts)
        for utterances, errors in encoded:
            self.errors |= errors
            yield from utterances

    def beginning(self, utterance: Utterance) -> Utterance:
        """Return the first 20 s of an utterance, with its audio."""
        wav = read_audio(
            utterance.entry["wav"], self.sample_rate, duration=MAX_DECODED
        )
        utterance = utterance._replace(wav=wav)
        if utterance.seconds <= MAX_DECODED:
            return utterance
        frames = math.ceil(MAX_DECODED * utterance.token_rate)
        return utterance._replace(
            tokens=utterance.tokens[:frames],
            latents=utterance.latents[:frames],
            codewords=utterance.codewords[:frames],
            seconds=MAX_DECODED,
        )

    def settings(self) -> dict:
        """Return the decoding settings, for the report."""
        vocoder = "Griffin-Lim"
        if self.tokenizer.vocoder is not None:
            vocoder = self.tokenizer.vocoder.source
        elif self.tokenizer.decodes_to_samples:
            decoder = type(self.tokenizer.mods.decoder).__name__
            vocoder = f"none: {decoder} writes samples"
        return {
            "vocoder": vocoder,
            "seconds_decoded": f"the first {MAX_DECODED:g} of an utterance",
        }

    def reconstruct(self, utterance: Utterance) -> torch.Tensor:
        """Decode an utterance in its own voice to samples [samples]."""
        speaker = utterance.entry.get("spk_id")
        return self.convert(utterance, utterance.wav, speaker)

    @torch.no_grad()
    def convert(
        self, utterance: Utterance, voice: torch.Tensor, speaker: str | None
    ) -> torch.Tensor:
        """Decode an utterance to samples [samples] in the voice of ``speaker``
        if the model has that name, else in that of the first 20 s of the
        recording ``voice`` [samples]."""
        tokens = self.tokenizer.fold(utterance.tokens.unsqueeze(0))
        if speaker in self.tokenizer.speakers:
            embedding = self.tokenizer.mods.speaker([speaker])
        else:
            voice = voice[: round(MAX_DECODED * self.sample_rate)][None]
            embedding = self.tokenizer.speaker_batch(voice)
        return self.tokenizer.decode_batch(tokens, None, embedding)[0].cpu()

    def tokens(self, wav: torch.Tensor) -> torch.Tensor:
        """Encode samples [samples] to tokens [T, C]."""
        tokens = self.tokenizer.encode_batch(wav[None])[0][0]
        return self.tokenizer.unfold(tokens).cpu()


def _encode_part(batch_seconds, tokenizer, manifest):
    """Encode the utterances in a part of a manifest. Return them and errors by
    name."""
    wavs = {name: entry["wav"] for name, entry in manifest.items()}
    seconds, errors = {}, {}
    for name, wav in wavs.items():
        try:
            seconds[name] = check_audio(wav, decode=False)
        except AudioError as error:
            errors[name] = str(error)
    encoded = {
        name: (latents, samples / tokenizer.sample_rate)
        for name, latents, samples in encode(
            tokenizer, wavs, seconds, batch_seconds, errors, latents=True
        )
    }
    utterances = [
        _quantize(tokenizer, name, entry, *encoded[name])
        for name, entry in manifest.items()
        if name in encoded
    ]
    return utterances, errors


@torch.no_grad()
def _quantize(tokenizer, name, entry, latents, seconds):
    """Quantize latents [T, D] and return them as an utterance."""
    quantizer = tokenizer.mods.quantizer
    tokens = quantizer.encode(latents[None].to(tokenizer.device))
    codewords = quantizer.decode(tokens)[0].float().cpu()
    return Utterance(
        name,
        entry,
        tokenizer.unfold(tokens[0]).cpu(),
        tokenizer.token_rate,
        seconds,
        # A view would keep the whole batch in memory, and pickle all of it.
        latents.float().cpu().clone(),
        codewords,
    )
