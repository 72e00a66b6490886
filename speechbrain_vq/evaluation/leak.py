"""What can be read off units, and off the latents they were made of: who
speaks, and which phone it is.

Authors
 * speechbrain_vq authors 2026
"""

import collections
import random

import torch

from .probe import folds, held_out
from .sampling import Figure, Replicates, interval
from .sources import Utterance
from .units import phones_at

FRAMES_PER_UTTERANCE = 100
MOST_FRAMES = 10_000


def chosen(
    manifest: dict[str, dict],
    max_speakers: int = 100,
    max_utterances: int = 20,
    seed: int = 0,
) -> set[str]:
    """Names of utterances for the probes: so many each of so many speakers,
    or of all without a speaker, at random.

    Arguments
    ---------
    manifest : dict
        From name to entry.
    max_speakers, max_utterances : int
        How many, at most.
    seed : int
        Of the choice.

    Returns
    -------
    set of str

    Example
    -------
    >>> manifest = {f"utt-{i}": {"spk_id": "ann"} for i in range(9)}
    >>> len(chosen(manifest, max_utterances=5))
    5
    """
    of = collections.defaultdict(list)
    for name, entry in manifest.items():
        of[entry.get("spk_id") or name].append(name)
    draw = random.Random(seed)
    limit = max_speakers
    if not any(entry.get("spk_id") for entry in manifest.values()):
        limit = max_speakers * max_utterances
    speakers = draw.sample(sorted(of), min(limit, len(of)))
    return {
        name
        for speaker in speakers
        for name in draw.sample(
            of[speaker], min(max_utterances, len(of[speaker]))
        )
    }


class Leak:
    """Linear probes on units and on latents, each tested on utterances that it
    was not trained on (five-fold).

    - ``speaker_from_units``: of histograms of the units of an utterance;
      ``speaker_from_latents``: of mean and deviation of the latents, and
      ``speaker_from_codewords``: of those of the units' vectors, which is like
      compared with like; the same of ``gender`` where the manifest says it;
    - ``phone_from_units``: of the unit alone; ``phone_from_latents``: of the
      latent; of up to 100 frames of an utterance and 10 000 in all;
    - ``*_chance``: of saying what is most frequent.

    Accuracies, in 0..1; the intervals are those of the test utterances, for
    the probes as they came out.

    Arguments
    ---------
    names : set of str
        Utterances to use, see ``chosen``.
    replicates : Replicates
        For the intervals.
    seed : int
        Of frames and folds.

    Example
    -------
    >>> Leak({"utt-1"}, Replicates(0)).figures()
    {}
    """

    def __init__(self, names: set[str], replicates: Replicates, seed: int = 0):
        self.names, self.replicates, self.seed = names, replicates, seed
        self._kept = []

    def add(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Keeps what the probes need of an utterance."""
        if utterance.name not in self.names or not len(utterance.tokens):
            return
        latents, entry = utterance.latents, utterance.entry
        number = len(utterance.tokens)
        draw = random.Random(f"{self.seed} {utterance.name}")
        frames = sorted(
            draw.sample(range(number), min(number, FRAMES_PER_UTTERANCE))
        )
        times = [(frame + 0.5) / utterance.token_rate for frame in frames]
        phones = phones_at(entry.get("phones") or (), times)
        self._kept.append(
            {
                "name": utterance.name,
                "speaker": entry.get("spk_id"),
                "gender": entry.get("gender"),
                "tokens": utterance.tokens.clone(),
                "pooled": _moments(latents),
                "pooled_codewords": _moments(utterance.codewords),
                "phones": phones,
                "codes": utterance.tokens[frames],
                "latents": None if latents is None else latents[frames],
            }
        )

    def figures(self) -> dict[str, Figure]:
        """The accuracies; those that can be had."""
        found = {}
        # The order in which they came must not matter.
        self._kept.sort(key=lambda kept: kept["name"])
        for what in ("speaker", "gender"):
            found |= self._of_utterances(what)
        return found | self._of_phones()

    def _of_utterances(self, what):
        total = collections.Counter(kept[what] for kept in self._kept)
        kept = [k for k in self._kept if k[what] and total[k[what]] > 1]
        labels = [k[what] for k in kept]
        if len(set(labels)) < 2:
            return {}
        histograms = torch.stack(_histograms([k["tokens"] for k in kept]))
        inputs = {"units": histograms}
        if kept[0]["pooled"] is not None:
            inputs["latents"] = torch.stack([k["pooled"] for k in kept])
        if kept[0]["pooled_codewords"] is not None:
            inputs["codewords"] = torch.stack(
                [k["pooled_codewords"] for k in kept]
            )
        names = [k["name"] for k in kept]
        fold = folds(labels, seed=self.seed)
        return self._accuracies(what, inputs, labels, names, fold)

    def _of_phones(self):
        rows = [
            (i, j)
            for i, kept in enumerate(self._kept)
            for j, phone in enumerate(kept["phones"])
            if phone is not None
        ]
        random.Random(self.seed).shuffle(rows)
        rows = rows[:MOST_FRAMES]
        labels = [self._kept[i]["phones"][j] for i, j in rows]
        if len(set(labels)) < 2 or len(self._kept) < 2:
            return {}
        codes = torch.stack([self._kept[i]["codes"][j] for i, j in rows])
        # Codes of different codebooks are different inputs.
        first = torch.cumsum(codes.amax(0) + 1, 0) - codes.amax(0) - 1
        inputs = {"units": codes + first}
        if self._kept[0]["latents"] is not None:
            inputs["latents"] = torch.stack(
                [self._kept[i]["latents"][j] for i, j in rows]
            )
        names = [self._kept[i]["name"] for i, _ in rows]
        by_utterance = folds([0] * len(self._kept), seed=self.seed)
        fold = by_utterance[torch.tensor([i for i, _ in rows])]
        return self._accuracies("phone", inputs, labels, names, fold)

    def _accuracies(self, what, inputs, labels, names, fold):
        weights = {name: self.replicates.weights(name) for name in set(names)}
        mass = torch.stack([weights[name] for name in names]).double()
        found = {}
        for of, x in inputs.items():
            right = held_out(x, labels, fold).double() @ mass
            found[f"{what}_from_{of}"] = interval(right / mass.sum(0))
        most = collections.Counter(labels).most_common(1)[0][1]
        found[f"{what}_chance"] = Figure(most / len(labels))
        return found


def _moments(vectors):
    """Mean and deviation over time of [T, D], [2 D]; of none, none."""
    if vectors is None:
        return None
    return torch.cat([vectors.mean(0), vectors.std(0, correction=0)])


def _histograms(tokens):
    """Shares of the codes of each codebook, of each utterance, [C * K]."""
    size = 1 + max(int(one.max()) for one in tokens)
    return [
        torch.cat(
            [torch.bincount(book, minlength=size) / len(one) for book in one.T]
        )
        for one in tokens
    ]
