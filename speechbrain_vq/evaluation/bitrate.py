"""Bit rate of units and codebook usage."""

import math

import torch

from speechbrain_vq.nnet.losses import entropy

from .intervals import WeightedCounts, WeightedRatios, estimate
from .metric import NON_NEGATIVE, USAGE, Estimate, Metric, Quantity
from .utterances import Utterance

# Maximum number of distinct symbols to count. A symbol consists of a frame's
# tokens in all codebooks.
_MAX_SYMBOLS = 100_000


class BitRate(Metric):
    """Tokens and bits per second over all utterances, and codebook usage.

    - ``used_codes_percent``: percentage of all codes that occur. It has no
      interval, as a resample cannot use more codes than the data.
    - ``perplexity``: mean over codebooks.
    - ``frames_per_second``, and ``tokens_per_second`` in all codebooks.
    - ``bits_per_second_entropy``: rate of an ideal code for single tokens, with
      codebooks coded separately.
    - ``bits_per_second_log2_codes``: rate of a fixed-length code.
    - ``bits_per_second_zerospeech``: ZeroSpeech's bit rate (Dunbar et al., The
      Zero Resource Speech Challenge 2019, section 3.3), symbols per second
      times the entropy of a symbol, the tokens of all codebooks in a frame.
    - ``runs_per_second``, ``bits_per_second_runs``: the same with repeated
      symbols merged and their durations ignored.

    ``used_codes_percent`` and ``bits_per_second_log2_codes`` require
    ``codebook_size``: it cannot be inferred from tokens, as codes may be
    unused.

    Example
    -------
    >>> metric = BitRate(codebook_size=4)
    >>> tokens = torch.tensor([[0], [0], [1], [1]])
    >>> metric.update(Utterance("a", {}, tokens, 2.0, 2.0), torch.ones(1).int())
    >>> metric.compute()["bits_per_second_log2_codes"].value
    4.0
    """

    label = "Use of the codebook and bit rate"
    quantities = {"used_codes_percent": USAGE["used_codes_percent"]} | {
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
        self._largest, self._books = 0, 1
        self._tokens, self._rates = WeightedCounts(), WeightedRatios()
        self._symbols = WeightedCounts(_MAX_SYMBOLS)
        self._runs = WeightedCounts(_MAX_SYMBOLS)

    def update(self, utterance: Utterance, weights: torch.Tensor) -> None:
        """Add an utterance, see ``Metric``."""
        tokens, seconds = utterance.tokens, utterance.seconds
        self._books = tokens.shape[1]
        if len(tokens):
            self._largest = max(self._largest, int(tokens.max()))
        for book, column in enumerate(tokens.T.tolist()):
            self._tokens.add([(book, token) for token in column], weights)
        if self._books > 1:
            self._symbols.add(map(tuple, tokens.tolist()), weights)
        runs = torch.unique_consecutive(tokens, dim=0)
        self._runs.add(map(tuple, runs.tolist()), weights)
        self._rates.add("frames", len(tokens), seconds, weights)
        self._rates.add("runs", len(runs), seconds, weights)

    def compute(self) -> dict[str, Estimate]:
        """Compute the results, see ``Metric``."""
        frames, runs = map(self._rates.values, ("frames", "runs"))
        table = self._tokens.table()
        books = torch.tensor([book for book, _ in self._tokens.keys()])
        bits = [_bits(table[books == book]) for book in range(self._books)]
        frame_bits = sum(bits)
        values = {
            "perplexity": sum(2**b for b in bits) / self._books,
            "frames_per_second": frames,
            "tokens_per_second": frames * self._books,
            "bits_per_second_entropy": frames * frame_bits,
            "runs_per_second": runs,
        }
        if not self._symbols.full:
            symbol_bits = frame_bits
            if self._books > 1:
                symbol_bits = _bits(self._symbols.table())
            values["bits_per_second_zerospeech"] = frames * symbol_bits
        if not self._runs.full:
            run_bits = _bits(self._runs.table())
            values["bits_per_second_runs"] = runs * run_bits
        if self.codebook_size:
            fixed_bits = self._books * math.log2(self.codebook_size)
            values["bits_per_second_log2_codes"] = frames * fixed_bits
            codes = self._books * self.codebook_size
            values["used_codes_percent"] = [100 * len(table) / codes]
        return {
            name: estimate(values[name], quantity)
            for name, quantity in self.quantities.items()
            if name in values
        }

    def notes(self, estimates: dict[str, Estimate]) -> list[str]:
        """Return notes on the results, see ``Metric``."""
        notes = []
        if not self.codebook_size:
            notes.append(
                "used codes, bits per second by log2 of the codes, and the "
                "verdict: they need the codebook size, which is not in the "
                "lines; give --codebook-size"
            )
        if "bits_per_second_zerospeech" not in estimates:
            notes.append("ZeroSpeech's bit rate: too many distinct codes")
        return notes

    def tables(self) -> dict:
        """Return ``code_counts`` [C, K], the number of occurrences of each
        code. If the codebook size is unknown, K is the largest token plus
        one."""
        size = self.codebook_size or self._largest + 1
        code_counts = torch.zeros(self._books, size, dtype=torch.int64)
        for key, row in zip(
            self._tokens.keys(), self._tokens.table(), strict=True
        ):
            code_counts[key] = int(row[0])
        return {"code_counts": code_counts}


def _bits(counts):
    """Return the entropy [1 + R] of counts [tokens, 1 + R] in bits; nan for
    replicates without any of the utterances."""
    bits = entropy(counts.double().T) / math.log(2)
    bits[1:][counts[:, 1:].sum(0) == 0] = math.nan
    return bits
