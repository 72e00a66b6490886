"""Convert speech to another voice with a pretrained tokenizer."""

import os
import pathlib
from collections.abc import Iterable

import torch
from torch import Tensor

from speechbrain_vq._names import unknown_name
from speechbrain_vq.dataio.audio import as_waveforms, listed, naming, read_audio
from speechbrain_vq.dataio.waveforms import (
    with_source,
    within_full_scale,
    write_waveform,
)

from .files import FileResults, process_files
from .tokenizer import VQTokenizer

# A voice: a speaker name, a recording, or several of them.
Target = str | os.PathLike | Iterable[str | os.PathLike]


class VoiceConverter(VQTokenizer):
    """Tokenizer that decodes in the voice of another speaker.

    The available voices depend on the ``speaker`` module. A speaker table
    contains the training speakers by name (``speakers``). Other modules embed
    the voice of any recording. With a table, ``reconstruct_file`` uses the
    average voice.

    Example
    -------
    >>> converter = VoiceConverter.from_hparams("model")  # doctest: +SKIP
    >>> converter.convert_file("a.wav", "b.wav", "out.wav")  # doctest: +SKIP
    """

    def voice(self, target: Target) -> Tensor:
        """Compute the embedding of a voice.

        Arguments
        ---------
        target : str, path or iterable of them
            Name of a speaker in the table, or a recording if the model has no
            table. Several are averaged.

        Returns
        -------
        torch.Tensor
            Speaker embedding, [1, S].

        Raises
        ------
        ValueError
            If there is no such speaker, or if a model with a speaker table is
            given a recording, or one without a table is given a name.
        """
        voices = [self._voice(os.fspath(one)) for one in listed(target)]
        if not voices:
            raise ValueError("There is no target voice: give at least one.")
        return torch.stack(voices).mean(0)

    @torch.no_grad()
    def convert_batch(
        self, wavs: Tensor, wav_lens: Tensor | None, speaker: Tensor | Target
    ) -> Tensor:
        """Convert waveforms to another voice.

        Arguments
        ---------
        wavs, wav_lens
            Waveforms and relative lengths, as for ``encode_batch``.
        speaker : torch.Tensor, str, path or iterable of them
            Speaker embeddings, [B, S] or [1, S], as returned by ``voice`` or
            ``speaker_batch``; or an argument of ``voice``.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, samples], up to one token shorter than ``wavs``.

        Raises
        ------
        ValueError
            If there is no such voice, or the numbers of voices and waveforms
            differ.
        """
        if not torch.is_tensor(speaker):
            speaker = self.voice(speaker)
        wavs = as_waveforms(wavs)
        speaker = _expand_voices(speaker, len(wavs))
        tokens, lengths = self.encode_batch(wavs, wav_lens)
        return self.decode_batch(tokens, lengths, speaker)

    def convert_file(
        self,
        source: str | os.PathLike,
        target: Tensor | Target,
        output: str | os.PathLike | None = None,
    ) -> Tensor:
        """Convert a recording to another voice.

        Arguments
        ---------
        source : path
            Recording to convert.
        target : str, path, iterable of them or torch.Tensor
            Argument of ``voice``, or the embedding that it returns.
        output : path, optional
            Wav file to write, which must not be the source or a target; by
            default no file is written.

        Returns
        -------
        torch.Tensor
            Waveform, [samples], on the CPU; as long as the recording, and
            scaled down if it would exceed [-1, 1].

        Raises
        ------
        AudioError
            If a recording is missing, not audio, truncated or empty.
        ValueError
            If there is no such voice, more than one embedding is given, a
            recording is too short, or the output is one of the recordings.
        OSError
            If the output cannot be written; no partial file remains.
        """
        is_voice = torch.is_tensor(target)
        targets = [] if is_voice else listed(target)
        _check_not_overwritten([source, *targets], output)
        voice = _expand_voices(target if is_voice else self.voice(targets), 1)
        _, wav, _ = self._resynthesize(source, lambda wavs: voice)
        wav = within_full_scale(wav)
        if output is not None:
            comment = with_source(self.made_by(voice), source)
            write_waveform(output, wav, self.sample_rate, comment)
        return wav

    def _voice(self, target):
        if self.speakers:
            if target not in self.speakers:
                raise ValueError(unknown_name("speaker", target, self.speakers))
            with self.autocast():
                return self.mods.speaker([target]).float()
        if not pathlib.Path(target).exists():
            raise ValueError(
                f"There is no recording {target}. This model has no named "
                "speakers: give a recording of the target speaker."
            )
        wavs = read_audio(target, self.sample_rate).unsqueeze(0)
        with naming(target):
            return self.speaker_batch(wavs)


def convert_files(
    places: Iterable[str | os.PathLike],
    converter: VoiceConverter,
    target: Target,
    output: str | os.PathLike,
    overwrite: bool = False,
    progress: bool = False,
) -> FileResults:
    """Convert audio files to another voice. See ``reconstruct_files``.

    ``target`` is the argument of ``VoiceConverter.voice``. For a single file,
    ``output`` may also be ``NAME.wav``.
    """
    voice = converter.voice(target)
    made_by = converter.made_by(_expand_voices(voice, 1))
    return process_files(
        places,
        output,
        lambda path, wav_file: converter.convert_file(path, voice, wav_file),
        made_by,
        overwrite,
        progress,
    )


def _expand_voices(voices, number):
    """Expand voices to one per recording; raise if the numbers differ."""
    voices = voices.view(1, -1) if voices.dim() == 1 else voices
    if len(voices) not in (1, number):
        raise ValueError(
            f"There are {len(voices)} voices for {number} recordings: give "
            "one voice, or one per recording."
        )
    return voices.expand(number, -1)


def _check_not_overwritten(recordings, output):
    """Raise ValueError if the output is one of the recordings."""
    if output is None:
        return
    output = pathlib.Path(output).resolve()
    for path in map(pathlib.Path, recordings):
        if path.exists() and path.resolve() == output:
            raise ValueError(
                f"{path} would be overwritten: choose another output."
            )
