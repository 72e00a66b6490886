"""Bit rate of units and usage of their codes."""

import math

import torch

from speechbrain_vq.nnet.losses import entropy

from .intervals import WeightedCounts, WeightedRatios, estimate
from .metric import NON_NEGATIVE, USAGE, Estimate, Metric, Quantity
from .utterances import Utterance

# Limit of different symbols (codes of all codebooks together).
_MOST_SYMBOLS = 100_000


class BitRate(Metric):
    """Compute tokens and bits per second of all utterances, and the usage of
    the codes.

    - ``used_codes_percent``, of all codes, without an interval: a resample
      cannot have more; and ``perplexity``, the mean of the codebooks;
    - ``frames_per_second``, and ``tokens_per_second`` of all codebooks;
    - ``bits_per_second_entropy``: of an ideal code for single tokens, each
      codebook apart;
    - ``bits_per_second_log2_codes``: of a code of fixed length;
    - ``bits_per_second_zerospeech``: ZeroSpeech's bit rate (Dunbar et al., The
      Zero Resource Speech Challenge 2019, section 3.3): symbols per second
      times the entropy of a symbol, where a symbol is the tokens of all
      codebooks;
    - ``runs_per_second``, ``bits_per_second_runs``: the same with repeated
      symbols merged, without their durations.

    Without ``codebook_size`` a codebook has one code more than the greatest
    token.

    Example
    -------
    >>> metric = BitRate(codebook_size=4)
    >>> tokens = torch.tensor([[0], [0], [1], [1]])
    >>> metric.update(Utterance("a", {}, tokens, 2.0, 2.0), torch.ones(1).int())
    >>> metric.compute()["bits_per_second_log2_codes"].value
    4.0
    """

    label = "Use of the codebook and bit rate"
    quantities = {
        name: Quantity(label, bounds=NON_NEGATIVE)
        for name, label in {
            "perplexity": "perplexity",
            "frames_per_second": "frames per second",
            "tokens_per_second": "tokens per second",
            "bits_per_second_entropy": "bits per second, by the entropy of a "
            "token",
            "bits_per_second_log2_codes": "bits per second, by log2 of the "
            "codes",
            "runs_per_second": "runs per second",
            "bits_per_second_zerospeech": "bits per second, ZeroSpeech's bit "
            "rate",
            "bits_per_second_runs": "bits per second of runs, by their entropy",
        }.items()
    }

    def __init__(self, codebook_size: int | None = None):
        self.codebook_size = codebook_size
        self._greatest, self._books, self._utterances = 0, 1, 0
        self._tokens, self._rates = WeightedCounts(), WeightedRatios()
        self._symbols = WeightedCounts(_MOST_SYMBOLS)
        self._runs = WeightedCounts(_MOST_SYMBOLS)

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Count the tokens of an utterance."""
        self._utterances += 1
        tokens, seconds = utterance.tokens, utterance.seconds
        self._books = tokens.shape[1]
        if len(tokens):
            self._greatest = max(self._greatest, int(tokens.max()))
        for book, column in enumerate(tokens.T.tolist()):
            self._tokens.add([(book, token) for token in column], weights)
        if self._books > 1:
            self._symbols.add(map(tuple, tokens.tolist()), weights)
        runs = torch.unique_consecutive(tokens, dim=0)
        self._runs.add(map(tuple, runs.tolist()), weights)
        self._rates.add("frames", len(tokens), seconds, weights)
        self._rates.add("runs", len(runs), seconds, weights)

    def compute(self) -> dict[str, Estimate]:
        """Estimate the usage and the rates."""
        frames, runs = map(self._rates.values, ("frames", "runs"))
        table = self._tokens.table()
        books = torch.tensor([book for book, _ in self._tokens.keys()])
        by_book = [_bits(table[books == book]) for book in range(self._books)]
        bits = sum(by_book)
        used = 100 * len(table) / (self._books * self._size)
        values = {
            "perplexity": sum(2**book for book in by_book) / self._books,
            "frames_per_second": frames,
            "tokens_per_second": frames * self._books,
            "bits_per_second_entropy": frames * bits,
            "bits_per_second_log2_codes": frames
            * (self._books * math.log2(self._size)),
            "runs_per_second": runs,
        }
        if not self._symbols.full:
            symbol = bits
            if self._books > 1:
                symbol = _bits(self._symbols.table())
            values["bits_per_second_zerospeech"] = frames * symbol
        if not self._runs.full:
            run = _bits(self._runs.table())
            values["bits_per_second_runs"] = runs * run
        key = "used_codes_percent"
        return {key: Estimate(used, quantity=USAGE[key])} | {
            name: estimate(rates, self.quantities[name], self._utterances)
            for name, rates in values.items()
        }

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Explain missing values."""
        notes = []
        if not self.codebook_size:
            notes.append(
                "the codebook's size: taken as the greatest token, and one "
                "(set codebook_size)"
            )
        if "bits_per_second_zerospeech" not in estimates:
            notes.append("ZeroSpeech's bit rate: too many different codes")
        return notes

    def tables(self) -> dict:
        """Return how often each code occurs, ``code_counts`` [C, K]."""
        counts = torch.zeros(self._books, self._size, dtype=torch.int64)
        for key, number in zip(
            self._tokens.keys(), self._tokens.table()[:, 0], strict=True
        ):
            counts[key] = int(number)
        return {"code_counts": counts}

    @property
    def _size(self):
        return self.codebook_size or self._greatest + 1


def _bits(counts):
    """Return the entropy of counts [tokens, 1 + R] in bits, [1 + R]."""
    return entropy(counts.double().T) / math.log(2)
