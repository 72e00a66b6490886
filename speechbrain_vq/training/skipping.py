"""Skip training steps whose loss is not finite."""

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_vq.nnet.utils import sum_over_ranks, world_size

logger = get_logger(__name__)

# Number of consecutive skipped steps after which training stops with an error.
_MAX_SKIPPED = 200


class SkipMixin:
    """Mixin that skips a step on all ranks if the loss of any is not finite,
    instead of the Brain's ``nonfinite_patience``. A custom ``fit_batch`` must
    call ``check_loss_isfinite`` and ``optimizers_step``."""

    _nonfinite, _skipped, _stop = False, 0, None

    def has_no_frames(self):
        """Return whether the last batch was all padding."""
        return torch.tensor(False)

    def check_loss_isfinite(self, loss):
        """Skip the step if the loss of any rank is not finite; also tell ranks
        about signals and all-padding batches on other ranks."""
        nonfinite = (~torch.isfinite(loss.detach())).any().float()
        signaled = self._stop is not None and self._stop.asked is not None
        signaled = torch.full_like(nonfinite, signaled)
        empty = self.has_no_frames().to(nonfinite)
        nonfinite, signaled, empty = sum_over_ranks(
            torch.stack([nonfinite, signaled, empty])
        ).tolist()
        if signaled:
            self._stop.begin()
        if empty and not nonfinite:
            logger.warning(
                f"After step {self.optimizer_step}, {empty:.0f} of "
                f"{world_size()} ranks had an all-padding batch, which is "
                "ignored."
            )
        # SpeechBrain's check stops after a few of them, however far apart.
        self._nonfinite |= nonfinite > 0

    def optimizers_step(self):
        """Step the optimizers, unless the loss was not finite."""
        if self._nonfinite:
            self._skipped += 1
            logger.warning(
                f"The loss after step {self.optimizer_step} is not finite: the "
                f"step is skipped, {self._skipped} in a row. The loss of an "
                "all-padding batch is never finite."
            )
            self.check_skipped(self._skipped >= _MAX_SKIPPED)
        else:
            self._skipped = 0
        if self._nonfinite and not self._scaler_skips():
            self.modules.zero_grad(set_to_none=True)
        else:
            super().optimizers_step()
        self._nonfinite = False

    def _scaler_skips(self):
        """Return whether a scaler will skip the step and lower its scale: it
        looks at the gradients, which may be finite if the loss is not."""
        if not self.scaler.is_enabled():
            return False
        gradients = [p.grad for p in self.modules.parameters()]
        return not all(g is None or g.isfinite().all() for g in gradients)

    def update_average(self, loss, avg_loss):
        """Average losses as a Brain does; warn about non-finite ones."""
        if not (self.modules.training or torch.isfinite(loss)):
            logger.warning(
                "An evaluation batch is ignored: its loss is not finite. The "
                "loss of an all-padding batch is never finite."
            )
        return super().update_average(loss, avg_loss)

    def check_skipped(self, too_often):
        """Raise ValueError if steps were skipped too often."""
        if self._skipped and too_often:
            raise ValueError(
                f"The last {self._skipped} steps were skipped because no loss "
                "was finite or no batch had a valid frame: nothing is learned. "
                "Look for NaN in recordings and feature statistics, and for "
                "all-padding batches, or lower the learning rate."
            )
