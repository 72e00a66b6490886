"""What units cost: tokens and bits a second.

Authors
 * speechbrain_vq authors 2026
"""

import math

import torch

from speechbrain_vq.nnet.losses import entropy

from .sampling import Figure, Ratios, Tally, interval

# Different codes of all codebooks together; beyond, they are not counted.
_MOST = 100_000


def collapsed(tokens: torch.Tensor) -> torch.Tensor:
    """Runs of the same token as one (how long they were is lost).

    Arguments
    ---------
    tokens : torch.Tensor
        Tokens, [T] or [T, C].

    Returns
    -------
    torch.Tensor
        Tokens, fewer.

    Example
    -------
    >>> collapsed(torch.tensor([4, 4, 7, 4]))
    tensor([4, 7, 4])
    """
    return torch.unique_consecutive(tokens, dim=0)


def bits_per_token(counts: torch.Tensor) -> torch.Tensor:
    """Entropy in bits of how often tokens were chosen.

    Arguments
    ---------
    counts : torch.Tensor
        [tokens, 1 + R].

    Returns
    -------
    torch.Tensor
        [1 + R].

    Example
    -------
    >>> round(float(bits_per_token(torch.tensor([[2], [1], [1]]))), 6)
    1.5
    """
    return entropy(counts.double().T) / math.log(2)


class Cost:
    """Tokens and bits a second of all utterances.

    - ``frames_per_second``, and ``tokens_per_second`` of all codebooks;
    - ``bits_per_second_entropy``: of an ideal code for single tokens, each
      codebook apart;
    - ``bits_per_second_log2_codes``: of a code of fixed length;
    - ``bits_per_second_zerospeech``: ZeroSpeech's bit rate (Dunbar et al., The
      Zero Resource Speech Challenge 2019, section 3.3): symbols a second times
      the entropy of a symbol, which is what all codebooks say at once;
    - ``runs_per_second``, ``bits_per_second_runs``: the same of runs of the
      same symbol as one, durations left out.

    Arguments
    ---------
    codebook_size : int, optional
        Different tokens of a codebook; absent: as many as the greatest token
        that came, and one.

    Example
    -------
    >>> cost = Cost(codebook_size=4)
    >>> cost.add(torch.tensor([[0], [0], [1], [1]]), 2.0, torch.ones(1).int())
    >>> figures = cost.figures()
    >>> figures["bits_per_second_entropy"].value
    2.0
    >>> figures["bits_per_second_log2_codes"].value
    4.0
    >>> figures["runs_per_second"].value
    1.0
    """

    def __init__(self, codebook_size: int | None = None):
        self.codebook_size = codebook_size
        self._greatest, self._books = 0, 1
        self._tokens, self._rates = Tally(), Ratios()
        self._symbols, self._runs = Tally(_MOST), Tally(_MOST)

    def add(
        self, tokens: torch.Tensor, seconds: float, weights: torch.Tensor
    ) -> None:
        """Counts an utterance: tokens [T, C], how long it is, and how often it
        counts, [1 + R]."""
        self._books = tokens.shape[1]
        if len(tokens):
            self._greatest = max(self._greatest, int(tokens.max()))
        for book, column in enumerate(tokens.T.tolist()):
            self._tokens.add([(book, token) for token in column], weights)
        runs = collapsed(tokens)
        if self._books > 1:
            self._symbols.add(map(tuple, tokens.tolist()), weights)
        self._runs.add(map(tuple, runs.tolist()), weights)
        self._rates.add("frames", len(tokens), seconds, weights)
        self._rates.add("runs", len(runs), seconds, weights)

    def code_counts(self) -> torch.Tensor:
        """How often each code was chosen, [C, K]."""
        size = self.codebook_size or self._greatest + 1
        counts = torch.zeros(self._books, size, dtype=torch.int64)
        for key, number in zip(
            self._tokens.keys(), self._tokens.table()[:, 0], strict=True
        ):
            counts[key] = int(number)
        return counts

    def figures(self) -> dict[str, Figure]:
        """All of the above, as far as known."""
        size = self.codebook_size or self._greatest + 1
        frames, runs = map(self._rates.values, ("frames", "runs"))
        table = self._tokens.table()
        of = torch.tensor([book for book, _ in self._tokens.keys()])
        bits = sum(
            bits_per_token(table[of == book]) for book in range(self._books)
        )
        fixed = self._books * math.log2(size)
        found = {
            "frames_per_second": frames,
            "tokens_per_second": frames * self._books,
            "bits_per_second_entropy": frames * bits,
            "bits_per_second_log2_codes": frames * fixed,
            "runs_per_second": runs,
        }
        if not self._symbols.full:
            symbol = bits
            if self._books > 1:
                symbol = bits_per_token(self._symbols.table())
            found["bits_per_second_zerospeech"] = frames * symbol
        if not self._runs.full:
            run = bits_per_token(self._runs.table())
            found["bits_per_second_runs"] = runs * run
        return {name: interval(values) for name, values in found.items()}
