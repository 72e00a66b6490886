"""Tokenize speech, and resynthesize it, with a pretrained quantizer."""

import contextlib
import hashlib
import logging
import os
import pathlib
from collections.abc import Iterable
from typing import BinaryIO

import numpy as np
import soundfile
import torch

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.audio import (
    as_waveforms,
    audio_blocks,
    check_peak,
    naming,
    read_audio,
)
from speechbrain_vq.dataio.chunks import Span, in_pieces, token_span
from speechbrain_vq.hub.encoders import download_encoder
from speechbrain_vq.hub.folder import (
    HPARAMS,
    WEIGHTS,
    find_file,
    is_folder_name,
)
from speechbrain_vq.lobes.speakers import voices
from speechbrain_vq.lobes.ssl import SSLFeatures
from speechbrain_vq.nnet.masks import frame_mask

from .codec import CodecMixin
from .hifigan import HifiGAN, UnitVocoder, one_by_one
from .interfaces import VQPretrained
from .vocoders import load_vocoder, load_vocoder_folder

logger = logging.getLogger(__name__)


class VQTokenizer(CodecMixin, VQPretrained):
    """Pretrained model that encodes speech to tokens and decodes them.

    Its modules are ``features`` (waveforms to features and back), ``encoder``,
    ``quantizer``, ``speaker`` (an embedding of the voice) and ``decoder``, as
    in ``recipes/MiniSpeech/unit-discovery``. A decoder with a method
    ``generate`` (``WaveNetDecoder``) outputs waveforms, the same ones each
    time.

    Tokens are [B, T], or [B, T, C] of C codebooks; those of DASB's interface
    (``CodecMixin``) and of EnCodec's (``EncodecAdapter``) always have the last
    dimension.

    Arguments
    ---------
    *args, **kwargs
        See ``VQPretrained``.

    Example
    -------
    >>> tokenizer = VQTokenizer.from_hparams("results/model")  # doctest: +SKIP
    >>> tokens = tokenizer.encode_file("speech.wav")  # doctest: +SKIP
    >>> tokenizer.reconstruct_file("speech.wav", "out.wav")  # doctest: +SKIP
    """

    HPARAMS_NEEDED = ["sample_rate", "token_rate"]
    MODULES_NEEDED = ["features", "encoder", "quantizer", "speaker", "decoder"]

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.vocoder = None

    @classmethod
    def from_hparams(
        cls,
        source: str | pathlib.Path,
        *args,
        vocoder: str | pathlib.Path | HifiGAN | UnitVocoder | None = None,
        num_codebooks: int | None = None,
        ssl_encoder: str | pathlib.Path | None = None,
        **kwargs,
    ) -> "VQTokenizer":
        """Load a model as ``VQPretrained.from_hparams`` does, with a vocoder.

        Arguments
        ---------
        source : path or str
            A folder, a bundled model (``speech``), or the id of a model on
            the Hub.
        *args, **kwargs
            See ``VQPretrained.from_hparams``.
        vocoder : path, str, HifiGAN or UnitVocoder, optional
            See ``use_vocoder``; by default the folder beside the model's yaml
            that this names under ``vocoder``, else Griffin-Lim.
        num_codebooks : int, optional
            See ``use_codebooks``; all by default.
        ssl_encoder : path or str, optional
            See ``use_ssl_encoder``; by default none is loaded.

        Returns
        -------
        VQTokenizer
            The model, in evaluation mode.

        Raises
        ------
        FileNotFoundError
            If there is no such model, or one of its files is missing.
        ValueError
            If the model or the vocoder cannot be used, or the two do not fit.
        """
        model = super().from_hparams(source, *args, **kwargs)
        if not vocoder:
            vocoder = model._own_vocoder()
        names = ("token", "cache_dir", "local_files_only", "force_download")
        same = {name: kwargs[name] for name in names if name in kwargs}
        model.use_vocoder(vocoder, **same)
        model.use_codebooks(num_codebooks)
        if ssl_encoder:
            model.use_ssl_encoder(ssl_encoder, **same)
        return model

    def _own_vocoder(self) -> HifiGAN | UnitVocoder | None:
        """Load the vocoder beside the model's yaml, where that names one."""
        name = getattr(self.hparams, "vocoder", None)
        if not name or self.location is None:
            return None
        if not is_folder_name(name):
            logger.warning(
                "The yaml of %s names the vocoder %r. Another folder or "
                "repository is yours to choose: give it as vocoder=. Without "
                "it Griffin-Lim makes the waveforms.",
                self.source,
                name,
            )
            return None
        # Of the model's folder, not linked from elsewhere.
        for file in (HPARAMS, WEIGHTS):
            find_file(self.location, f"{name}/{file}")
        folder = self.location / name
        return load_vocoder_folder(folder, str(folder), checkpoint=False)

    def use_vocoder(
        self,
        vocoder: str | pathlib.Path | HifiGAN | UnitVocoder | None,
        **options,
    ) -> None:
        """Choose the vocoder.

        Arguments
        ---------
        vocoder : path, str, HifiGAN, UnitVocoder or None
            A folder or a model on the Hub, such as
            ``speechbrain/tts-hifigan-libritts-16kHz``, or a loaded one: a
            HiFi-GAN of SpeechBrain, or a unit vocoder of the recipe
            ``MiniSpeech/unit-vocoder``. None: Griffin-Lim.
        **options
            See ``load_vocoder``.

        Raises
        ------
        FileNotFoundError
            If there is no such vocoder.
        ValueError
            If its inputs are not the outputs of the model; the message names
            both.
        """
        if isinstance(vocoder, str | os.PathLike):
            vocoder = load_vocoder(vocoder, **options)
        if vocoder is not None:
            if not isinstance(vocoder, HifiGAN | UnitVocoder):
                raise ValueError(
                    f"{vocoder!r} is no vocoder: give a folder, a model on "
                    "the Hub, or what load_vocoder gives."
                )
            vocoder.check(self)
            vocoder = vocoder.to(self.device)
        self.vocoder = vocoder

    def use_ssl_encoder(self, source: str | pathlib.Path, **options) -> None:
        """Load the self-supervised encoder that the model's features are of.

        It is another repository than the model's own, and so fetched only when
        it is named here; the commit is that of the model's yaml.

        Arguments
        ---------
        source : path or str
            Repository that the model's yaml names, such as
            ``microsoft/wavlm-base``, or a folder with a copy of it.
        **options
            See ``speechbrain_vq.hub.encoders.download_encoder``.

        Raises
        ------
        ValueError
            If the model has no such encoder, or was trained with another one.
        HubError
            If the Hub does not give the files.
        """
        features = self.mods.features
        if not isinstance(features, SSLFeatures):
            raise ValueError(
                f"{self.source} has no self-supervised encoder: leave "
                "ssl_encoder out."
            )
        folder = pathlib.Path(source).expanduser()
        if not folder.is_dir():
            if str(source) != features.source:
                raise ValueError(
                    f"ssl_encoder={str(source)!r}: the model was trained with "
                    f"{features.source!r}. Give that name, or a folder with a "
                    "copy of it."
                )
            folder = download_encoder(
                features.source, features.revision, **options
            )
        features.load_encoder(folder)

    def use_codebooks(self, number: int | None) -> None:
        """Choose how many codebooks to encode with: fewer make fewer bits.

        Arguments
        ---------
        number : int or None
            Number of codebooks of a residual row, the first ones; None: all.

        Raises
        ------
        ValueError
            If the model has not so many, or none can be left out.
        """
        total = self.mods.quantizer.num_codebooks
        number = self._check_first(number, total)
        self._used_codebooks = number

    @property
    def sample_rate(self) -> int:
        """Sampling rate of the waveforms in Hz."""
        return self.hparams.sample_rate

    @property
    def token_rate(self) -> float:
        """Tokens per second."""
        return self.hparams.token_rate

    @property
    def codebook_size(self) -> int:
        """Number of codewords of a codebook."""
        return self.mods.quantizer.codebook_size

    @property
    def decodes_to_samples(self) -> bool:
        """Whether the decoder outputs samples; others output features."""
        return hasattr(self.mods.decoder, "generate")

    @property
    def span(self) -> Span | None:
        """Receptive field of a token; None where it may be the whole signal."""
        return token_span(self.mods.features, self.mods.encoder)

    @torch.no_grad()
    def encode_batch(
        self,
        wavs: torch.Tensor | np.ndarray,
        wav_lens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode waveforms to tokens.

        An utterance has the same tokens alone and in a padded batch, up to
        rounding: of three hours of recorded speech in batches of 16, one of
        563 233 tokens differed.

        Arguments
        ---------
        wavs : torch.Tensor or numpy.ndarray
            Waveforms, [B, samples], [B, 1, samples] or [samples], in [-1, 1]
            or 16-bit integers; what is beyond their lengths is ignored.
        wav_lens : torch.Tensor, optional
            Relative lengths, [B]; by default all of 1.

        Returns
        -------
        tuple
            Tokens [B, T] (or [B, T, C] for C codebooks), 0 at padding, and
            their relative lengths [B].

        Raises
        ------
        TypeError, ValueError
            If the waveforms have another shape, type or scale.
        """
        latents, lengths = self.latents_batch(wavs, wav_lens)
        tokens = self.mods.quantizer.encode(latents, lengths)
        if not self.is_folded:
            tokens = tokens[..., : self.num_codebooks]
        mask = frame_mask(latents, lengths)
        mask = mask.view(mask.shape + (1,) * (tokens.dim() - 2))
        return tokens * mask, lengths

    @torch.no_grad()
    def latents_batch(
        self,
        wavs: torch.Tensor | np.ndarray,
        wav_lens: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode waveforms, as ``encode_batch`` takes them, to latents
        [B, T, H] before the quantizer, and their relative lengths [B]."""
        with self.autocast():
            features, lengths = self.mods.features(
                *self._as_batch(wavs, wav_lens)
            )
            return self.mods.encoder(features, lengths)

    @torch.no_grad()
    def decode_batch(
        self,
        tokens: torch.Tensor | np.ndarray,
        lengths: torch.Tensor | None = None,
        speaker: torch.Tensor | None = None,
        num_codebooks: int | None = None,
    ) -> torch.Tensor:
        """Decode tokens to waveforms.

        The features of an utterance are the same alone and in a padded batch,
        up to rounding, after which Griffin-Lim may find other phases.

        Arguments
        ---------
        tokens : torch.Tensor or numpy.ndarray
            Tokens of any integer type, [B, T] (or [B, T, C]); of one
            utterance also [T] (or [T, C]).
        lengths : torch.Tensor, optional
            Relative lengths, [B]; by default all of 1.
        speaker : torch.Tensor, optional
            Speaker embeddings, [B, S], as from ``speaker_batch``; by default
            that of the average voice.
        num_codebooks : int, optional
            Number of codebooks of a residual row to decode from, the first
            ones; by default those that the tokens have.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, samples], zero at padding.

        Raises
        ------
        TypeError, ValueError
            If the tokens have another type or shape, or fewer codebooks.
        """
        tokens = torch.as_tensor(tokens)
        if tokens.is_floating_point() and tokens.numel():
            raise TypeError(
                f"Tokens are integers, got {tokens.dtype}. Vectors are for "
                "decode_vectors."
            )
        tokens = tokens.to(self.device, torch.int64)
        if tokens.dim() == (1 if self.is_folded else 2):
            tokens = tokens.unsqueeze(0)
        if tokens.dim() != (2 if self.is_folded else 3):
            shape = "[B, T]" if self.is_folded else "[B, T, C]"
            raise ValueError(
                f"Tokens are {shape}, got the shape {tuple(tokens.shape)}."
            )
        books = 1 if self.is_folded else tokens.shape[-1]
        number = self._check_first(num_codebooks, books)
        tokens = tokens if self.is_folded else tokens[..., :number]
        if isinstance(self.vocoder, UnitVocoder):
            return self.vocoder(tokens, lengths, speaker)
        vectors = self.mods.quantizer.decode(tokens)
        return self.decode_vectors(vectors, lengths, speaker)

    @torch.no_grad()
    def decode_vectors(
        self,
        vectors: torch.Tensor,
        lengths: torch.Tensor | None = None,
        speaker: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode quantized vectors [B, T, H], the input of the decoder, to
        waveforms; see ``decode_batch``. A vocoder that takes tokens raises a
        ValueError."""
        if isinstance(self.vocoder, UnitVocoder):
            raise ValueError(
                f"{self.vocoder.source} takes tokens, not vectors: give them "
                "to decode_batch, or choose another with use_vocoder(None)."
            )
        size = self.mods.speaker.output_dim
        if speaker is None:
            speaker = vectors.new_zeros(len(vectors), size)
        if speaker.dim() != 2 or speaker.shape[1] != size:
            raise ValueError(
                f"Speaker embeddings are [B, {size}], got the shape "
                f"{tuple(speaker.shape)}."
            )
        if lengths is not None:
            lengths = lengths.to(self.device)
        speaker = speaker.to(self.device)
        if self.decodes_to_samples:
            return self.mods.decoder.generate(vectors, speaker, lengths)
        with self.autocast():
            vectors = vectors * frame_mask(vectors, lengths).unsqueeze(-1)
            features = self.mods.decoder(vectors, speaker, lengths)
        return self._waveforms(features.float(), lengths)

    @torch.no_grad()
    def speaker_batch(
        self,
        wavs: torch.Tensor | np.ndarray,
        wav_lens: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Embed the speakers of waveforms, as ``encode_batch`` takes them:
        [B, S]; zeros, the average voice, where the model has a table of its
        speakers."""
        waveforms = self._as_batch(wavs, wav_lens)
        features = self.mods.features(*waveforms)
        with self.autocast():
            return voices(self.mods.speaker, waveforms, features).float()

    def tokenize(
        self,
        audio: torch.Tensor | np.ndarray | Iterable[torch.Tensor],
        chunk_seconds: float | None = 60.0,
    ) -> torch.Tensor:
        """Encode audio of any length to tokens, in chunks.

        Chunks overlap by the receptive field of a token, so that the tokens
        are those of the whole, up to rounding: a latent half way between two
        codewords may go to the other one where the length, and with it the
        order of sums, is another. Of three hours of recorded speech in chunks
        of 10 s or 60 s, none of 562 987 tokens differed (CPU). A model whose
        ``span`` is None processes the signal at once.

        Arguments
        ---------
        audio : torch.Tensor, numpy.ndarray or iterable of torch.Tensor
            One waveform as for ``encode_batch``, or consecutive blocks of it,
            [samples] each.
        chunk_seconds : float, optional
            Length of a chunk; None: the signal at once.

        Returns
        -------
        torch.Tensor
            Tokens, [T] (or [T, C]).
        """
        return self._in_chunks(self._encode_one, audio, chunk_seconds)

    def latents(
        self,
        audio: torch.Tensor | np.ndarray | Iterable[torch.Tensor],
        chunk_seconds: float | None = 60.0,
    ) -> torch.Tensor:
        """Encode audio of any length to latents [T, H], in fp32 on the CPU, in
        chunks as ``tokenize``."""

        def encode(wav):
            return self.latents_batch(wav)[0][0].float().cpu()

        return self._in_chunks(encode, audio, chunk_seconds)

    def encode_file(
        self,
        path: str | os.PathLike | BinaryIO,
        chunk_seconds: float | None = 60.0,
    ) -> torch.Tensor:
        """Encode an audio file to tokens.

        The file may have any sampling rate, length and number of channels; it
        is read and encoded in chunks, see ``tokenize``.

        Arguments
        ---------
        path : path or binary file
            Audio file.
        chunk_seconds : float, optional
            Length of a chunk; None: the file at once.

        Returns
        -------
        torch.Tensor
            Tokens, [T] (or [T, C]).

        Raises
        ------
        AudioError
            If the file is missing, not audio, cut short, or too short.
        """
        blocks = audio_blocks(path, self.sample_rate, chunk_seconds or 60.0)
        with naming(path):
            return self.tokenize(blocks, chunk_seconds)

    def decode_file(
        self,
        tokens: torch.Tensor | np.ndarray | list,
        output: str | os.PathLike,
        speaker: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Decode the tokens of one utterance to a wav file.

        Arguments
        ---------
        tokens : torch.Tensor, numpy.ndarray or list
            Tokens, [T] (or [T, C]), as from ``encode_file``.
        output : path
            Wav file to write.
        speaker : torch.Tensor, optional
            Speaker embedding, [1, S]; by default that of the average voice.

        Returns
        -------
        torch.Tensor
            Waveform, [samples], in [-1, 1], on the CPU.

        Raises
        ------
        ValueError
            If these are the tokens of several utterances.
        OSError
            If the output cannot be written.
        """
        wavs = self.decode_batch(torch.as_tensor(tokens), None, speaker)
        if len(wavs) != 1:
            raise ValueError(
                f"A file holds one utterance, but there are {len(wavs)}: "
                "decode them one by one."
            )
        wav = wavs[0].cpu().clamp(-1, 1)
        self._write(wav, output)
        return wav

    def reconstruct_file(
        self, path: str | os.PathLike, output: str | os.PathLike
    ) -> torch.Tensor:
        """Resynthesize an audio file from its tokens, in its own voice.

        Arguments
        ---------
        path : path
            Audio file to read.
        output : path
            Wav file to write, as long and as loud as the original.

        Returns
        -------
        torch.Tensor
            Tokens, [T] (or [T, C]).

        Raises
        ------
        OSError
            If the output cannot be written; nothing is left of it.
        """
        tokens, wav, original = self._resynthesize(path, self.speaker_batch)
        self._write(_with_level_of(original, wav), output)
        return tokens

    def made_by(self, voice: torch.Tensor | None = None) -> str:
        """Describe what makes a waveform, for the comment in its file: the
        model, number of codebooks, vocoder, and a target voice [1, S]."""
        vocoder = getattr(self.vocoder, "source", "Griffin-Lim")
        text = (
            f"speechbrain_vq, model {self.fingerprint}, codebooks "
            f"{self.num_codebooks}, {vocoder}"
        )
        if voice is None:
            return text
        voice = voice.cpu().contiguous().numpy().tobytes()
        return f"{text}, voice {hashlib.sha256(voice).hexdigest()[:8]}"

    def _check_first(self, number, total):
        """Return how many of the codebooks to use, by default all."""
        number = total if number is None else number
        residual = self.mods.quantizer.composition == "residual"
        if not 1 <= number <= total or (number < total and not residual):
            wanted = f"from 1 to {total}" if residual else "all"
            raise ValueError(
                f"num_codebooks={number}: of {total} codebooks, take {wanted}."
            )
        return number

    def _resynthesize(self, path, embed_speaker):
        """Return tokens of a file, the waveform decoded from them, and the
        original."""
        wavs = read_audio(path, self.sample_rate).unsqueeze(0)
        with naming(path):
            tokens, lengths = self.encode_batch(wavs)
            speaker = embed_speaker(wavs)
        wav = self.decode_batch(tokens, lengths, speaker)[0].cpu()
        # Up to a token at the end is not coded.
        missing = wavs.shape[1] - len(wav)
        wav = torch.nn.functional.pad(wav, (0, missing))
        return tokens[0], wav.clamp(-1, 1), wavs[0]

    def _write(self, wav, output, voice=None):
        """Write a waveform to a file."""
        output = pathlib.Path(output)
        kind = output.suffix[1:] or "wav"
        try:
            with (
                atomic_write(output) as partial,
                soundfile.SoundFile(
                    partial, "w", self.sample_rate, 1, format=kind
                ) as file,
            ):
                # Not every format has comments.
                with contextlib.suppress(soundfile.LibsndfileError):
                    file.comment = self.made_by(voice)
                file.write(wav.numpy())
        except RuntimeError as error:
            raise OSError(
                f"{output} cannot be written: {error} Is there such a folder, "
                "and room in it?"
            ) from error
        # The name does not end in a format, or the format needs a subtype.
        except (TypeError, ValueError) as error:
            raise OSError(
                f"{output} cannot be written: {error}. Name a file that ends "
                "in .wav."
            ) from error

    def _in_chunks(self, encode, audio, chunk_seconds):
        single = isinstance(audio, torch.Tensor | np.ndarray)
        blocks = map(_as_one, [audio] if single else audio)
        if self.span is None or chunk_seconds is None:
            return encode(torch.cat(list(blocks)))
        steps = max(1, round(chunk_seconds * self.token_rate))
        return torch.cat(list(in_pieces(encode, blocks, self.span, steps)))

    def _encode_one(self, wav):
        return self.encode_batch(wav)[0][0]

    def _as_batch(self, wavs, wav_lens):
        """Return waveforms, zero beyond their lengths, and the lengths."""
        wavs = as_waveforms(wavs).to(self.device)
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs), dtype=torch.float32)
        if not torch.is_tensor(wav_lens) or not wav_lens.is_floating_point():
            raise TypeError(
                "wav_lens are relative to the longest waveform: a tensor of "
                f"floating-point numbers in [0, 1], got {wav_lens!r}."
            )
        mask = frame_mask(wavs.unsqueeze(-1), wav_lens)
        wavs = torch.where(mask, wavs, 0.0)
        loudest = float(wavs.abs().amax()) if wavs.numel() else 0.0
        check_peak(loudest, "The waveforms hold")
        return wavs, wav_lens.to(self.device)

    def _waveforms(self, features, lengths):
        """Convert features to waveforms by the vocoder or Griffin-Lim."""
        extract = self.mods.features
        if self.vocoder is None:
            hop = extract.hop_length
            return one_by_one(extract.inverse, features, lengths, hop)
        return self.vocoder(extract.denormalize(features), lengths)


def _with_level_of(original, wav):
    """Scale a waveform to the level of another, as far as its peak allows:
    decoders predict medians of log-mels, which are quieter than the mean."""
    level, peak = wav.square().mean().sqrt(), wav.abs().max()
    if not peak > 0:
        return wav
    gain = original.square().mean().sqrt().to(wav.device) / level
    return (wav * torch.minimum(gain, 1 / peak)).clamp(-1, 1)


def _as_one(block):
    """Convert to one waveform [samples]."""
    wavs = as_waveforms(block)
    if len(wavs) != 1:
        raise ValueError(
            f"One waveform [samples] is wanted, got {len(wavs)}: encode_batch "
            "takes several."
        )
    return wavs[0]
