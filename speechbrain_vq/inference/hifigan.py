"""What makes waveforms of features, or of tokens: HiFi-GANs of SpeechBrain.

Authors
 * speechbrain_vq authors 2026
"""

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

from speechbrain_vq.nnet.masks import frame_mask


class HifiGAN(nn.Module):
    """Log-mels to waveforms.

    Arguments
    ---------
    generator : HifiganGenerator
        Trained.
    settings : dict
        Of the log-mels that it hears, as far as they are known, by the names
        of ``LogMel.settings``; what the generator itself tells is added.
    source : str
        Where it comes from, for messages.
    """

    def __init__(
        self,
        generator: HifiganGenerator,
        settings: dict[str, float] | None = None,
        source: str = "a HiFi-GAN",
    ):
        super().__init__()
        self.generator = generator
        self.hop_length = samples_per_frame(generator)
        self.shortest = shortest(generator) - 2 * generator.inference_padding
        self.settings = {
            **(settings or {}),
            "n_mel_channels": generator.conv_pre.conv.in_channels,
            "hop_length": self.hop_length,
        }
        self.source = source

    def forward(
        self, mels: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Log-mels [B, T, M], with relative lengths [B], to waveforms [B,
        samples]; padding is not heard."""
        return one_by_one(self._speak, mels, lengths, self.hop_length)

    def _speak(self, mels):
        generator, hop = self.generator, self.hop_length
        samples = mels.shape[1] * hop
        mels = _lengthened(mels.float(), self.shortest)
        with torch.autocast(mels.device.type, enabled=False):
            wavs = generator.inference(mels.transpose(1, 2))[:, 0]
        # It adds frames before and behind. Its frames are centred where
        # their samples begin, ours half a hop later.
        begin = max(generator.inference_padding * hop - hop // 2, 0)
        wavs = wavs[:, begin : begin + samples]
        return nn.functional.pad(wavs, (0, samples - len(wavs[0])))

    def check(self, tokenizer: nn.Module) -> None:
        """Refuses a tokenizer whose features it was not trained on.

        Arguments
        ---------
        tokenizer : VQTokenizer
            Whose decoder's features it would hear.

        Raises
        ------
        ValueError
            If they differ; the message names both.
        """
        if tokenizer.decodes_to_samples:
            raise ValueError(
                f"The decoder of {tokenizer.source} writes waveforms itself, "
                f"and would never ask {self.source}. Leave the vocoder out."
            )
        ours = getattr(tokenizer.mods.features, "settings", None)
        if ours is None:
            raise ValueError(
                f"The features of {tokenizer.source} do not tell what they "
                f"are, and so whether {self.source} can hear them. Leave the "
                "vocoder out."
            )
        wanted = " ".join(
            f"--{'n_mels' if key == 'n_mel_channels' else key}={value:g}"
            for key, value in self.settings.items()
            if not key.startswith("mel_f")
        )
        _check_same(
            self,
            self.settings,
            tokenizer,
            ours,
            "log-mels",
            f"Train one with {wanted} (recipe MiniSpeech/unit-discovery), or "
            "leave the vocoder out: Griffin-Lim hears any.",
        )
        unsaid = [key for key in ours if key not in self.settings]
        if unsaid:
            warnings.warn(
                f"{self.source} does not say which log-mels it hears: it is "
                f"taken for {_listed(ours, unsaid)}, as those of {tokenizer.source} "
                "are. If it is not, the speech will be wrong.",
                stacklevel=2,
            )


class UnitVocoder(nn.Module):
    """Tokens and a speaker to waveforms, as the recipe
    ``MiniSpeech/unit-vocoder`` trains it: the decoder of the tokenizer is not
    used.

    Arguments
    ---------
    generator : UnitHifiganGenerator
        Trained on one tokenizer's tokens.
    settings : dict
        What ``unit_settings`` says of that tokenizer.
    source : str
        Where it comes from, for messages.
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
        """Tokens [B, T] or [B, T, C], with relative lengths [B], in the voice
        of a speaker [B, S] or an average one, to waveforms [B, samples];
        padding is not heard. Raises a ValueError for tokens of another
        tokenizer."""
        tokens = tokens.unsqueeze(-1) if tokens.dim() < 3 else tokens
        size = self.settings["codebook_size"]
        books = self.settings["num_codebooks"]
        # Beyond its range a token would be one of another codebook.
        inside = ((tokens >= 0) & (tokens < size)).all()
        if tokens.shape[-1] != books or not inside:
            raise ValueError(
                f"{self.source} says tokens 0..{size - 1} of {books} "
                "codebooks, and was given others, of the shape "
                f"{list(tokens.shape)}."
            )
        ids = to_ids(tokens, size)
        if speaker is None:
            shape = len(ids), self.settings["speaker_dim"]
            speaker = torch.zeros(shape, dtype=torch.float32)
        speaker = speaker.to(ids.device)
        return one_by_one(self._speak, ids, lengths, self.hop_length, speaker)

    def _speak(self, ids, speaker):
        number = ids.shape[1]
        ids = _lengthened(ids, self.shortest)
        with torch.autocast(ids.device.type, enabled=False):
            wavs = self.generator.inference(ids, spk=speaker.float())
        return wavs[:, 0, : number * self.hop_length]

    def check(self, tokenizer: nn.Module) -> None:
        """Refuses a tokenizer that it was not trained with.

        Arguments
        ---------
        tokenizer : VQTokenizer
            Whose tokens it would say.

        Raises
        ------
        ValueError
            If it is another; the message names both.
        """
        ours = unit_settings(tokenizer)
        _check_same(
            self,
            {key: self.settings.get(key, "not said") for key in ours},
            tokenizer,
            ours,
            "units",
            "Take the tokenizer that it was trained with, or train one for "
            "this (recipe MiniSpeech/unit-vocoder, --tokenizer).",
        )


def unit_settings(tokenizer: nn.Module) -> dict[str, Any]:
    """What a unit vocoder has to know of its tokenizer, the weights among
    it: the same number is another sound elsewhere."""
    return {
        "tokenizer": tokenizer.fingerprint,
        "sample_rate": tokenizer.sample_rate,
        "token_rate": tokenizer.token_rate,
        "codebook_size": tokenizer.codebook_size,
        "num_codebooks": tokenizer.num_codebooks,
        "speaker_dim": tokenizer.mods.speaker.output_dim,
    }


def to_ids(tokens: torch.Tensor, codebook_size: int) -> torch.Tensor:
    """Tokens [..., C] of C codebooks to what SpeechBrain's unit HiFi-GANs
    take: 0 is padding, and each codebook has its own range."""
    books = torch.arange(tokens.shape[-1], device=tokens.device)
    return tokens + books * codebook_size + 1


def samples_per_frame(generator: HifiganGenerator) -> int:
    """Samples that a HiFi-GAN makes of a frame."""
    return math.prod(layer.conv.stride[0] for layer in generator.ups)


def shortest(generator: HifiganGenerator) -> int:
    """Frames that a HiFi-GAN needs: its convolutions mirror the ends of what
    they hear, which has to be longer than they reach."""
    number, rate, per = _reach(generator.conv_pre) + 1, 1, generator.num_kernels
    for index, layer in enumerate(generator.ups):
        rate *= layer.conv.stride[0]
        blocks = generator.resblocks[index * per : (index + 1) * per]
        number = max(number, math.ceil((_reach(blocks) + 1) / rate))
    return max(number, math.ceil((_reach(generator.conv_post) + 1) / rate))


def one_by_one(
    speak: Callable[..., torch.Tensor],
    frames: torch.Tensor,
    lengths: torch.Tensor | None,
    hop_length: int,
    *others: torch.Tensor,
) -> torch.Tensor:
    """Waveforms of utterances, each made without the padding, which would be
    mixed into its end.

    Arguments
    ---------
    speak : callable
        From [1, T, ...], and an item of each of the others, to [1, samples].
    frames : torch.Tensor
        Features or tokens, [B, T, ...].
    lengths : torch.Tensor, optional
        Relative lengths, [B]; absent: all of it.
    hop_length : int
        Samples of a frame.
    *others : torch.Tensor
        What else there is of an utterance, [B, ...].

    Returns
    -------
    torch.Tensor
        Waveforms, [B, T * hop_length], zero beyond their lengths.
    """
    numbers = frame_mask(frames, lengths).sum(1).tolist()
    longest = frames.shape[1] * hop_length
    wavs = []
    for index, number in enumerate(numbers):
        one = slice(index, index + 1)
        wav = torch.zeros(0, device=frames.device)
        if number:
            wav = speak(frames[one, :number], *(o[one] for o in others))[0]
        wavs.append(nn.functional.pad(wav, (0, longest - len(wav))))
    return torch.stack(wavs)


def _reach(part):
    """Frames to a side that convolutions see, at most."""
    return max(
        layer.dilation[0] * (layer.kernel_size[0] - 1) // 2
        for layer in part.modules()
        if isinstance(layer, nn.Conv1d)
    )


def _lengthened(frames, number):
    """[B, T, ...] to so many frames at least, the last of them again."""
    missing = max(number - frames.shape[1], 0)
    last = frames[:, -1:].expand(-1, missing, *frames.shape[2:])
    return torch.cat([frames, last], 1)


def _check_same(vocoder, theirs, tokenizer, ours, what, way_out):
    """Refuses a vocoder that was trained on something else, as far as it says
    on what."""
    other = [key for key in ours if ours[key] != theirs.get(key, ours[key])]
    if other:
        raise ValueError(
            f"The vocoder {vocoder.source} was trained on {what} with "
            f"{_listed(theirs, other)}, but "
            f"{tokenizer.source or 'the tokenizer'} has "
            f"{_listed(ours, other)}: it would make noise. {way_out}"
        )


def _listed(settings, keys):
    return ", ".join(f"{key}={settings[key]}" for key in keys)
