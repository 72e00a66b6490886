"""The measures, each fed utterance by utterance.

Authors
 * speechbrain_vq authors 2026
"""

import collections
from collections.abc import Sequence

import torch

from .abx import abx, angular, identity
from .cells import MOST_PAIRS, comparisons
from .cost import Cost
from .fast_abx import check_fastabx, fastabx_error
from .items import Item, frames_of
from .sampling import Figure, Tally, interval
from .segmentation import (
    matches,
    phone_boundaries,
    segmentation_scores,
    unit_boundaries,
)
from .sources import Utterance
from .units import phone_information, phones_at

# Whose ABX it is.
BY = ("own", "fastabx")


class PhoneInformation:
    """What units say of the phones at their middle, see
    ``units.phone_information``; of each codebook where there are many.

    Example
    -------
    >>> PhoneInformation().figures()
    {}
    """

    def __init__(self):
        self._tallies = collections.defaultdict(Tally)

    def add(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Counts an utterance."""
        number, rate = len(utterance.tokens), utterance.token_rate
        times = [(i + 0.5) / rate for i in range(number)]
        phones = phones_at(utterance.entry.get("phones") or (), times)
        for book, units in enumerate(utterance.tokens.T.tolist()):
            pairs = zip(phones, units, strict=True)
            known = [pair for pair in pairs if pair[0] is not None]
            self._tallies[book].add(known, weights)

    def table(
        self, book: int = 0, replicate: int = 0
    ) -> tuple[torch.Tensor, list[str]]:
        """How often each phone met each unit, [phones, units], and the names
        of the phones."""
        tally = self._tallies[book]
        phones = sorted({phone for phone, _ in tally.keys()})
        rows = {phone: row for row, phone in enumerate(phones)}
        size = 1 + max((unit for _, unit in tally.keys()), default=-1)
        at = [rows[phone] * size + unit for phone, unit in tally.keys()]
        counts = torch.zeros(len(phones) * size, dtype=torch.int64)
        counts[at] = tally.table()[:, replicate].long()
        return counts.view(len(phones), size), phones

    def figures(self) -> dict[str, Figure]:
        """The measures, with intervals."""
        found = {}
        for book, tally in self._tallies.items():
            if not tally.keys():
                continue
            end = f"_codebook_{book + 1}" if len(self._tallies) > 1 else ""
            # One replicate's table at a time: they are large.
            each = [
                phone_information(self.table(book, replicate)[0])
                for replicate in range(tally.table().shape[1])
            ]
            for name in each[0]:
                found[name + end] = interval(one[name] for one in each)
        return found


class Segmentation:
    """Changes of units against boundaries of phones, 20 ms apart at most.

    Example
    -------
    >>> Segmentation().figures()
    {}
    """

    def __init__(self, tolerance: float = 0.02):
        self.tolerance, self._sums = tolerance, None

    def add(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Counts an utterance; boundaries outside its phones are left out."""
        phones = utterance.entry.get("phones")
        if not phones:
            return
        start, end = phones[0][0], phones[-1][1]
        found = unit_boundaries(utterance.tokens, utterance.token_rate)
        found = [time for time in found if start < time < end]
        reference = phone_boundaries(phones)
        hits = matches(found, reference, self.tolerance)
        numbers = torch.tensor([[hits], [len(found)], [len(reference)]])
        counted = numbers * weights
        self._sums = counted if self._sums is None else self._sums + counted

    def figures(self) -> dict[str, Figure]:
        """The measures, with intervals."""
        if self._sums is None:
            return {}
        each = [segmentation_scores(*sums) for sums in self._sums.T.tolist()]
        return {n: interval(one[n] for one in each) for n in each[0]}


class Abx:
    """ABX errors on units, on codewords and on latents.

    ``triples`` says for each condition how many are compared, and of how many
    that the items make; ``cases`` for each figure of how many utterances.

    Arguments
    ---------
    items : dict
        Items by context, ``"within"`` and ``"any"``.
    seed : int
        Of the choice of speakers of X.
    by : str
        ``"own"``, or ``"fastabx"``, which must be there, and has no intervals.

    Example
    -------
    >>> Abx({}).figures()
    {}
    """

    def __init__(
        self,
        items: dict[str, Sequence[Item]],
        seed: int = 0,
        by: str = "own",
    ):
        if by not in BY:
            raise ValueError(f"ABX is by {' or '.join(BY)}, not by {by!r}.")
        if by == "fastabx":
            check_fastabx()
        self.seed, self.by, self.dropped = seed, by, 0
        self.triples: dict[str, tuple[int, int]] = {}
        self.cases: dict[str, int] = {}
        self._wanted = collections.defaultdict(list)
        for context, some in items.items():
            for item in some:
                self._wanted[item.file].append((context, item))
        self._kept = collections.defaultdict(list)

    def add(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Keeps the frames of the items of an utterance."""
        weights = weights.float()
        for context, item in self._wanted.get(utterance.name, ()):
            at = frames_of(item, utterance.token_rate)
            if not len(utterance.tokens[at]):
                self.dropped += 1
                continue
            of = {"units": utterance.tokens[at].clone()}
            if utterance.latents is not None:
                of["codewords"] = utterance.codewords[at].clone()
                of["latents"] = utterance.latents[at].clone()
            self._kept[context].append((item, of, weights))

    def figures(self) -> dict[str, Figure]:
        """The errors, with intervals."""
        found = {}
        for context, kept in self._kept.items():
            # The order in which they came must not matter.
            kept = sorted(kept, key=lambda one: one[0])
            items = [item for item, _, _ in kept]
            weights = torch.stack([weight for _, _, weight in kept])
            for speaker in ("within", "across"):
                name = condition(speaker, context)
                among = comparisons(
                    items,
                    speaker,
                    context,
                    seed=self.seed,
                    max_pairs=MOST_PAIRS if self.by == "own" else None,
                )
                self.triples[name] = among.triples, among.of
                files = {
                    items[index].file
                    for cell in among.cells
                    for index in (*cell.x, *cell.a, *cell.b)
                }
                for of in kept[0][1]:
                    figure = self._figure(
                        [features[of] for _, features, _ in kept],
                        items,
                        (speaker, context),
                        of == "units",
                        weights,
                        among,
                    )
                    if figure.value == figure.value:
                        found[f"abx_{name}_{of}"] = figure
                        self.cases[f"abx_{name}_{of}"] = len(files)
        return found

    def _figure(self, features, items, condition, discrete, weights, among):
        if self.by == "fastabx":
            distance = "identical" if discrete else "angular"
            return Figure(
                fastabx_error(
                    features, items, *condition, distance, seed=self.seed
                )
            )
        return interval(
            abx(
                features,
                items,
                *condition,
                identity if discrete else angular,
                weights=weights,
                among=among,
            )
        )


def condition(speaker: str, context: str) -> str:
    """What a condition of ABX is called.

    Example
    -------
    >>> condition("within", "any")
    'within_speaker_any_context'
    """
    where = "same" if context == "within" else "any"
    return f"{speaker}_speaker_{where}_context"


class CostOf:
    """``Cost`` of utterances."""

    def __init__(self, codebook_size: int | None):
        self.cost = Cost(codebook_size)

    def add(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Counts an utterance."""
        self.cost.add(utterance.tokens, utterance.seconds, weights)

    def figures(self) -> dict[str, Figure]:
        """The measures, with intervals."""
        return self.cost.figures()
