"""Speech to tokens and back with a pretrained quantizer.

Authors
 * speechbrain_vq authors 2026
"""

import os
import pathlib
from collections.abc import Iterable
from typing import BinaryIO

import soundfile
import torch

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.nnet.masks import frame_mask

from .chunks import Span, in_pieces, token_span
from .codec import CodecMixin
from .files import audio_blocks
from .interfaces import VQPretrained


class VQTokenizer(CodecMixin, VQPretrained):
    """A pretrained model that turns speech into tokens and tokens into speech.

    Its modules are ``features`` (waveforms to features and back), ``encoder``,
    ``quantizer``, ``speaker`` (an embedding of whose voice it is) and
    ``decoder``, as in ``recipes/MiniSpeech/unit-discovery``.

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
        vectors = self.mods.quantizer.decode(tokens.to(self.device))
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
        if speaker is None:
            size = self.mods.speaker.output_dim
            speaker = vectors.new_zeros(len(vectors), size)
        if lengths is not None:
            lengths = lengths.to(self.device)
        with self.autocast():
            vectors = vectors * frame_mask(vectors, lengths).unsqueeze(-1)
            features = self.mods.decoder(
                vectors, speaker.to(self.device), lengths
            )
        return self._waveforms(features.float(), lengths)

    @torch.no_grad()
    def speaker_batch(
        self, wavs: torch.Tensor, wav_lens: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Whose voice the waveforms [B, samples] have, [B, S]."""
        with self.autocast():
            return self.mods.speaker(*self._features(wavs, wav_lens)).float()

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
        wavs = read_audio(path, self.sample_rate).unsqueeze(0)
        tokens, lengths = self.encode_batch(wavs)
        speaker = self.speaker_batch(wavs)
        decoded = self.decode_batch(tokens, lengths, speaker)[0].cpu()
        output = pathlib.Path(output)
        partial = output.with_name(f".{output.name}.partial")
        try:
            soundfile.write(
                partial,
                decoded.clamp(-1, 1).numpy(),
                self.sample_rate,
                format=output.suffix[1:] or "wav",
            )
        except RuntimeError as error:
            partial.unlink(missing_ok=True)
            raise OSError(
                f"{output} cannot be written: {error} Is there such a folder, "
                "and room in it?"
            ) from error
        partial.replace(output)
        return tokens[0]

    def forward(self, wavs, wav_lens=None):
        """See ``encode_batch``."""
        return self.encode_batch(wavs, wav_lens)

    def _encode_one(self, wav):
        return self.encode_batch(wav.unsqueeze(0))[0][0]

    def _features(self, wavs, wav_lens):
        wavs = wavs.to(self.device)
        if wav_lens is None:
            wav_lens = torch.ones(len(wavs))
        mask = frame_mask(wavs.unsqueeze(-1), wav_lens)
        wavs = torch.where(mask, wavs, 0.0)
        return self.mods.features(wavs, wav_lens.to(self.device))

    def _waveforms(self, features, lengths):
        # One by one: Griffin-Lim would mix the padding into the end.
        frames = frame_mask(features, lengths).sum(1).tolist()
        wavs = [
            self.mods.features.inverse(item[None, :number])[0]
            if number
            else item.new_zeros(0)
            for item, number in zip(features, frames, strict=True)
        ]
        longest = features.shape[1] * self.mods.features.hop_length
        return torch.stack(
            [torch.nn.functional.pad(w, (0, longest - len(w))) for w in wavs]
        )
