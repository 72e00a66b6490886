"""What every test starts from.

Authors
 * speechbrain_vq authors 2026
"""

import pytest
import torch

# Sums depend on the number of threads, and some tests compare bits.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    """Start each test from the same state, whatever ran before it."""
    torch.manual_seed(0)
