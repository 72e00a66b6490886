"""Deprecated: ``CodebookTrainer`` gives codebooks their parameter groups."""

import warnings

from speechbrain_vq.training.trainer import find_group, give_own_group


class CodebookOptimizer:
    """Deprecated, for one release; take ``CodebookTrainer``. ``optimizer`` is
    the one that holds the codebooks, now in a group of their own."""

    def __init__(self, optimizers, codebooks, multiplier):
        warnings.warn(
            "CodebookOptimizer is now CodebookTrainer(model, optimizer).",
            DeprecationWarning,
            stacklevel=2,
        )
        for codebook in codebooks:
            for self.optimizer in optimizers:
                if find_group(self.optimizer, codebook) is not None:
                    group = give_own_group(self.optimizer, codebook)
                    group["lr"] *= multiplier
                    break
