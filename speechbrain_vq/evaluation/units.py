"""What units say of phones.

Authors
 * speechbrain_vq authors 2026
"""

import math
from collections.abc import Iterable, Sequence

import torch

from speechbrain_vq.nnet.losses import entropy


def phones_at(
    phones: Sequence[tuple[float, float, str]], times: Sequence[float]
) -> list:
    """The phone at each of a row of times.

    Arguments
    ---------
    phones : sequence
        (start, end, phone) in seconds, in order of time.
    times : sequence of float
        In seconds, in order.

    Returns
    -------
    list
        The phones, None where there is none.

    Example
    -------
    >>> phones_at([(0.0, 0.1, "a"), (0.1, 0.3, "b")], [0.05, 0.1, 0.4])
    ['a', 'b', None]
    """
    found, index = [], 0
    for time in times:
        while index < len(phones) and phones[index][1] <= time:
            index += 1
        inside = index < len(phones) and phones[index][0] <= time
        found.append(phones[index][2] if inside else None)
    return found


def mutual_information(counts: torch.Tensor) -> float:
    """I(phone; unit) in nats.

    Arguments
    ---------
    counts : torch.Tensor
        How often each phone met each unit, [phones, units].

    Returns
    -------
    float
        The mutual information of the empirical joint distribution.
    """
    counts = counts.double()
    apart = entropy(counts.sum(1)) + entropy(counts.sum(0))
    # Rounding must not make it negative where there is none.
    return max(float(apart - entropy(counts.flatten())), 0.0)


def pnmi(counts: torch.Tensor) -> float:
    """Phone-normalized mutual information, I(phone; unit) / H(phone): the
    share of the uncertainty about the phone that its unit takes away (Hsu et
    al., HuBERT, 2021, section V-B).

    Arguments
    ---------
    counts : torch.Tensor
        How often each phone met each unit, [phones, units].

    Returns
    -------
    float
        In 0..1; 0 where there is only one phone.

    Example
    -------
    >>> round(pnmi(torch.tensor([[5, 0, 0], [0, 2, 3]])), 9)
    1.0
    >>> abs(pnmi(torch.tensor([[2, 4], [1, 2]]))) < 1e-12
    True
    """
    of_phones = float(entropy(counts.sum(1).double()))
    return mutual_information(counts) / of_phones if of_phones > 0 else 0.0


class PhoneUnitCounts:
    """Counts of units with the phones that are spoken at their middle.

    Arguments
    ---------
    num_units : int
        Number of different units.
    token_rate : float
        Units a second.

    Example
    -------
    >>> table = PhoneUnitCounts(num_units=4, token_rate=10)
    >>> table.add([0, 0, 3], [(0.0, 0.2, "a"), (0.2, 0.3, "b")])
    >>> table.counts()
    tensor([[2, 0, 0, 0],
            [0, 0, 0, 1]])
    """

    def __init__(self, num_units: int, token_rate: float):
        self.num_units = num_units
        self.token_rate = token_rate
        self._rows = {}

    def add(
        self, units: Iterable[int], phones: Sequence[tuple[float, float, str]]
    ) -> None:
        """Counts an utterance: its units, and (start, end, phone) in seconds.
        Units beyond the phones are left out."""
        units = list(units)
        middles = [(i + 0.5) / self.token_rate for i in range(len(units))]
        for unit, phone in zip(units, phones_at(phones, middles), strict=True):
            if phone is not None:
                if phone not in self._rows:
                    self._rows[phone] = [0] * self.num_units
                self._rows[phone][unit] += 1

    def counts(self) -> torch.Tensor:
        """The table, [phones in alphabetical order, num_units]."""
        rows = [self._rows[phone] for phone in sorted(self._rows)]
        return torch.tensor(rows).view(len(rows), self.num_units)


def phone_purity(counts: torch.Tensor) -> float:
    """How often the phone is the one that its unit met most often (HuBERT,
    2021, section V-B). More units raise it: one for each frame make it 1.

    Arguments
    ---------
    counts : torch.Tensor
        How often each phone met each unit, [phones, units].

    Returns
    -------
    float
        In 0..1; 0 where nothing was counted.

    Example
    -------
    >>> phone_purity(torch.tensor([[6, 0, 1], [0, 2, 1]]))
    0.9
    """
    total = float(counts.sum())
    return float(counts.amax(0).sum()) / total if total else 0.0


def cluster_purity(counts: torch.Tensor) -> float:
    """How often the unit is the one that its phone met most often (HuBERT,
    2021, section V-B). More units lower it: a single one makes it 1.

    Arguments
    ---------
    counts : torch.Tensor
        How often each phone met each unit, [phones, units].

    Returns
    -------
    float
        In 0..1; 0 where nothing was counted.

    Example
    -------
    >>> cluster_purity(torch.tensor([[6, 0, 1], [0, 2, 1]]))
    0.8
    """
    return phone_purity(counts.T)


def phone_information(counts: torch.Tensor) -> dict[str, float]:
    """All that a table of phones and units says.

    Arguments
    ---------
    counts : torch.Tensor
        How often each phone met each unit, [phones, units].

    Returns
    -------
    dict
        ``pnmi``, ``phone_purity``, ``cluster_purity``, and in bits
        ``entropy_of_phone_given_unit`` and ``entropy_of_unit_given_phone``.

    Example
    -------
    >>> found = phone_information(torch.tensor([[2, 2, 0], [0, 0, 4]]))
    >>> round(found["entropy_of_unit_given_phone"], 9)
    0.5
    """
    counts = counts.double()
    joint = entropy(counts.flatten())
    phones, units = entropy(counts.sum(1)), entropy(counts.sum(0))
    return {
        "pnmi": pnmi(counts),
        "phone_purity": phone_purity(counts),
        "cluster_purity": cluster_purity(counts),
        "entropy_of_phone_given_unit": _bits(joint - units),
        "entropy_of_unit_given_phone": _bits(joint - phones),
    }


def _bits(nats):
    return max(float(nats), 0.0) / math.log(2)
