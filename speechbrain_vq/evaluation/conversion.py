"""The measure of converted speech: does it sound as the target does, and does
it still say what the source said?

Authors
 * speechbrain_vq authors 2026
"""

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

from .sampling import Figure, Ratios
from .sources import Utterance


class Pair(NamedTuple):
    """An utterance, and the speaker who is to say it.

    Arguments
    ---------
    source : str
        Name of the utterance.
    speaker : str
        Who is to say it.
    voice : str
        Name of the speaker's utterance of which the voice is taken.
    target : str
        Name of one to compare with: another one, if there is any.
    """

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
    """Utterances and other speakers, at random, no pair of them twice.

    Arguments
    ---------
    manifest : dict
        From name to entry.
    number : int
        How many pairs, at most.
    seed : int
        Of all draws.
    speakers : collection of str
        Whose voices can be taken; any, where none are named.
    targets : dict, optional
        A manifest of those whose voices to take; by default the same.

    Returns
    -------
    list of Pair
        None where there are not two speakers.

    Example
    -------
    >>> manifest = {"a": {"spk_id": "ann"}, "b": {"spk_id": "bob"}}
    >>> sorted(pair[:2] for pair in conversion_pairs(manifest, 9))
    [('a', 'bob'), ('b', 'ann')]
    """
    sources = _by_speaker(manifest)
    of = sources if targets is None else _by_speaker(targets)
    draw = random.Random(seed)
    possible = [
        (name, speaker)
        for own in sorted(sources)
        for name in sources[own]
        for speaker in sorted(of)
        if speaker != own and (speaker in speakers or not speakers)
    ]
    pairs = []
    for name, speaker in draw.sample(possible, min(number, len(possible))):
        drawn = draw.sample(of[speaker], min(2, len(of[speaker])))
        pairs.append(Pair(name, speaker, drawn[0], drawn[-1]))
    return pairs


def _by_speaker(manifest):
    of = collections.defaultdict(list)
    for name in sorted(manifest):
        if manifest[name].get("spk_id"):
            of[manifest[name]["spk_id"]].append(name)
    return of


def token_agreement(
    source: torch.Tensor, converted: torch.Tensor
) -> tuple[int, int]:
    """At how many frames all tokens are the same, and of how many.

    Arguments
    ---------
    source, converted : torch.Tensor
        Tokens, [T, C] each; a frame that only one of them has is not the same.

    Returns
    -------
    tuple
        Frames that agree, and frames of the longer one.

    Example
    -------
    >>> token_agreement(torch.tensor([[1], [2]]), torch.tensor([[1], [3], [3]]))
    (1, 3)
    """
    both = min(len(source), len(converted))
    same = (source[:both] == converted[:both]).all(1)
    return int(same.sum()), max(len(source), len(converted))


class Conversion:
    """What becomes of utterances that another speaker is made to say.

    - ``token_agreement``: share of the frames at which the tokens of the
      converted speech are the source's; ``token_agreement_own_voice``: the
      same of the source said again in its own voice, which is what decoder and
      vocoder let through where no voice is changed;
    - of each judge what it says, and ``closer_to_target`` (share of the pairs)
      where it says ``to_source`` and ``to_target``, of a recording of the
      target of which the voice was not taken, if there is any.

    Arguments
    ---------
    convert : callable
        From an utterance, samples [samples] of the voice to say it with and
        the name of the speaker to the converted samples [samples].
    tokens : callable
        From samples [samples] to tokens [T, C].
    sample_rate : int
        In Hz.
    targets : dict
        From name to entry, of the utterances whose voices are taken.
    pairs : list of Pair
        What to convert.
    judges : dict
        By name, see ``judges``.
    audio : path, optional
        A folder for converted, source and target recordings.
    """

    def __init__(
        self,
        convert: Callable,
        tokens: Callable,
        sample_rate: int,
        targets: dict[str, dict],
        pairs: list[Pair],
        judges: dict[str, Callable],
        audio: str | os.PathLike | None = None,
    ):
        self.convert, self.tokens = convert, tokens
        self.sample_rate, self.targets = sample_rate, targets
        self.judges = judges
        self.audio = None if audio is None else pathlib.Path(audio)
        self.done, self.bad = 0, {}
        self._ratios, self._pairs = Ratios(), collections.defaultdict(list)
        for number, pair in enumerate(pairs, 1):
            self._pairs[pair.source].append((number, pair))

    def add(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Converts an utterance, if it is a source."""
        pairs = self._pairs.get(utterance.name)
        if not pairs or not len(utterance.tokens):
            return
        speaker = utterance.entry["spk_id"]
        own = self.tokens(self.convert(utterance, utterance.wav, speaker))
        kept = token_agreement(utterance.tokens, own)
        for number, pair in pairs:
            try:
                voice, target = (
                    read_audio(self.targets[name]["wav"], self.sample_rate)
                    for name in (pair.voice, pair.target)
                )
            except AudioError as error:
                self.bad[f"{pair.source} as {pair.speaker}"] = str(error)
                continue
            output = self.convert(utterance, voice, pair.speaker)
            agreed = token_agreement(utterance.tokens, self.tokens(output))
            self._ratios.add("token_agreement", *agreed, weights)
            self._ratios.add("token_agreement_own_voice", *kept, weights)
            audio = {
                "source": utterance.wav,
                "output": output,
                "target": target,
            }
            for name, value in self._judged(audio, utterance.entry).items():
                self._ratios.add(name, value, 1, weights)
            self._write(number, pair, audio)
            self.done += 1

    def figures(self) -> dict[str, Figure]:
        """The measures, with intervals."""
        return {
            name: self._ratios.figure(name) for name in self._ratios.names()
        }

    def _judged(self, audio, entry):
        found = {}
        for name, judge in self.judges.items():
            said = judge(audio, self.sample_rate, entry)
            if {"to_source", "to_target"} <= said.keys():
                closer = said["to_target"] > said["to_source"]
                said = said | {"closer_to_target": closer}
            found |= {f"{name}:{what}": float(v) for what, v in said.items()}
        return found

    def _write(self, number, pair, audio):
        if self.audio is None:
            return
        self.audio.mkdir(parents=True, exist_ok=True)
        # Of names only what every file system takes.
        names = ("".join(c if c.isalnum() else "-" for c in n) for n in pair)
        source, speaker, _, target = names
        for what, name in (
            ("source", source),
            ("target", target),
            ("output", f"{source}-as-{speaker}"),
        ):
            samples = audio[what].clamp(-1, 1).numpy()
            with atomic_write(
                self.audio / f"{number:03}-{what}-{name}.wav"
            ) as at:
                soundfile.write(at, samples, self.sample_rate)
