"""Warnings of what leaves a quantizer untrained."""

import logging

import torch

from speechbrain_vq.nnet.utils import is_recomputed

logger = logging.getLogger(__name__)

# Training batches that taught a quantizer nothing, after which to warn.
_IDLE_BATCHES = 200


class Watch:
    """A forward hook that warns of what leaves a quantizer untrained. It holds
    no trainer, so that models in training can be copied."""

    def __init__(self, name: str):
        self.name, self.checks_warmup = name, True
        # Since the last step that taught something, but the gradient.
        self.batches, self.steps, self.has_gradient = 0, 0, False

    def __call__(self, quantizer, inputs, output) -> None:
        if torch.compiler.is_compiling() or is_recomputed():
            return
        if not quantizer.training:
            if quantizer.bypass and self.checks_warmup:
                self.checks_warmup = False
                logger.warning(
                    f"{self.name} is evaluated within the warm-up of its "
                    "ReinitSchedule: nothing is quantized yet, and losses do "
                    "not compare with later ones. Choose a model from after "
                    "it; train longer, or shorten warmup, if it does not end."
                )
            return
        self.batches += 1
        if self.batches == _IDLE_BATCHES:
            cause = (
                "no gradient reached it: use `output.quantized` of the "
                "quantizer, and add `output.loss` to the loss"
                if self.steps
                else "no optimizer given to CodebookTrainer has stepped: give "
                "it the optimizer that the loop steps"
            )
            logger.warning(
                f"{self.name} learned nothing in {_IDLE_BATCHES} training "
                f"batches, as {cause}."
            )
        if output.quantized.requires_grad:
            output.quantized.register_hook(self._note_gradient)
        else:  # Nothing before the quantizer learns.
            self.has_gradient = True

    def _note_gradient(self, gradient) -> None:
        self.has_gradient = True

    def after_step(self, quantizer) -> None:
        """Look whether the step taught anything."""
        learns = self.has_gradient
        if quantizer.codebook_weight:
            learns = quantizer.codebook.grad is not None
        self.steps, self.has_gradient = self.steps + 1, False
        if learns or quantizer.is_codebook_frozen:
            self.batches = self.steps = 0
