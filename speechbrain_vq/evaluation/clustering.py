"""How well codes cluster what they stand for, by a table of how often each
class met each code; for the many-to-one mapping see ``phone_purity``.

Authors
 * speechbrain_vq authors 2026
"""

import torch

from speechbrain_vq.evaluation.units import mutual_information
from speechbrain_vq.nnet.losses import entropy


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
