"""Evaluation of voice conversion: speaker similarity and token agreement."""

import collections
import os
import pathlib
import random
from collections.abc import Callable, Collection
from typing import NamedTuple

import torch

from speechbrain_vq.dataio.audio import AudioError, read_audio
from speechbrain_vq.dataio.waveforms import write_waveform

from .judges import JudgedSpeech
from .metric import SHARE, Estimate, Quantity
from .utterances import EvaluatedModel, Utterance


class Pair(NamedTuple):
    """Conversion to evaluate: the source utterance, the target speaker, the
    utterance of that speaker that conditions the decoder (``voice``), and the
    utterance to compare with (``target``), which differs unless the speaker has
    only one."""

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
    """Draw at most ``number`` distinct pairs of a source utterance and a
    different speaker.

    Target speakers are drawn from the manifest ``targets``, by default that of
    the sources. If ``speakers`` is not empty, only they are drawn.
    """
    sources = _by_speaker(manifest)
    voices = sources if targets is None else _by_speaker(targets)
    draw = random.Random(seed)
    possible = [
        (name, speaker)
        for source_speaker in sorted(sources)
        for name in sources[source_speaker]
        for speaker in sorted(voices)
        if speaker != source_speaker and (speaker in speakers or not speakers)
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
    """Count the frames in which tokens [T, C] agree, and the frames of the
    longer sequence."""
    shared = min(len(source), len(converted))
    same = (source[:shared] == converted[:shared]).all(1)
    return int(same.sum()), max(len(source), len(converted))


class Conversion(JudgedSpeech):
    """Scores of utterances converted to other voices.

    - ``token_agreement``: fraction of frames in which converted speech has the
      tokens of the source.
    - ``token_agreement_own_voice``: the same for the source decoded in its own
      voice, an upper bound set by decoder and vocoder.
    - The scores of each judge. If a judge returns ``to_source`` and
      ``to_target``, ``closer_to_target`` is added (fraction of pairs).

    ``targets`` is the manifest of the target speakers, ``pairs`` are the
    conversions from ``conversion_pairs``, and ``audio`` is a folder to write
    source, target and converted recordings to.
    """

    label = "Conversion to other voices"
    quantities = {
        "token_agreement": Quantity(
            "unchanged tokens", "share of frames", SHARE
        ),
        "token_agreement_own_voice": Quantity(
            "unchanged tokens in the source's voice", "share of frames", SHARE
        ),
    }

    def __init__(
        self,
        model: EvaluatedModel,
        targets: dict[str, dict],
        pairs: list[Pair],
        judges: dict[str, Callable],
        audio: str | os.PathLike | None = None,
    ):
        super().__init__(model, judges)
        self.targets, self.errors = targets, {}
        self.audio = None if audio is None else pathlib.Path(audio)
        self._pairs = collections.defaultdict(list)
        for number, pair in enumerate(pairs, 1):
            self._pairs[pair.source].append((number, pair))

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Add an utterance, see ``Metric``."""
        pairs = self._pairs.get(utterance.name)
        if not pairs or not len(utterance.tokens):
            return
        utterance = self.model.beginning(utterance)
        wav, speaker = utterance.wav, utterance.entry["spk_id"]
        own_voice, _ = self._agreement(utterance, wav, speaker)
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
            audio = {"source": wav, "output": output, "target": target}
            self._ratios.add("token_agreement", *agreement, weights)
            self._ratios.add("token_agreement_own_voice", *own_voice, weights)
            self.judge(audio, utterance.entry, weights)
            if self.audio is not None:
                self._write(number, pair, audio)

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Return notes on the results, see ``Metric``."""
        notes = [f"{pair}: {error}" for pair, error in self.errors.items()]
        if not estimates and not notes:
            notes = [
                "conversion: the manifest does not name two speakers (spk_id), "
                "or none that the model supports"
            ]
        elif not self.judges:
            notes.append("speaker similarity of conversions: no judge is given")
        return notes

    def settings(self) -> dict:
        """Return settings for the report, see ``Metric``."""
        return {**self.model.settings(), "converted": self.number}

    def _agreement(self, utterance, voice, speaker):
        """Convert an utterance. Return the token agreement and the samples."""
        output = self.model.convert(utterance, voice, speaker)
        tokens = self.model.tokens(output)
        return token_agreement(utterance.tokens, tokens), output

    def _write(self, number, pair, audio):
        self.audio.mkdir(parents=True, exist_ok=True)
        # Letters, digits and hyphens are valid on every file system.
        source, speaker, _, target = (
            "".join(c if c.isalnum() else "-" for c in name) for name in pair
        )
        converted = f"{source}-as-{speaker}"
        names = {"source": source, "target": target, "output": converted}
        for role, wav in audio.items():
            path = self.audio / f"{number:03}-{role}-{names[role][:100]}.wav"
            write_waveform(path, wav.clamp(-1, 1), self.model.sample_rate, role)
