"""Vocoders of a tokenizer: from log-mels or from units to waveforms."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from speechbrain.lobes.models.HifiGAN import (
    HifiganGenerator,
    UnitHifiganGenerator,
)
from torch import Tensor, nn

from speechbrain_vq.lobes.vocoder import SourceFilterVocoder
from speechbrain_vq.nnet.masks import frame_mask


class MelVocoder(nn.Module):
    """Vocoder from log-mels to waveforms.

    ``settings`` are the known settings of its log-mels, with the keys of
    ``LogMel.settings``. ``source`` is its folder or Hub name for messages.
    """

    def __init__(
        self,
        generator: SourceFilterVocoder,
        settings: dict[str, float] | None = None,
        source: str = "a vocoder",
    ):
        super().__init__()
        self.generator, self.source = generator, source
        self.settings = settings or generator.settings

    def forward(self, mels: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Synthesize waveforms [B, samples], zero at padding, from log-mels
        [B, T, M] of relative lengths [B]."""
        hop = int(self.settings["hop_length"])
        with torch.autocast(mels.device.type, enabled=False):
            return one_by_one(self._synthesize, mels.float(), lengths, hop)

    def _synthesize(self, mels):
        return self.generator(mels)

    def check(self, tokenizer: nn.Module) -> None:
        """Raise ValueError unless the tokenizer decodes to the log-mels that
        the vocoder was trained on."""
        if tokenizer.decodes_to_samples:
            raise ValueError(
                f"The decoder of {tokenizer.source} outputs waveforms itself, "
                f"and would not use {self.source}. Leave the vocoder out."
            )
        own = getattr(tokenizer.mods.features, "settings", None)
        if own is None:
            raise ValueError(
                f"The features of {tokenizer.source} have no settings to "
                f"compare with those of {self.source}. Leave the vocoder out."
            )
        _check_same(
            self,
            self.settings,
            tokenizer,
            own,
            "log-mels",
            "Train one with these settings, or leave the vocoder out: "
            "Griffin-Lim supports any log-mels.",
        )
        unknown = [key for key in own if key not in self.settings]
        if unknown:
            warnings.warn(
                f"{self.source} does not state all settings of its log-mels: "
                f"{_format(own, unknown)} is assumed, as in "
                f"{tokenizer.source}. If they differ, the speech will sound "
                "wrong.",
                stacklevel=2,
            )


class HifiGAN(MelVocoder):
    """SpeechBrain HiFi-GAN. The generator determines the settings
    ``n_mel_channels`` and ``hop_length``."""

    def __init__(
        self,
        generator: HifiganGenerator,
        settings: dict[str, float] | None = None,
        source: str = "a HiFi-GAN",
    ):
        own = {
            "n_mel_channels": generator.conv_pre.conv.in_channels,
            "hop_length": samples_per_frame(generator),
        }
        super().__init__(generator, {**(settings or {}), **own}, source)
        self.shortest = shortest(generator) - 2 * generator.inference_padding

    def _synthesize(self, mels):
        generator, hop = self.generator, self.settings["hop_length"]
        samples = mels.shape[1] * hop
        mels = _lengthen(mels, self.shortest)
        wavs = generator.inference(mels.transpose(1, 2))[:, 0]
        # `inference` pads frames at both ends. SpeechBrain centers a frame at
        # its first sample, LogMel half a hop later.
        begin = max(generator.inference_padding * hop - hop // 2, 0)
        wavs = wavs[:, begin : begin + samples]
        return nn.functional.pad(wavs, (0, samples - len(wavs[0])))


class UnitVocoder(nn.Module):
    """Vocoder from tokens and a speaker embedding to waveforms.

    The recipe ``MiniSpeech/unit-vocoder`` trains it on the tokens of one
    tokenizer, whose ``unit_settings`` are in its ``settings``. It replaces the
    tokenizer's decoder. ``source`` is its folder or Hub name for messages.
    """

    def __init__(
        self,
        generator: UnitHifiganGenerator,
        settings: dict[str, Any],
        source: str = "a unit vocoder",
    ):
        super().__init__()
        self.generator, self.settings = generator, settings
        self.source = source
        self.hop_length = samples_per_frame(generator)
        self.shortest = shortest(generator)

    def forward(
        self,
        tokens: Tensor,
        lengths: Tensor | None = None,
        speaker: Tensor | None = None,
    ) -> Tensor:
        """Synthesize waveforms [B, samples], zero at padding, from tokens
        [B, T] or [B, T, C] of relative lengths [B] and speaker embeddings
        [B, S], by default the average voice."""
        tokens = tokens.unsqueeze(-1) if tokens.dim() < 3 else tokens
        size = self.settings["codebook_size"]
        books = self.settings["num_codebooks"]
        # An out-of-range token would be mistaken for one of another codebook.
        in_range = ((tokens >= 0) & (tokens < size)).all()
        if tokens.shape[-1] != books or not in_range:
            raise ValueError(
                f"{self.source} takes tokens 0..{size - 1} of {books} "
                f"codebooks, got other tokens of shape {list(tokens.shape)}."
            )
        ids = to_ids(tokens, size)
        if speaker is None:
            shape = len(ids), self.settings["speaker_dim"]
            speaker = torch.zeros(shape, dtype=torch.float32)
        speaker = speaker.to(ids.device)
        return one_by_one(
            self._synthesize, ids, lengths, self.hop_length, speaker
        )

    def _synthesize(self, ids, speaker):
        number = ids.shape[1]
        ids = _lengthen(ids, self.shortest)
        with torch.autocast(ids.device.type, enabled=False):
            wavs = self.generator.inference(ids, spk=speaker.float())
        return wavs[:, 0, : number * self.hop_length]

    def check(self, tokenizer: nn.Module) -> None:
        """Raise ValueError unless the vocoder was trained on this
        tokenizer."""
        own = unit_settings(tokenizer)
        _check_same(
            self,
            {key: self.settings.get(key, "not stated") for key in own},
            tokenizer,
            own,
            "units",
            "Use the tokenizer that it was trained on, or train a vocoder for "
            "this one (recipe MiniSpeech/unit-vocoder, --tokenizer).",
        )


def unit_settings(tokenizer: nn.Module) -> dict[str, Any]:
    """Return the settings of a tokenizer that a unit vocoder depends on. They
    include a hash of its weights, which determine the sound of a token."""
    return {
        "tokenizer": tokenizer.fingerprint,
        "sample_rate": tokenizer.sample_rate,
        "token_rate": tokenizer.token_rate,
        "codebook_size": tokenizer.codebook_size,
        "num_codebooks": tokenizer.num_codebooks,
        "speaker_dim": tokenizer.mods.speaker.output_dim,
    }


def to_ids(tokens: Tensor, codebook_size: int) -> Tensor:
    """Convert tokens [..., C] of C codebooks to the input of SpeechBrain's
    unit HiFi-GANs, where 0 is padding and each codebook has its own range."""
    books = torch.arange(tokens.shape[-1], device=tokens.device)
    return tokens + books * codebook_size + 1


def samples_per_frame(generator: HifiganGenerator) -> int:
    """Return the number of samples that a HiFi-GAN outputs per frame."""
    return math.prod(layer.conv.stride[0] for layer in generator.ups)


def shortest(generator: HifiganGenerator) -> int:
    """Return the minimum number of input frames of a HiFi-GAN. Its convolutions
    use reflection padding, which must be shorter than the input."""
    number, rate = _padding(generator.conv_pre) + 1, 1
    kernels = generator.num_kernels
    for index, layer in enumerate(generator.ups):
        rate *= layer.conv.stride[0]
        blocks = generator.resblocks[index * kernels : (index + 1) * kernels]
        number = max(number, math.ceil((_padding(blocks) + 1) / rate))
    return max(number, math.ceil((_padding(generator.conv_post) + 1) / rate))


def one_by_one(
    synthesize: Callable[..., Tensor],
    frames: Tensor,
    lengths: Tensor | None,
    hop_length: int,
    *others: Tensor,
) -> Tensor:
    """Synthesize utterances one by one and without padding, which would affect
    their ends.

    ``synthesize`` maps frames [1, T, ...], and the same row of each of
    ``others``, to [1, samples]. Returns waveforms [B, T * hop_length], zero at
    padding.
    """
    counts = frame_mask(frames, lengths).sum(1).tolist()
    samples = frames.shape[1] * hop_length
    wavs = []
    for index, count in enumerate(counts):
        row = slice(index, index + 1)
        wav = torch.zeros(0, device=frames.device)
        if count:
            wav = synthesize(frames[row, :count], *(o[row] for o in others))[0]
        wavs.append(nn.functional.pad(wav, (0, samples - len(wav))))
    return torch.stack(wavs)


def _padding(part):
    """Return the largest padding in frames, at one end, of convolutions."""
    return max(
        layer.dilation[0] * (layer.kernel_size[0] - 1) // 2
        for layer in part.modules()
        if isinstance(layer, nn.Conv1d)
    )


def _lengthen(frames, number):
    """Repeat the last frame of [B, T, ...] up to a number of frames."""
    missing = max(number - frames.shape[1], 0)
    last = frames[:, -1:].expand(-1, missing, *frames.shape[2:])
    return torch.cat([frames, last], 1)


def _check_same(vocoder, trained, tokenizer, own, inputs, advice):
    """Raise ValueError if a known setting of the vocoder's training differs."""
    differing = [key for key in own if own[key] != trained.get(key, own[key])]
    if differing:
        raise ValueError(
            f"The vocoder {vocoder.source} was trained on {inputs} with "
            f"{_format(trained, differing)}, but "
            f"{tokenizer.source or 'the tokenizer'} has "
            f"{_format(own, differing)}: the output would be noise. {advice}"
        )


def _format(settings, keys):
    return ", ".join(f"{key}={settings[key]}" for key in keys)
