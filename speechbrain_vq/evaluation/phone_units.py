"""Information that units carry about phones, from one table of counts.

The functions take counts [phones, units]; classes other than phones (e.g.
characters, images' labels) are counted and scored the same way.
"""

import collections
import math
from collections.abc import Iterable, Iterator, Sequence

import torch

from speechbrain_vq.nnet.losses import entropy

from .intervals import WeightedCounts, estimate
from .metric import NON_NEGATIVE, SHARE, Estimate, Metric, Quantity
from .utterances import Utterance


def phones_at(
    phones: Sequence[tuple[float, float, str]], times: Sequence[float]
) -> list:
    """Look up the phone at each of some sorted times, None between phones;
    phones are (start, end, phone) in seconds, in order."""
    names, index = [], 0
    for time in times:
        while index < len(phones) and phones[index][1] <= time:
            index += 1
        inside = index < len(phones) and phones[index][0] <= time
        names.append(phones[index][2] if inside else None)
    return names


def frame_middles(number: int, token_rate: float) -> list[float]:
    """Return the middle of each of ``number`` frames, in seconds."""
    return [(frame + 0.5) / token_rate for frame in range(number)]


class PhoneUnitCounts:
    """Count which units occur with which phones. Without ``num_units`` there is
    one unit more than the greatest; ``add`` needs the units per second.

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
        # By language, phone and unit.
        self._counts = WeightedCounts()

    def add(
        self, units: Iterable[int], phones: Sequence[tuple[float, float, str]]
    ) -> None:
        """Count the units of an utterance with the phones at their middles,
        (start, end, phone) in seconds; units outside phones are left out."""
        units = list(units)
        middles = frame_middles(len(units), self.token_rate)
        self.add_frames(phones_at(phones, middles), units, torch.ones(1).int())

    def add_frames(
        self,
        phones: Iterable[str | None],
        units: Iterable[int],
        weights: torch.Tensor,
        language: str = "",
    ) -> None:
        """Count phone and unit of each frame with the weights of the
        utterance, [1 + R]; frames without a phone are left out."""
        pairs = zip(phones, units, strict=True)
        known = [(language, *pair) for pair in pairs if pair[0] is not None]
        self._counts.add(known, weights)

    @property
    def phones(self) -> list[str]:
        """Names of the rows, in alphabetical order."""
        return sorted({phone for _, phone, _ in self._counts.keys()})

    @property
    def languages(self) -> list[str]:
        """Names of the languages, in alphabetical order."""
        return sorted({language for language, _, _ in self._counts.keys()})

    def counts(self) -> torch.Tensor:
        """Return the table of the data, [phones, units]."""
        return next(self.tables())

    def tables(self, language: str | None = None) -> Iterator[torch.Tensor]:
        """Yield the table [phones, units] of the data, and of each replicate;
        of one language, or of all, where a phone of several is one."""
        keys = self._counts.keys()
        size = self.num_units
        if size is None:
            size = 1 + max((unit for _, _, unit in keys), default=-1)
        rows = {phone: row for row, phone in enumerate(self.phones)}
        cells = torch.tensor(
            [rows[phone] * size + unit for _, phone, unit in keys],
            dtype=torch.int64,
        )
        chosen = [language in (None, own) for own, _, _ in keys]
        chosen = torch.tensor(chosen, dtype=torch.bool)
        for numbers in self._counts.table()[chosen].T.long():
            table = torch.zeros(len(rows) * size, dtype=torch.int64)
            table.index_add_(0, cells[chosen], numbers)
            yield table.view(len(rows), size)


def mutual_information(counts: torch.Tensor) -> float:
    """Compute I(phone; unit) in nats from counts [phones, units]."""
    counts = counts.double()
    marginals = entropy(counts.sum(1)) + entropy(counts.sum(0))
    # Not negative by rounding.
    return max(float(marginals - entropy(counts.flatten())), 0.0)


def pnmi(counts: torch.Tensor) -> float:
    """Compute phone-normalized mutual information of counts [phones, units],
    I(phone; unit) / H(phone) (Hsu et al., HuBERT, 2021, section V-B); 0 of only
    one phone.

    Example
    -------
    >>> round(pnmi(torch.tensor([[5, 0, 0], [0, 2, 3]])), 9)
    1.0
    """
    of_phones = float(entropy(counts.sum(1).double()))
    return mutual_information(counts) / of_phones if of_phones > 0 else 0.0


def pnmi_within(tables: Iterable[torch.Tensor]) -> float:
    """Compute the mean PNMI of several tables of counts [phones, units], one a
    language, weighted by their counts: over languages together, units that
    tell the language tell something of the phone.

    Example
    -------
    >>> tables = torch.tensor([[5, 0], [0, 5]]), torch.tensor([[5], [5]])
    >>> pnmi_within(tables)
    0.5
    """
    tables = list(tables)
    total = sum(int(counts.sum()) for counts in tables)
    each = (pnmi(counts) * int(counts.sum()) for counts in tables)
    return sum(each) / total if total else 0.0


def nmi(counts: torch.Tensor) -> float:
    """Compute normalized mutual information of counts [classes, units], as
    scikit-learn's ``normalized_mutual_info_score``: I(class; unit) over the
    mean of the two entropies; 1 of one class and one unit.

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
    """Compute phone purity of counts [phones, units], the accuracy of mapping
    each unit to its most frequent phone (HuBERT, 2021, section V-B); 1 with a
    unit for each frame.

    Example
    -------
    >>> phone_purity(torch.tensor([[6, 0, 1], [0, 2, 1]]))
    0.9
    """
    total = float(counts.sum())
    return float(counts.amax(0).sum()) / total if total else 0.0


def phone_information(counts: torch.Tensor) -> dict[str, float]:
    """Compute all values of counts [phones, units]: ``pnmi``, ``phone_purity``,
    ``cluster_purity``, and in bits ``entropy_of_phone_given_unit`` and
    ``entropy_of_unit_given_phone``. Cluster purity is the accuracy of mapping
    each phone to its most frequent unit; it falls with the number of units.

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
    """Compute ``phone_information`` of the phones at the middles of units, and
    ``pnmi_within`` where the manifest has several languages; of each codebook
    separately.

    Example
    -------
    >>> PhoneInformation().compute()
    {}
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
        self._utterances = 0

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Count an utterance."""
        self._utterances += 1
        middles = frame_middles(len(utterance.tokens), utterance.token_rate)
        phones = phones_at(utterance.entry.get("phones") or (), middles)
        language = utterance.entry.get("lang", "")
        for book, units in enumerate(utterance.tokens.T.tolist()):
            self._books[book].add_frames(phones, units, weights, language)

    def compute(self) -> dict[str, Estimate]:
        """Estimate the values of each codebook."""
        estimates = {}
        for number, table in enumerate(self._books.values(), 1):
            if not table.phones:
                continue
            # One replicate's table at a time: they are large.
            values = []
            by_language = map(table.tables, table.languages)
            for counts, *each in zip(table.tables(), *by_language, strict=True):
                values.append(phone_information(counts))
                if len(each) > 1:
                    values[-1]["pnmi_within_languages"] = pnmi_within(each)
            for name in values[0]:
                quantity, key = self.quantities[name], name
                if len(self._books) > 1:
                    label = f"{quantity.label}, codebook {number}"
                    quantity = quantity._replace(label=label)
                    key = f"{name}_codebook_{number}"
                estimates[key] = estimate(
                    (one[name] for one in values), quantity, self._utterances
                )
        return estimates

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Explain missing values."""
        note = (
            "phone information, boundaries and the phone probe: the manifest "
            "has no phones"
        )
        return [] if estimates else [note]

    def tables(self) -> dict:
        """Return the table of the first codebook."""
        first = self._books[0]
        return {"phone_units": first.counts(), "phones": first.phones}
