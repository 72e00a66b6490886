"""Vocoders as a tokenizer takes them: on log-mels, and on its units."""

import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from speechbrain.lobes.models.HifiGAN import (
    HifiganGenerator,
    UnitHifiganGenerator,
)
from torch import nn

from speechbrain_vq.lobes.vocoder import SourceFilterVocoder
from speechbrain_vq.nnet.masks import frame_mask


class MelVocoder(nn.Module):
    """Vocoder from log-mels to waveforms.

    ``settings`` are those of its log-mels, by the names of
    ``LogMel.settings``, as far as they are known. ``source`` is its folder or
    Hub name, for messages.
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

    def forward(
        self, mels: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Synthesize waveforms [B, samples], zero at padding, from log-mels
        [B, T, M] of relative lengths [B]."""
        hop = int(self.settings["hop_length"])
        with torch.autocast(mels.device.type, enabled=False):
            return one_by_one(self._synthesize, mels.float(), lengths, hop)

    def _synthesize(self, mels):
        return self.generator(mels)

    def check(self, tokenizer: nn.Module) -> None:
        """Refuse a tokenizer whose features it was not trained on; the
        ValueError names both."""
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
        options = " ".join(
            f"--{'n_mels' if key == 'n_mel_channels' else key}={value:g}"
            for key, value in self.settings.items()
            if not key.startswith("mel_f")
        )
        _check_same(
            self,
            self.settings,
            tokenizer,
            own,
            "log-mels",
            f"Train one with {options} (recipe MiniSpeech/unit-discovery), or "
            "leave the vocoder out: Griffin-Lim takes any.",
        )
        unknown = [key for key in own if key not in self.settings]
        if unknown:
            warnings.warn(
                f"{self.source} does not state all settings of its log-mels: "
                f"{_listed(own, unknown)} is assumed, as of "
                f"{tokenizer.source}. If that is not so, the speech will be "
                "wrong.",
                stacklevel=2,
            )


class HifiGAN(MelVocoder):
    """HiFi-GAN of SpeechBrain; settings that follow from the generator are
    added to those that are given."""

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
        # It adds frames before and after. Its frames are centred where their
        # samples begin, own half a hop later.
        begin = max(generator.inference_padding * hop - hop // 2, 0)
        wavs = wavs[:, begin : begin + samples]
        return nn.functional.pad(wavs, (0, samples - len(wavs[0])))


class UnitVocoder(nn.Module):
    """Vocoder from tokens and a speaker embedding to waveforms.

    The recipe ``MiniSpeech/unit-vocoder`` trains it on the tokens of one
    tokenizer, whose ``unit_settings`` are its ``settings``; the decoder of the
    tokenizer is not used. ``source`` is its folder or Hub name, for messages.
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
        tokens: torch.Tensor,
        lengths: torch.Tensor | None = None,
        speaker: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Synthesize waveforms [B, samples], zero at padding, from tokens
        [B, T] or [B, T, C] of relative lengths [B], in the voice of speaker
        embeddings [B, S], by default the average voice."""
        tokens = tokens.unsqueeze(-1) if tokens.dim() < 3 else tokens
        size = self.settings["codebook_size"]
        books = self.settings["num_codebooks"]
        # Beyond its range a token would be one of another codebook.
        inside = ((tokens >= 0) & (tokens < size)).all()
        if tokens.shape[-1] != books or not inside:
            raise ValueError(
                f"{self.source} takes tokens 0..{size - 1} of {books} "
                "codebooks, and was given others, of the shape "
                f"{list(tokens.shape)}."
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
        """Refuse a tokenizer that it was not trained with; the ValueError names
        both."""
        own = unit_settings(tokenizer)
        _check_same(
            self,
            {key: self.settings.get(key, "not stated") for key in own},
            tokenizer,
            own,
            "units",
            "Take the tokenizer that it was trained with, or train one for "
            "this (recipe MiniSpeech/unit-vocoder, --tokenizer).",
        )


def unit_settings(tokenizer: nn.Module) -> dict[str, Any]:
    """Return what identifies a tokenizer to a unit vocoder, its weights
    included: with others, the same token is another sound."""
    return {
        "tokenizer": tokenizer.fingerprint,
        "sample_rate": tokenizer.sample_rate,
        "token_rate": tokenizer.token_rate,
        "codebook_size": tokenizer.codebook_size,
        "num_codebooks": tokenizer.num_codebooks,
        "speaker_dim": tokenizer.mods.speaker.output_dim,
    }


def to_ids(tokens: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Convert tokens [..., C] of C codebooks to the input of SpeechBrain's
    unit HiFi-GANs: 0 is padding, and each codebook has a range of its own."""
    books = torch.arange(tokens.shape[-1], device=tokens.device)
    return tokens + books * codebook_size + 1


def samples_per_frame(generator: HifiganGenerator) -> int:
    """Return the number of samples that a HiFi-GAN outputs per frame."""
    return math.prod(layer.conv.stride[0] for layer in generator.ups)


def shortest(generator: HifiganGenerator) -> int:
    """Return the number of frames that a HiFi-GAN needs: its convolutions
    mirror the ends of their input, which must be longer than they reach."""
    number, rate, per = _reach(generator.conv_pre) + 1, 1, generator.num_kernels
    for index, layer in enumerate(generator.ups):
        rate *= layer.conv.stride[0]
        blocks = generator.resblocks[index * per : (index + 1) * per]
        number = max(number, math.ceil((_reach(blocks) + 1) / rate))
    return max(number, math.ceil((_reach(generator.conv_post) + 1) / rate))


def one_by_one(
    synthesize: Callable[..., torch.Tensor],
    frames: torch.Tensor,
    lengths: torch.Tensor | None,
    hop_length: int,
    *others: torch.Tensor,
) -> torch.Tensor:
    """Synthesize utterances one by one, without the padding, which would be
    mixed into their ends.

    ``synthesize`` maps frames [1, T, ...], and a row of each of the others, to
    [1, samples]. Returns [B, T * hop_length], zero beyond the relative lengths.
    """
    numbers = frame_mask(frames, lengths).sum(1).tolist()
    longest = frames.shape[1] * hop_length
    wavs = []
    for index, number in enumerate(numbers):
        one = slice(index, index + 1)
        wav = torch.zeros(0, device=frames.device)
        if number:
            wav = synthesize(frames[one, :number], *(o[one] for o in others))[0]
        wavs.append(nn.functional.pad(wav, (0, longest - len(wav))))
    return torch.stack(wavs)


def _reach(part):
    """Frames to a side that convolutions depend on, at most."""
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


def _check_same(vocoder, theirs, tokenizer, own, what, advice):
    """Refuse a vocoder that was trained on something else, as far as known."""
    other = [key for key in own if own[key] != theirs.get(key, own[key])]
    if other:
        raise ValueError(
            f"The vocoder {vocoder.source} was trained on {what} with "
            f"{_listed(theirs, other)}, but "
            f"{tokenizer.source or 'the tokenizer'} has "
            f"{_listed(own, other)}: it would make noise. {advice}"
        )


def _listed(settings, keys):
    return ", ".join(f"{key}={settings[key]}" for key in keys)
