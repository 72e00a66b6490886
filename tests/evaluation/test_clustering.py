"""Measures of clusterings, against scikit-learn.

Authors
 * speechbrain_vq authors 2026
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import normalized_mutual_info_score
from sklearn.metrics.cluster import contingency_matrix

from speechbrain_vq.evaluation.clustering import nmi
from speechbrain_vq.evaluation.units import phone_purity


@pytest.mark.parametrize("noise", [0.0, 0.3, 1.0])
def test_nmi_is_scikit_learns(noise):
    random = np.random.default_rng(0)
    classes = random.integers(0, 7, 500)
    codes = np.where(
        random.random(500) < noise, random.integers(0, 30, 500), classes
    )
    counts = torch.tensor(contingency_matrix(classes, codes))
    expected = normalized_mutual_info_score(classes, codes)
    assert nmi(counts) == pytest.approx(expected)
    # Codes that are never used change nothing.
    wider = torch.nn.functional.pad(counts, (0, 5))
    assert nmi(wider) == pytest.approx(expected)


def test_one_class_or_nothing_at_all():
    assert nmi(torch.tensor([[7]])) == 1.0
    assert nmi(torch.tensor([[7], [7]])) == 0.0
    assert phone_purity(torch.zeros(0, 4)) == 0.0


def test_mapping_is_many_to_one():
    counts = torch.tensor([[5, 4, 0], [1, 0, 3]])
    assert phone_purity(counts) == 12 / 13
    # Of codes, not of classes: the other way it would be 8 / 13.
    assert phone_purity(counts.T) == 8 / 13
