"""Skipping of training steps whose loss is not finite."""

import torch
from speechbrain.utils.logger import get_logger

from speechbrain_vq.nnet.utils import sum_over_ranks, world_size

logger = get_logger(__name__)

# Number of steps skipped in a row after which training stops with an error.
_MAX_SKIPPED = 200


class SkipMixin:
    """Mixin that skips steps whose loss is not finite on some rank, on all
    ranks, in place of the Brain's ``nonfinite_patience``. A ``fit_batch`` of its
    own must call ``check_loss_isfinite`` and ``optimizers_step``."""

    _nonfinite, _skipped, _stop = False, 0, None

    def has_no_frames(self):
        """Return whether the latest batch was all padding."""
        return torch.tensor(False)

    def check_loss_isfinite(self, loss):
        """Skip the step if the loss of any rank is not finite; also exchange
        signals and batches of padding between ranks."""
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
                f"{world_size()} ranks had a batch of padding, which does not "
                "count."
            )
        # SpeechBrain's check stops after a few of them, however far apart.
        self._nonfinite |= nonfinite > 0

    def optimizers_step(self):
        """Step the optimizers, unless the loss was not finite."""
        if self._nonfinite:
            self._skipped += 1
            logger.warning(
                f"The loss after step {self.optimizer_step} is not finite: the "
                f"step is skipped, {self._skipped} in a row. The loss of a "
                "batch of padding never is."
            )
            self.check_skipped(self._skipped >= _MAX_SKIPPED)
        else:
            self._skipped = 0
        if self._nonfinite and not self.scaler.is_enabled():
            self.modules.zero_grad(set_to_none=True)
        else:  # A scaler skips the step itself.
            super().optimizers_step()
        self._nonfinite = False

    def update_average(self, loss, avg_loss):
        """Average losses as a Brain does; warn of those that are not finite."""
        if not (self.modules.training or torch.isfinite(loss)):
            logger.warning(
                "A batch of the evaluation does not count: its loss is not "
                "finite. The loss of a batch of padding never is."
            )
        return super().update_average(loss, avg_loss)

    def check_skipped(self, too_often):
        """Raise ValueError if steps were skipped, and too often."""
        if self._skipped and too_often:
            raise ValueError(
                f"The last {self._skipped} steps were skipped, as no loss was "
                "finite or no batch had a valid frame: nothing is learned. "
                "Look for NaN in recordings and feature statistics, and for "
                "batches of padding, or lower the learning rate."
            )
