"""Warn about quantizers that are not trained."""

import logging

import torch

from speechbrain_vq.nnet.utils import is_recomputed

logger = logging.getLogger(__name__)

# Number of training batches without an update before a warning.
_IDLE_BATCHES = 200


class Watch:
    """Forward hook that warns if a quantizer is not trained, and why. It does
    not reference the trainer, so models can be copied during training."""

    def __init__(self, name: str):
        self.name, self.checks_warmup = name, True
        # Batches and steps since the last update of the quantizer.
        self.batches, self.steps, self.has_gradient = 0, 0, False
        # Maximum number of batches between two updates, as in accumulation.
        self.interval, self.has_warned = 0, False

    def __call__(self, quantizer, inputs, output) -> None:
        if torch.compiler.is_compiling() or is_recomputed():
            return
        if not quantizer.training:
            if quantizer.bypass and self.checks_warmup:
                self.checks_warmup = False
                logger.warning(
                    f"{self.name} is evaluated within the warm-up of its "
                    "ReinitSchedule: nothing is quantized yet, and losses are "
                    "not comparable with later ones. Select a later model. If "
                    "the warm-up does not end, train longer or shorten it."
                )
            return
        self.batches += 1
        # Gradients of many batches may be accumulated between two steps.
        limit = max(_IDLE_BATCHES, 2 * self.interval)
        if self.batches >= limit and not self.has_warned:
            self.has_warned = True
            cause = (
                "no gradient reached it: use `output.quantized` of the "
                "quantizer, and add `output.loss` to the loss"
                if self.steps
                else "no optimizer given to CodebookTrainer has stepped: pass "
                "the optimizer that the loop steps"
            )
            logger.warning(
                f"{self.name} learned nothing in {self.batches} training "
                f"batches, because {cause}."
            )
        if output.quantized.requires_grad:
            output.quantized.register_hook(self._note_gradient)
        else:  # Nothing before the quantizer is trained
            self.has_gradient = True

    def _note_gradient(self, gradient) -> None:
        self.has_gradient = True

    def after_step(self, quantizer) -> None:
        """Record whether the step updated the quantizer."""
        learns = self.has_gradient
        if quantizer.codebook_weight:
            learns = quantizer.codebook.grad is not None
        self.steps, self.has_gradient = self.steps + 1, False
        if learns or quantizer.is_codebook_frozen:
            self.interval = max(self.interval, self.batches)
            self.batches = self.steps = 0
