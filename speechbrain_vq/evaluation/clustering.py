"""How well codes cluster what they stand for: measures of a table of how often
each class met each code.

Authors
 * speechbrain_vq authors 2026
"""

import torch

from speechbrain_vq.evaluation.units import mutual_information
from speechbrain_vq.nnet.losses import entropy


def mapping_accuracy(counts: torch.Tensor) -> float:
    """The share that is right if every code stands for the class that it met
    most often (many-to-one mapping, also known as purity).

    The mapping is made of the same counts, so that more codes alone raise it:
    with a code for each sample it is 1.

    Arguments
    ---------
    counts : torch.Tensor
        How often each class met each code, [classes, codes].

    Returns
    -------
    float
        In 0..1; 0 where nothing was counted.

    Example
    -------
    >>> mapping_accuracy(torch.tensor([[6, 0, 1], [0, 2, 1]]))
    0.9
    """
    total = int(counts.sum())
    return int(counts.amax(0).sum()) / total if total else 0.0


def nmi(counts: torch.Tensor) -> float:
    """Normalized mutual information: I(class; code) over the mean of the two
    entropies, as scikit-learn's ``normalized_mutual_info_score``.

    Arguments
    ---------
    counts : torch.Tensor
        How often each class met each code, [classes, codes].

    Returns
    -------
    float
        In 0..1; 1 where there is only one class and one code.

    Example
    -------
    >>> round(nmi(torch.tensor([[5, 0], [0, 5]])), 9)
    1.0
    >>> nmi(torch.tensor([[5, 5]]))
    0.0
    """
    counts = counts.double()
    entropies = float(entropy(counts.sum(1)) + entropy(counts.sum(0)))
    if entropies <= 0:
        return 1.0
    return 2 * mutual_information(counts) / entropies
