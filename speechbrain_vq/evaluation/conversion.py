"""Voice conversion: whether decoded speech resembles the target speaker and
keeps the tokens of the source."""

import collections
import os
import pathlib
import random
from collections.abc import Callable, Collection
from typing import NamedTuple

import soundfile
import torch

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.audio import AudioError, read_audio

from .judges import JudgedSpeech
from .metric import SHARE, Estimate, Quantity
from .utterances import EvaluatedModel, Utterance


class Pair(NamedTuple):
    """A source utterance, a target speaker, the utterance of the speaker that
    conditions the decoder, and one to compare with: another one, if there is
    any."""

    source: str
    speaker: str
    voice: str
    target: str


def conversion_pairs(
    manifest: dict[str, dict],
    number: int,
    seed: int = 0,
    speakers: Collection[str] = (),
    targets: dict[str, dict] | None = None,
) -> list[Pair]:
    """Draw at most ``number`` source utterances and other speakers, no pair of
    them twice; empty without two speakers. ``speakers`` are the target speakers
    that the model knows by name, empty: any; ``targets`` the manifest of the
    target speakers, by default that of the sources."""
    sources = _by_speaker(manifest)
    voices = sources if targets is None else _by_speaker(targets)
    draw = random.Random(seed)
    possible = [
        (name, speaker)
        for own in sorted(sources)
        for name in sources[own]
        for speaker in sorted(voices)
        if speaker != own and (speaker in speakers or not speakers)
    ]
    pairs = []
    for name, speaker in draw.sample(possible, min(number, len(possible))):
        drawn = draw.sample(voices[speaker], min(2, len(voices[speaker])))
        pairs.append(Pair(name, speaker, drawn[0], drawn[-1]))
    return pairs


def _by_speaker(manifest):
    utterances = collections.defaultdict(list)
    for name in sorted(manifest):
        if manifest[name].get("spk_id"):
            utterances[manifest[name]["spk_id"]].append(name)
    return utterances


def token_agreement(
    source: torch.Tensor, converted: torch.Tensor
) -> tuple[int, int]:
    """Count the frames of tokens [T, C] that agree, and all frames; those
    beyond the shorter sequence disagree."""
    both = min(len(source), len(converted))
    same = (source[:both] == converted[:both]).all(1)
    return int(same.sum()), max(len(source), len(converted))


class Conversion(JudgedSpeech):
    """Convert utterances to other voices and score them.

    - ``token_agreement``: share of frames at which the tokens of the converted
      speech are the source's; ``token_agreement_own_voice``: the same of the
      source decoded in its own voice, the upper bound that decoder and vocoder
      set;
    - the numbers of each judge, and ``closer_to_target`` (share of pairs) if
      it returns ``to_source`` and ``to_target``, against a recording of the
      target speaker other than the one that conditions the decoder, if there
      is any.

    ``targets`` is the manifest of the target speakers, ``pairs`` are the
    conversions to make (see ``conversion_pairs``; None: not requested), and
    ``audio`` is a folder to write converted, source and target recordings to.
    """

    label = "Conversion to other voices"
    quantities = {
        "token_agreement": Quantity("tokens kept", "share of frames", SHARE),
        "token_agreement_own_voice": Quantity(
            "tokens kept in the own voice", "share of frames", SHARE
        ),
    }

    def __init__(
        self,
        model: EvaluatedModel,
        targets: dict[str, dict],
        pairs: list[Pair] | None,
        judges: dict[str, Callable],
        audio: str | os.PathLike | None = None,
    ):
        super().__init__(model, judges)
        self.targets, self.errors = targets, {}
        self.audio = None if audio is None else pathlib.Path(audio)
        self.requested = pairs is not None
        self._pairs = collections.defaultdict(list)
        for number, pair in enumerate(pairs or (), 1):
            self._pairs[pair.source].append((number, pair))

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Convert and score an utterance, if it is a source."""
        pairs = self._pairs.get(utterance.name)
        if not pairs or not len(utterance.tokens):
            return
        utterance = self.model.beginning(utterance)
        own = self._agreement(
            utterance, utterance.wav, utterance.entry["spk_id"]
        )[0]
        for number, pair in pairs:
            paths = (self.targets[n]["wav"] for n in (pair.voice, pair.target))
            try:
                voice, target = (
                    read_audio(path, self.model.sample_rate) for path in paths
                )
            except AudioError as error:
                self.errors[f"{pair.source} as {pair.speaker}"] = str(error)
                continue
            agreement, output = self._agreement(utterance, voice, pair.speaker)
            audio = {
                "source": utterance.wav,
                "output": output,
                "target": target,
            }
            self._ratios.add("token_agreement", *agreement, weights)
            self._ratios.add("token_agreement_own_voice", *own, weights)
            self.judge(audio, utterance.entry, weights)
            self._write(number, pair, audio)

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Explain missing values."""
        if not self.requested:
            return ["conversion to other voices: not requested"]
        notes = [f"{pair}: {why}" for pair, why in self.errors.items()]
        if not estimates and not notes:
            notes = [
                "conversion: the manifest (spk_id) does not name two speakers, "
                "or none that the model knows"
            ]
        elif not self.judges:
            notes.append("likeness of converted voices: no judge is named")
        return notes

    def settings(self) -> dict:
        """Return the vocoder and the number of pairs."""
        if not self.requested:
            return {}
        return {**self.model.settings(), "converted": self.number}

    def _agreement(self, utterance, voice, speaker):
        """Return the token agreement of converted speech, and its samples."""
        output = self.model.convert(utterance, voice, speaker)
        tokens = self.model.tokens(output)
        return token_agreement(utterance.tokens, tokens), output

    def _write(self, number, pair, audio):
        if self.audio is None:
            return
        self.audio.mkdir(parents=True, exist_ok=True)
        # Names with characters that every file system takes.
        names = ("".join(c if c.isalnum() else "-" for c in n) for n in pair)
        source, speaker, _, target = names
        for role, name in (
            ("source", source),
            ("target", target),
            ("output", f"{source}-as-{speaker}"),
        ):
            samples = audio[role].clamp(-1, 1).numpy()
            path = self.audio / f"{number:03}-{role}-{name}.wav"
            with atomic_write(path) as partial:
                soundfile.write(partial, samples, self.model.sample_rate)
