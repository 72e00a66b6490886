"""Convert speech to another voice with a pretrained tokenizer."""

import os
import pathlib
from collections.abc import Iterable

import torch

from speechbrain_vq.dataio.audio import (
    as_waveforms,
    listed,
    naming,
    read_audio,
)
from speechbrain_vq.dataio.waveforms import (
    within_full_scale,
    write_waveform,
)
from speechbrain_vq.lobes.speakers import unknown_speaker

from .files import FileResults, process_files
from .tokenizer import VQTokenizer

# A voice: a speaker name, a recording, or several of them.
Target = str | os.PathLike | Iterable[str | os.PathLike]


class VoiceConverter(VQTokenizer):
    """Tokenizer that decodes with the voice of another speaker.

    The voices depend on its ``speaker`` module: a table has those of its
    training by name (``speakers``); other modules embed the voice of any
    recording. It does all that a ``VQTokenizer`` does; with a table, speech is
    reconstructed in the average voice.

    Arguments
    ---------
    *args, **kwargs
        See ``VQPretrained``.

    Example
    -------
    >>> converter = VoiceConverter.from_hparams("model")  # doctest: +SKIP
    >>> converter.convert_file("a.wav", "b.wav", "out.wav")  # doctest: +SKIP
    """

    def voice(self, target: Target) -> torch.Tensor:
        """Embed a voice.

        Arguments
        ---------
        target : str, path or iterable of them
            Name of a speaker of the table, or a recording where there is no
            table; of several, the mean is taken.

        Returns
        -------
        torch.Tensor
            Speaker embedding, [1, S].

        Raises
        ------
        ValueError
            If there is no such speaker, or a recording is given to a model
            with a table, or a name to one without.
        """
        voices = [self._voice(os.fspath(one)) for one in listed(target)]
        if not voices:
            raise ValueError("There is no target: give a voice to speak with.")
        return torch.stack(voices).mean(0)

    @torch.no_grad()
    def convert_batch(
        self,
        wavs: torch.Tensor,
        wav_lens: torch.Tensor | None,
        speaker: torch.Tensor | Target,
    ) -> torch.Tensor:
        """Convert waveforms to another voice.

        Arguments
        ---------
        wavs, wav_lens
            Waveforms and relative lengths, as for ``encode_batch``.
        speaker : torch.Tensor, str, path or iterable of them
            Speaker embeddings, [B, S] or [1, S], as from ``voice`` or
            ``speaker_batch``; or an argument of ``voice``.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, samples], up to a token shorter.

        Raises
        ------
        ValueError
            If there is no such voice, or not one for each waveform.

        Example
        -------
        >>> converter.convert_batch(wavs, None, "b.wav")  # doctest: +SKIP
        """
        if not torch.is_tensor(speaker):
            speaker = self.voice(speaker)
        wavs = as_waveforms(wavs)
        speaker = _for_each(speaker, len(wavs))
        tokens, lengths = self.encode_batch(wavs, wav_lens)
        return self.decode_batch(tokens, lengths, speaker)

    def convert_file(
        self,
        source: str | os.PathLike,
        target: torch.Tensor | Target,
        output: str | os.PathLike | None = None,
    ) -> torch.Tensor:
        """Convert a recording to another voice.

        Arguments
        ---------
        source : path
            Recording to convert.
        target : str, path, iterable of them or torch.Tensor
            Voice, as for ``voice``, or the embedding that it returns.
        output : path, optional
            Wav file to write; neither the source nor a target. None: no file
            is written.

        Returns
        -------
        torch.Tensor
            Waveform, [samples], on the CPU; as long as the recording,
            attenuated as a whole where it would exceed [-1, 1].

        Raises
        ------
        AudioError
            If a recording is missing, not audio, cut short or empty.
        ValueError
            If there is no such voice, or more than one, a recording is too
            short, or the output is one of the recordings.
        OSError
            If the output cannot be written; nothing is left of it.

        Example
        -------
        >>> converter.convert_file("a.wav", "b.wav", "c.wav")  # doctest: +SKIP
        """
        is_voice = torch.is_tensor(target)
        targets = [] if is_voice else listed(target)
        _check_apart([source, *targets], output)
        voice = _for_each(target if is_voice else self.voice(targets), 1)
        _, wav, _ = self._resynthesize(source, lambda wavs: voice)
        wav = within_full_scale(wav)
        if output is not None:
            made_by = self.made_by(voice)
            write_waveform(output, wav, self.sample_rate, made_by)
        return wav

    def _voice(self, target):
        if self.speakers:
            if target in self.speakers:
                with self.autocast():
                    return self.mods.speaker([target]).float()
            message = unknown_speaker(target, self.speakers)
            if pathlib.Path(target).is_file():
                message = (
                    f"{target} is a recording, but this model takes none: it "
                    f"was trained with a table of speakers. {message}"
                )
            raise ValueError(message)
        if not pathlib.Path(target).exists():
            raise ValueError(
                f"There is no recording {target}. This model has no speakers "
                "by name: give a recording of the target speaker."
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
    """Convert audio files to another voice, as ``reconstruct_files`` does to
    their own.

    ``target`` is that of ``VoiceConverter.voice``; for a single file, the
    output may also be ``NAME.wav``.
    """
    target = listed(target)
    voice = converter.voice(target)

    def convert(path, wav_file):
        _check_apart(target, wav_file)
        converter.convert_file(path, voice, wav_file)

    made_by = converter.made_by(_for_each(voice, 1))
    return process_files(places, output, convert, made_by, overwrite, progress)


def _for_each(voices, number):
    """Expand one voice to all recordings, or check that each has one."""
    voices = voices.view(1, -1) if voices.dim() == 1 else voices
    if len(voices) not in (1, number):
        raise ValueError(
            f"There are {len(voices)} voices for {number} recordings: give "
            "one, or one for each."
        )
    return voices.expand(number, -1)


def _check_apart(recordings, output):
    """Refuse an output that is one of the recordings."""
    if output is None:
        return
    output = pathlib.Path(output).resolve()
    for path in map(pathlib.Path, recordings):
        if path.exists() and path.resolve() == output:
            raise ValueError(
                f"{path} would be written over: name another output."
            )
