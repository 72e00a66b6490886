"""Encode audio files to tokens, and decode tokens to audio files."""

import hashlib
import os
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

from speechbrain_vq.dataio.audio import audio_blocks, naming, read_audio
from speechbrain_vq.dataio.chunks import check_seconds
from speechbrain_vq.dataio.waveforms import (
    with_level_of,
    with_source,
    within_full_scale,
    write_waveform,
)


class AudioFilesMixin:
    """Methods of ``VQTokenizer`` that read and write audio files."""

    def encode_file(
        self,
        path: str | os.PathLike | BinaryIO,
        chunk_seconds: float | None = 60.0,
    ) -> Tensor:
        """Encode an audio file to tokens.

        Arguments
        ---------
        path : path or binary file
            Audio of any sampling rate, length and number of channels.
        chunk_seconds : float, optional
            Chunk length in seconds, see ``tokenize``; None encodes the whole
            file at once.

        Returns
        -------
        torch.Tensor
            Tokens, [T] (or [T, C]).

        Raises
        ------
        AudioError
            If the file is missing, not audio, truncated, or too short.
        ValueError
            If ``chunk_seconds`` is not finite and above 0.

        Example
        -------
        >>> from speechbrain_vq import VQTokenizer, bundled
        >>> tokenizer = VQTokenizer.from_hparams("speech", num_codebooks=4)
        >>> tokenizer.encode_file(f"{bundled('speech')}/example.wav").shape[1]
        4
        """
        check_seconds("chunk_seconds", chunk_seconds)
        blocks = audio_blocks(path, self.sample_rate, chunk_seconds or 60.0)
        with naming(path):
            return self.tokenize(blocks, chunk_seconds)

    def decode_file(
        self,
        tokens: Tensor | np.ndarray | list,
        output: str | os.PathLike,
        speaker: Tensor | None = None,
    ) -> Tensor:
        """Decode the tokens of one utterance to a wav file.

        Arguments
        ---------
        tokens : torch.Tensor, numpy.ndarray or list
            Tokens, [T] (or [T, C]), as returned by ``encode_file``.
        output : path
            Wav file to write.
        speaker : torch.Tensor, optional
            Speaker embedding, [1, S]; by default the average voice.

        Returns
        -------
        torch.Tensor
            Waveform, [samples], on the CPU; scaled down if it would exceed
            [-1, 1].

        Raises
        ------
        TypeError, ValueError
            If the tokens are invalid, or of several utterances.
        OSError
            If the output cannot be written.
        """
        wavs = self.decode_batch(torch.as_tensor(tokens), None, speaker)
        if len(wavs) != 1:
            raise ValueError(
                f"A file contains one utterance, but there are {len(wavs)}: "
                "decode them one by one."
            )
        wav = within_full_scale(wavs[0].cpu())
        write_waveform(output, wav, self.sample_rate, self.made_by())
        return wav

    def reconstruct_file(
        self, path: str | os.PathLike, output: str | os.PathLike
    ) -> Tensor:
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
            If the output cannot be written; no partial file remains.
        """
        tokens, wav, original = self._resynthesize(path, self.speaker_batch)
        wav = with_level_of(original, wav)
        comment = with_source(self.made_by(), path)
        write_waveform(output, wav, self.sample_rate, comment)
        return tokens

    def made_by(self, voice: Tensor | None = None) -> str:
        """Describe the origin of waveforms, for the comment in their files:
        model, number of codebooks, vocoder, and target voice [1, S] if any."""
        vocoder = getattr(self.vocoder, "source", "Griffin-Lim")
        text = (
            f"speechbrain_vq, model {self.fingerprint}, codebooks "
            f"{self.num_codebooks}, {vocoder}"
        )
        if voice is None:
            return text
        voice = voice.cpu().contiguous().numpy().tobytes()
        return f"{text}, voice {hashlib.sha256(voice).hexdigest()[:8]}"

    def _resynthesize(self, path, embed_speaker):
        """Return tokens, decoded waveform and original waveform of a file."""
        wavs = read_audio(path, self.sample_rate).unsqueeze(0)
        with naming(path):
            tokens, lengths = self.encode_batch(wavs)
            speaker = embed_speaker(wavs)
        wav = self.decode_batch(tokens, lengths, speaker)[0].cpu()
        # Up to one token at the end is not encoded.
        wav = torch.nn.functional.pad(wav, (0, wavs.shape[1] - len(wav)))
        return tokens[0], wav, wavs[0]
