"""Deprecated: ``CodebookTrainer`` gives codebooks their parameter groups."""

import warnings

from speechbrain_vq.training.trainer import _give_own_group


class CodebookOptimizer:
    """Deprecated: holds a first optimizer in which codebooks have groups."""

    def __init__(self, optimizers, codebooks, multiplier):
        message = "CodebookOptimizer is now CodebookTrainer(model, optimizer)."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        self.optimizer = optimizers[0]
        for codebook in codebooks:
            _give_own_group(self.optimizer, codebook)
            self.optimizer.param_groups[-1]["lr"] *= multiplier
