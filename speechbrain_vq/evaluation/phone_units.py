"""Phone information of units, from tables of counts [phones, units]. Other
classes, such as characters or image labels, can replace phones."""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from speechbrain_vq.nnet.losses import entropy

from .intervals import WeightedCounts, estimate
from .metric import NON_NEGATIVE, SHARE, Estimate, Metric, Quantity
from .utterances import Utterance


def phones_of_frames(
    phones: Sequence[tuple[float, float, str]] | None,
    number: int,
    token_rate: float,
) -> list:
    """Return the phone at the midpoint of each of ``number`` frames; None
    between phones. ``phones`` are sorted tuples (start, end, phone), in
    seconds."""
    phones, names, index = phones or (), [], 0
    for frame in range(number):
        time = (frame + 0.5) / token_rate
        while index < len(phones) and phones[index][1] <= time:
            index += 1
        inside = index < len(phones) and phones[index][0] <= time
        names.append(phones[index][2] if inside else None)
    return names


class PhoneUnitCounts:
    """Table of the numbers of frames with each phone and unit.

    By default ``num_units`` is the largest unit plus one. ``token_rate``, the
    number of units per second, is only required by ``add``.

    Example
    -------
    >>> table = PhoneUnitCounts(num_units=4, token_rate=10)
    >>> table.add([0, 0, 3], [(0.0, 0.2, "a"), (0.2, 0.3, "b")])
    >>> table.counts()
    tensor([[2, 0, 0, 0],
            [0, 0, 0, 1]])
    """

    def __init__(
        self, num_units: int | None = None, token_rate: float | None = None
    ):
        self.num_units, self.token_rate = num_units, token_rate
        # Keys are (language, phone, unit).
        self._counts = WeightedCounts()

    def add(
        self, units: Iterable[int], phones: Sequence[tuple[float, float, str]]
    ) -> None:
        """Count the units of an utterance with the phones at their midpoints.
        Units outside phones are left out. See ``phones_of_frames``."""
        units = list(units)
        names = phones_of_frames(phones, len(units), self.token_rate)
        self.add_frames(names, units, torch.ones(1).int())

    def add_frames(
        self,
        phones: Iterable[str | None],
        units: Iterable[int],
        weights: torch.Tensor,
        language: str = "",
    ) -> None:
        """Count the phone and unit of each frame with the utterance's weights
        [1 + R]. Frames without a phone are left out."""
        pairs = zip(phones, units, strict=True)
        known = [(language, *pair) for pair in pairs if pair[0] is not None]
        self._counts.add(known, weights)

    @property
    def phones(self) -> list[str]:
        """Names of the table's rows, in alphabetical order."""
        return sorted({phone for _, phone, _ in self._counts.keys()})

    @property
    def languages(self) -> list[str]:
        """Names of the languages, in alphabetical order."""
        return sorted({language for language, _, _ in self._counts.keys()})

    def counts(self) -> torch.Tensor:
        """Return the table of the data [phones, units]."""
        return next(self.tables())

    def tables(self, language: str | None = None) -> Iterator[torch.Tensor]:
        """Yield the tables [phones, units] of the data and each replicate, for
        one language, or for all languages with equal phone names merged."""
        keys = self._counts.keys()
        size = self.num_units
        if size is None:
            size = 1 + max((unit for _, _, unit in keys), default=-1)
        rows = {phone: row for row, phone in enumerate(self.phones)}
        kept = [i for i, key in enumerate(keys) if language in (None, key[0])]
        cells = [rows[keys[i][1]] * size + keys[i][2] for i in kept]
        for numbers in self._counts.table()[kept].T.long():
            table = torch.zeros(len(rows) * size, dtype=torch.int64)
            table.index_add_(0, torch.tensor(cells).long(), numbers)
            yield table.view(len(rows), size)


def mutual_information(counts: torch.Tensor) -> float:
    """Compute I(phone; unit) in nats from counts [phones, units]."""
    counts = counts.double()
    marginals = entropy(counts.sum(1)) + entropy(counts.sum(0))
    # Rounding could make it negative.
    return max(float(marginals - entropy(counts.flatten())), 0.0)


def pnmi(counts: torch.Tensor) -> float:
    """Compute phone-normalized mutual information, I(phone; unit) / H(phone),
    from counts [phones, units] (Hsu et al., HuBERT, 2021, section V-B); 0 if
    there is only one phone.

    Example
    -------
    >>> round(pnmi(torch.tensor([[5, 0, 0], [0, 2, 3]])), 9)
    1.0
    """
    phone_entropy = float(entropy(counts.sum(1).double()))
    if phone_entropy <= 0:
        return 0.0
    return mutual_information(counts) / phone_entropy


def pnmi_within(tables: Iterable[torch.Tensor]) -> float:
    """Compute the mean PNMI of several languages from their counts [phones,
    units], weighted by their totals. In a joint table, units that reveal only
    the language would carry information about the phone.

    Example
    -------
    >>> tables = torch.tensor([[5, 0], [0, 5]]), torch.tensor([[5], [5]])
    >>> pnmi_within(tables)
    0.5
    """
    tables = list(tables)
    total = sum(int(counts.sum()) for counts in tables)
    weighted = (pnmi(counts) * int(counts.sum()) for counts in tables)
    return sum(weighted) / total if total else 0.0


def nmi(counts: torch.Tensor) -> float:
    """Compute normalized mutual information from counts [classes, units]:
    I(class; unit) over the mean of the two entropies, like scikit-learn's
    ``normalized_mutual_info_score``; 1 for one class and one unit.

    Example
    -------
    >>> round(nmi(torch.tensor([[5, 0], [0, 5]])), 9)
    1.0
    """
    counts = counts.double()
    entropies = float(entropy(counts.sum(1)) + entropy(counts.sum(0)))
    if entropies <= 0:
        return 1.0
    return 2 * mutual_information(counts) / entropies


def phone_purity(counts: torch.Tensor) -> float:
    """Compute phone purity from counts [phones, units], the accuracy of mapping
    each unit to its most frequent phone (HuBERT, 2021, section V-B). It is 1 if
    each frame has its own unit.

    Example
    -------
    >>> phone_purity(torch.tensor([[6, 0, 1], [0, 2, 1]]))
    0.9
    """
    total = float(counts.sum())
    return float(counts.amax(0).sum()) / total if total else 0.0


def phone_information(counts: torch.Tensor) -> dict[str, float]:
    """Compute all values from counts [phones, units]: ``pnmi``,
    ``phone_purity``, ``cluster_purity``, and in bits
    ``entropy_of_phone_given_unit`` and ``entropy_of_unit_given_phone``. Cluster
    purity is the accuracy of mapping each phone to its most frequent unit; it
    falls as the number of units grows.

    Example
    -------
    >>> values = phone_information(torch.tensor([[2, 2, 0], [0, 0, 4]]))
    >>> round(values["entropy_of_unit_given_phone"], 9)
    0.5
    """
    counts = counts.double()
    joint = entropy(counts.flatten())
    phones, units = entropy(counts.sum(1)), entropy(counts.sum(0))
    return {
        "pnmi": pnmi(counts),
        "phone_purity": phone_purity(counts),
        "cluster_purity": phone_purity(counts.T),
        "entropy_of_phone_given_unit": _bits(joint - units),
        "entropy_of_unit_given_phone": _bits(joint - phones),
    }


def _bits(nats):
    return max(float(nats), 0.0) / math.log(2)


class PhoneInformation(Metric):
    """``phone_information`` of each codebook, with the phones at the midpoints
    of units, and ``pnmi_within`` if the manifest has several languages.
    """

    label = "Information about phones"
    quantities = {
        "pnmi": Quantity("PNMI", bounds=SHARE),
        "pnmi_within_languages": Quantity(
            "PNMI within languages", bounds=SHARE
        ),
        "phone_purity": Quantity("phone purity", bounds=SHARE),
        "cluster_purity": Quantity("cluster purity", bounds=SHARE),
        "entropy_of_phone_given_unit": Quantity(
            "entropy of phone given unit", "bits", NON_NEGATIVE
        ),
        "entropy_of_unit_given_phone": Quantity(
            "entropy of unit given phone", "bits", NON_NEGATIVE
        ),
    }

    def __init__(self):
        self._books = collections.defaultdict(PhoneUnitCounts)
        self._total, self._utterances, self._has_phones = 0, 0, False

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Add an utterance, see ``Metric``."""
        phones = phones_of_frames(
            utterance.entry.get("phones"),
            len(utterance.tokens),
            utterance.token_rate,
        )
        self._total += 1
        self._has_phones |= bool(utterance.entry.get("phones"))
        self._utterances += any(phone is not None for phone in phones)
        language = utterance.entry.get("lang") or ""
        for book, units in enumerate(utterance.tokens.T.tolist()):
            self._books[book].add_frames(phones, units, weights, language)

    def compute(self) -> dict[str, Estimate]:
        """Compute the results, see ``Metric``."""
        if not self._utterances:
            return {}
        estimates = {}
        for number, table in enumerate(self._books.values(), 1):
            # Tables are large: keep only those of one replicate in memory.
            values = []
            languages = map(table.tables, table.languages)
            for counts, *by_language in zip(
                table.tables(), *languages, strict=True
            ):
                if not counts.any():
                    continue  # A replicate without any of the utterances
                values.append(phone_information(counts))
                if len(by_language) > 1:
                    within = pnmi_within(by_language)
                    values[-1]["pnmi_within_languages"] = within
            for name in values[0]:
                quantity, key = self.quantities[name], name
                if len(self._books) > 1:
                    label = f"{quantity.label}, codebook {number}"
                    quantity = quantity._replace(label=label)
                    key = f"{name}_codebook_{number}"
                estimates[key] = estimate((v[name] for v in values), quantity)
        return estimates

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Return notes on the results, see ``Metric``."""
        if not estimates and self._has_phones:
            return ["phone information: no midpoint of a token is in a phone"]
        if not estimates:
            return [
                "phone information, boundaries and the phone probe: the "
                "manifest has no phones"
            ]
        without = self._total - self._utterances
        note = f"phones: {without} of {self._total} utterances have none"
        return [note] if without else []

    def tables(self) -> dict:
        """Return the table of the first codebook, and its phones."""
        first = self._books[0]
        return {"phone_units": first.counts(), "phones": first.phones}
