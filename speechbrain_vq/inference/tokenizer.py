"""Speech to tokens and back with a pretrained quantizer.

Authors
 * speechbrain_vq authors 2026
"""

import logging
import os
import pathlib
from collections.abc import Iterable
from typing import BinaryIO

import soundfile
import torch

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.replacing import replacing
from speechbrain_vq.hub.folder import (
    HPARAMS,
    WEIGHTS,
    find_file,
    is_folder_name,
)
from speechbrain_vq.lobes.speakers import voices
from speechbrain_vq.nnet.masks import frame_mask

from .chunks import Span, in_pieces, token_span
from .codec import CodecMixin
from .files import audio_blocks
from .hifigan import HifiGAN, UnitVocoder, one_by_one
from .interfaces import VQPretrained
from .vocoders import load_vocoder, load_vocoder_folder

logger = logging.getLogger(__name__)


class VQTokenizer(CodecMixin, VQPretrained):
    """A pretrained model that turns speech into tokens and tokens into speech.

    Its modules are ``features`` (waveforms to features and back), ``encoder``,
    ``quantizer``, ``speaker`` (an embedding of whose voice it is) and
    ``decoder``, as in ``recipes/MiniSpeech/unit-discovery``. A decoder with a
    method ``generate`` (``WaveNetDecoder``) writes the waveforms itself, the
    same ones each time.

    Tokens are [B, T], or [B, T, C] of C codebooks; the methods of DASB and
    EnCodec (see ``CodecMixin``) always have the last dimension.

    Arguments
    ---------
    modules, hparams, run_opts, freeze_params
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
        **kwargs,
    ) -> "VQTokenizer":
        """As ``VQPretrained.from_hparams``, with a choice of what makes the
        waveforms.

        Arguments
        ---------
        source : path or str
            A folder, or the id of a model on the Hub.
        *args, **kwargs
            See ``VQPretrained.from_hparams``.
        vocoder : path, str, HifiGAN or UnitVocoder, optional
            See ``use_vocoder``; by default the folder beside the model's yaml
            that this names under ``vocoder``, else Griffin-Lim.

        Returns
        -------
        VQTokenizer
            The model, in evaluation mode.

        Raises
        ------
        FileNotFoundError
            If there is no such model, or one of its files is missing.
        ValueError
            If it cannot be used, or should not be, or the vocoder does not
            hear what the model says.
        """
        model = super().from_hparams(source, *args, **kwargs)
        if not vocoder:
            vocoder = model.own_vocoder()
        names = ("token", "cache_dir", "local_files_only", "force_download")
        same = {name: kwargs[name] for name in names if name in kwargs}
        model.use_vocoder(vocoder, **same)
        return model

    def own_vocoder(self) -> HifiGAN | UnitVocoder | None:
        """Load the vocoder that came with the model.

        Returns
        -------
        HifiGAN, UnitVocoder or None
            The vocoder in the folder that the model's yaml names; None where
            it names none, or one elsewhere.
        """
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
        """Chooses what makes the waveforms.

        Arguments
        ---------
        vocoder : path, str, HifiGAN, UnitVocoder or None
            A folder or a model on the Hub, such as
            ``speechbrain/tts-hifigan-libritts-16kHz``, or one that is loaded:
            a HiFi-GAN of SpeechBrain, or one on the tokens themselves, as the
            recipe ``MiniSpeech/unit-vocoder`` trains it. None: Griffin-Lim.
        **options
            See ``load_vocoder``.

        Raises
        ------
        FileNotFoundError
            If there is no such vocoder.
        ValueError
            If it hears something else than the model says; the message names
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

    @property
    def sample_rate(self) -> int:
        """Of the waveforms, in Hz."""
        return self.hparams.sample_rate

    @property
    def token_rate(self) -> float:
        """Tokens a second."""
        return self.hparams.token_rate

    @property
    def codebook_size(self) -> int:
        """Number of different tokens."""
        return self.mods.quantizer.codebook_size

    @property
    def span(self) -> Span | None:
        """What a token sees of the waveform; None: maybe all of it."""
        return token_span(self.mods.features, self.mods.encoder)

    @torch.no_grad()
    def encode_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Waveforms to tokens; an utterance has the same ones alone and in a
        padded batch, up to rounding (of three hours of recorded speech, one of
        563 233 tokens was another in batches of 16).

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms, [B, samples]; what is beyond their lengths is not heard.
        wav_lens : torch.Tensor, optional
            Relative lengths, [B]; absent: all of it.

        Returns
        -------
        tuple
            Tokens [B, T] (or [B, T, C] for C codebooks), 0 at padding, and
            their relative lengths [B].
        """
        with self.autocast():
            features, lengths = self._features(wavs, wav_lens)
            latents, lengths = self.mods.encoder(features, lengths)
        tokens = self.mods.quantizer.encode(latents, lengths)
        mask = frame_mask(latents, lengths)
        mask = mask.view(mask.shape + (1,) * (tokens.dim() - 2))
        return tokens * mask, lengths

    @torch.no_grad()
    def decode_batch(
        self,
        tokens: torch.Tensor,
        lengths: torch.Tensor | None = None,
        speaker: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Tokens to waveforms; padding is not heard. The features of an
        utterance are the same alone and in a batch, up to rounding, of which
        Griffin-Lim may make other phases.

        Arguments
        ---------
        tokens : torch.Tensor
            Tokens, [B, T] (or [B, T, C]).
        lengths : torch.Tensor, optional
            Relative lengths, [B]; absent: all of it.
        speaker : torch.Tensor, optional
            Whose voice, [B, S], as ``speaker_batch`` gives it; absent: the
            average one.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, samples].
        """
        tokens = tokens.to(self.device)
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
        """Quantized vectors to waveforms; the rest as in ``decode_batch``.

        Arguments
        ---------
        vectors : torch.Tensor
            What the quantizer feeds on, [B, T, H].
        lengths : torch.Tensor, optional
            Relative lengths, [B].
        speaker : torch.Tensor, optional
            Whose voice, [B, S].

        Returns
        -------
        torch.Tensor
            Waveforms, [B, samples].
        """
        if isinstance(self.vocoder, UnitVocoder):
            raise ValueError(
                f"{self.vocoder.source} says tokens, not vectors: give them to "
                "decode_batch, or choose another with use_vocoder(None)."
            )
        if speaker is None:
            size = self.mods.speaker.output_dim
            speaker = vectors.new_zeros(len(vectors), size)
        if lengths is not None:
            lengths = lengths.to(self.device)
        speaker = speaker.to(self.device)
        # Decoders make features, but for those that write samples.
        if hasattr(self.mods.decoder, "generate"):
            return self.mods.decoder.generate(vectors, speaker, lengths)
        with self.autocast():
            vectors = vectors * frame_mask(vectors, lengths).unsqueeze(-1)
            features = self.mods.decoder(vectors, speaker, lengths)
        return self._waveforms(features.float(), lengths)

    @torch.no_grad()
    def speaker_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Whose voice the waveforms [B, samples] have, [B, S]; zeros, which
        are the average one, if the model knows voices by name only."""
        features = self._features(wavs, wav_lens)
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs), dtype=torch.float32)
        waveforms = wavs.to(self.device), wav_lens.to(self.device)
        with self.autocast():
            return voices(self.mods.speaker, waveforms, features).float()

    def tokenize(
        self,
        audio: torch.Tensor | Iterable[torch.Tensor],
        chunk_seconds: float | None = 60.0,
    ) -> torch.Tensor:
        """Audio of any length to tokens, piece by piece.

        Pieces overlap by what a token sees, so that the tokens are those of
        the whole, up to rounding: sums may be taken in another order where
        the length is another, and a latent half way between two codewords may
        fall to the other side. (Three hours of recorded speech, on CPU: none
        of 562 987 tokens, in pieces of 10 s or 60 s.) A model that may see
        everything, whose ``span`` is None, is given everything at once.

        Arguments
        ---------
        audio : torch.Tensor or iterable of torch.Tensor
            Samples, [samples], or blocks of them in order.
        chunk_seconds : float, optional
            Length of a piece; None: all at once.

        Returns
        -------
        torch.Tensor
            Tokens, [T] (or [T, C]).
        """
        blocks = [audio] if torch.is_tensor(audio) else audio
        if self.span is None or chunk_seconds is None:
            return self._encode_one(torch.cat(list(blocks)))
        steps = max(1, round(chunk_seconds * self.token_rate))
        pieces = in_pieces(self._encode_one, blocks, self.span, steps)
        return torch.cat(list(pieces))

    def encode_file(
        self,
        path: str | os.PathLike | BinaryIO,
        chunk_seconds: float | None = 60.0,
    ) -> torch.Tensor:
        """The tokens of an audio file of any rate, length and number of
        channels; it is read and encoded piece by piece, see ``tokenize``.

        Arguments
        ---------
        path : path or file
            The file.
        chunk_seconds : float, optional
            Length of a piece; None: all at once.

        Returns
        -------
        torch.Tensor
            Tokens, [T] (or [T, C]).

        Raises
        ------
        AudioError
            If the file is missing, not audio, cut short or empty.
        """
        blocks = audio_blocks(path, self.sample_rate, chunk_seconds or 60.0)
        return self.tokenize(blocks, chunk_seconds)

    def reconstruct_file(
        self, path: str | pathlib.Path, output: str | pathlib.Path
    ) -> torch.Tensor:
        """Writes what the tokens keep of an audio file, in its own voice.

        Arguments
        ---------
        path : path
            The file to read.
        output : path
            The wav file to write.

        Returns
        -------
        torch.Tensor
            The tokens, [T] (or [T, C]).

        Raises
        ------
        OSError
            If the output cannot be written; nothing is left of it.
        """
        tokens, decoded = self._say_again(path, self.speaker_batch)
        self._write(decoded, output)
        return tokens

    def _say_again(self, path, speaker_of):
        """The tokens of a file, and what they are in a voice."""
        wavs = read_audio(path, self.sample_rate).unsqueeze(0)
        try:
            tokens, lengths = self.encode_batch(wavs)
            speaker = speaker_of(wavs)
        # It is too short to be heard.
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        decoded = self.decode_batch(tokens, lengths, speaker)[0]
        return tokens[0], decoded.cpu().clamp(-1, 1)

    def _write(self, wav, output):
        """A waveform as a file."""
        output = pathlib.Path(output)
        try:
            with replacing(output) as partial:
                soundfile.write(
                    partial,
                    wav.numpy(),
                    self.sample_rate,
                    format=output.suffix[1:] or "wav",
                )
        except RuntimeError as error:
            raise OSError(
                f"{output} cannot be written: {error} Is there such a folder, "
                "and room in it?"
            ) from error
        # Its name ends in what is no format, or in one that does not say how.
        except (TypeError, ValueError) as error:
            raise OSError(
                f"{output} cannot be written: {error}. Name a file that ends "
                "in .wav."
            ) from error

    def forward(self, wavs, wav_lens=None):
        """See ``encode_batch``."""
        return self.encode_batch(wavs, wav_lens)

    def _encode_one(self, wav):
        return self.encode_batch(wav.unsqueeze(0))[0][0]

    def _features(self, wavs, wav_lens):
        wavs = wavs.to(self.device)
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs), dtype=torch.float32)
        mask = frame_mask(wavs.unsqueeze(-1), wav_lens)
        wavs = torch.where(mask, wavs, 0.0)
        return self.mods.features(wavs, wav_lens.to(self.device))

    def _waveforms(self, features, lengths):
        extract = self.mods.features
        if self.vocoder is None:
            hop = extract.hop_length
            return one_by_one(extract.inverse, features, lengths, hop)
        return self.vocoder(extract.denormalize(features), lengths)
