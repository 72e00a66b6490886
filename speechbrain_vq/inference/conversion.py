"""Speech said again in another voice.

Authors
 * speechbrain_vq authors 2026
"""

import os
import pathlib
from collections.abc import Iterable

import torch

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.lobes.speakers import unknown_speaker

from .bulk import Tokenized
from .resynthesis import each_file
from .tokenizer import VQTokenizer

# A voice: the name of a speaker of the training, a recording, or several.
Target = str | os.PathLike | Iterable[str | os.PathLike]


class VoiceConverter(VQTokenizer):
    """A tokenizer whose tokens are said again in another voice.

    Which voices there are depends on its ``speaker`` module: a table knows
    those of its training by name (``speakers``); the others hear any voice in
    a recording of it. It does all that a ``VQTokenizer`` does; one with a
    table hears no voice, and reconstructs speech in the average one.

    Arguments
    ---------
    modules, hparams, run_opts, freeze_params
        See ``VQPretrained``.

    Example
    -------
    >>> converter = VoiceConverter.from_hparams("model")  # doctest: +SKIP
    >>> converter.convert_file("a.wav", "b.wav", "out.wav")  # doctest: +SKIP
    """

    @property
    def speakers(self) -> list[str]:
        """The voices that it knows by name; none if it hears them."""
        return getattr(self.mods.speaker, "names", [])

    def voice(self, target: Target) -> torch.Tensor:
        """The embedding of a voice.

        Arguments
        ---------
        target : str, path or iterable of them
            The name of a speaker, where there is a table of them, else a
            recording; of several it is the mean.

        Returns
        -------
        torch.Tensor
            [1, S].

        Raises
        ------
        ValueError
            If there is no such speaker, or a recording is given where names
            are wanted, or the other way round.
        """
        if isinstance(target, str | os.PathLike):
            target = [target]
        voices = [self._voice(os.fspath(one)) for one in target]
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
        """Waveforms in another voice.

        Arguments
        ---------
        wavs : torch.Tensor
            Waveforms, [B, samples].
        wav_lens : torch.Tensor, optional
            Relative lengths, [B]; None: all of it.
        speaker : torch.Tensor, str, path or iterable of them
            Whose voice, [B, S] or [1, S] as ``voice`` and ``speaker_batch``
            give it; or what ``voice`` takes.

        Returns
        -------
        torch.Tensor
            Waveforms, [B, samples], up to a token longer or shorter.

        Raises
        ------
        ValueError
            If there is no such voice, or there are as many as fit no batch.
        """
        if not torch.is_tensor(speaker):
            speaker = self.voice(speaker)
        speaker = _for_each(speaker, len(wavs))
        tokens, lengths = self.encode_batch(wavs, wav_lens)
        return self.decode_batch(tokens, lengths, speaker)

    def convert_file(
        self,
        source: str | os.PathLike,
        target: torch.Tensor | Target,
        output: str | os.PathLike | None = None,
    ) -> torch.Tensor:
        """What a recording says, in another voice.

        Arguments
        ---------
        source : path
            The recording.
        target : str, path, iterable of them or torch.Tensor
            Whose voice, see ``voice`` (which gives the tensor).
        output : path, optional
            The wav file to write; neither the source nor a target. None: it
            is not written.

        Returns
        -------
        torch.Tensor
            The waveform, [samples], in -1..1, on the CPU.

        Raises
        ------
        AudioError
            If a recording is missing, not audio, cut short or empty.
        ValueError
            If there is no such voice, or more than one, a recording is too
            short, or the output is one of the recordings.
        OSError
            If the output cannot be written; nothing is left of it.
        """
        if not torch.is_tensor(target):
            target = _listed(target)
            _check_apart([source, *target], output)
            target = self.voice(target)
        _check_apart([source], output)
        voice = _for_each(target, 1)
        _, wav = self._say_again(source, lambda wavs: voice)
        if output is not None:
            self._write(wav, output)
        return wav

    def _voice(self, target):
        if self.speakers:
            if target in self.speakers:
                with self.autocast():
                    return self.mods.speaker([target]).float()
            said = unknown_speaker(target, self.speakers)
            if pathlib.Path(target).is_file():
                said = (
                    f"{target} is a recording, but this model hears no voice: "
                    f"it was trained with a table of speakers. {said}"
                )
            raise ValueError(said)
        if not pathlib.Path(target).exists():
            raise ValueError(
                f"There is no recording {target}. This model knows no voice "
                "by a name: give a recording of the one to speak with."
            )
        wavs = read_audio(target, self.sample_rate).unsqueeze(0)
        try:
            return self.speaker_batch(wavs)
        # It is too short to be heard.
        except ValueError as error:
            raise ValueError(f"{target}: {error}") from error


def convert_files(
    places: Iterable[str | os.PathLike],
    converter: VoiceConverter,
    target: Target,
    output: str | os.PathLike,
    overwrite: bool = False,
    progress: bool = False,
) -> Tokenized:
    """Writes what audio files say, in another voice.

    A file is taken whole: an hour needs several GB of memory.

    Arguments
    ---------
    places : iterable of path
        Audio files and folders of them.
    converter : VoiceConverter
        The model.
    target : str, path or iterable of them
        Whose voice, see ``VoiceConverter.voice``.
    output : path
        Where the wav files go, under the names of the files; for one file it
        may be ``NAME.wav``.
    overwrite : bool
        Whether to do again what is there, as in another voice.
    progress : bool
        Whether to show a bar.

    Returns
    -------
    Tokenized
        How many files are done, and which are bad.

    Raises
    ------
    FileNotFoundError
        If there are no audio files, or not one that is named.
    OSError
        If a file cannot be written, as on a full disk.
    ValueError
        If there is no such voice, or a file would be written over another.
    """
    target = _listed(target)
    voice = converter.voice(target)

    def convert(path, written):
        _check_apart(target, written)
        converter.convert_file(path, voice, written)

    return each_file(places, output, convert, overwrite, progress)


def _for_each(voices, number):
    """One voice for all, or each its own."""
    voices = voices.view(1, -1) if voices.dim() == 1 else voices
    if len(voices) not in (1, number):
        raise ValueError(
            f"There are {len(voices)} voices for {number} recordings: give "
            "one, or one for each."
        )
    return voices.expand(number, -1)


def _listed(target):
    alone = isinstance(target, str | os.PathLike)
    return [target] if alone else list(target)


def _check_apart(read, output):
    """Nothing that is read is written over."""
    if output is None:
        return
    output = pathlib.Path(output).resolve()
    for path in map(pathlib.Path, read):
        if path.exists() and path.resolve() == output:
            raise ValueError(
                f"{path} would be written over: name another output."
            )
