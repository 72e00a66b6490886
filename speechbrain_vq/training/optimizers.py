"""Deprecated: ``CodebookTrainer`` gives codebooks their parameter groups."""

import warnings

from speechbrain_vq.training.trainer import _give_own_group


class CodebookOptimizer:
    """Deprecated, for one release; take ``CodebookTrainer``. ``optimizer`` is
    the first, with a group of its own for each codebook."""

    def __init__(self, optimizers, codebooks, multiplier):
        warnings.warn(
            "CodebookOptimizer is now CodebookTrainer(model, optimizer).",
            DeprecationWarning,
            stacklevel=2,
        )
        self.optimizer = optimizers[0]
        for codebook in codebooks:
            _give_own_group(self.optimizer, codebook)
            self.optimizer.param_groups[-1]["lr"] *= multiplier
