"""Show the progress, validations and expected duration of a run."""

import logging
import random
import time

import speechbrain as sb
import torch
from speechbrain.dataio.batch import PaddedBatch
from speechbrain.utils.distributed import if_main_process
from tqdm import tqdm

from speechbrain_vq.training.brain import run_length

logger = logging.getLogger(__name__)


class ProgressMixin:
    """Mixin that shows one progress bar over all steps of a run, instead of
    SpeechBrain's bar for each epoch. List it before ``VQBrain`` in the bases.
    The bar is shown only on a terminal."""

    bar = None

    def on_fit_start(self):
        """Create the bar, starting at the step of the latest checkpoint."""
        super().on_fit_start()
        silent = self.noprogressbar or not if_main_process()
        self.bar = tqdm(
            total=run_length(self)[1],
            initial=self.optimizer_step,
            unit="step",
            dynamic_ncols=True,
            # Average over many steps, since validations interrupt them.
            smoothing=0.05,
            # None disables the bar unless stderr is a terminal.
            disable=True if silent else None,
        )

    def on_fit_batch_end(self, batch, outputs, loss, should_step):
        """Advance the bar."""
        super().on_fit_batch_end(batch, outputs, loss, should_step)
        if should_step:
            self.bar.update(self.optimizer_step - self.bar.n)

    def show_validation(self, stats, usage):
        """Show the metrics of a validation and the usage of the codebook."""
        step, (_, total) = self.optimizer_step, run_length(self)
        logger.info("%s", validation_line(step, total, stats, usage))
        self.bar.set_postfix_str(of_codes(usage))


def validation_line(
    step: int, total: int | None, stats: dict[str, float], usage: dict
) -> str:
    """Format a validation as one line. ``usage`` has no ``perplexity`` during
    the warm-up, when nothing is quantized.

    >>> validation_line(50, 800, {"loss": 0.25}, {})
    'Step 50 of 800: validation loss 0.25, not quantizing yet (warm-up)'
    """
    parts = [f"{k.replace('_', ' ')} {v:.3g}" for k, v in stats.items()]
    parts.append(of_codes(usage))
    if "perplexity" in usage:
        parts.append(f"perplexity {usage['perplexity']:.0f}")
    of_total = f" of {total}" if total else ""
    return f"Step {step}{of_total}: validation {', '.join(parts)}"


def of_codes(usage: dict) -> str:
    """Format the percentage of codes used.

    >>> of_codes({"perplexity": 281.0, "used_codes_percent": 93.2})
    '93 % of codes used'
    """
    if "perplexity" not in usage:
        return "not quantizing yet (warm-up)"
    return f"{usage['used_codes_percent']:.0f} % of codes used"


def seconds_per_step(brain: sb.Brain, dataset) -> float:
    """Measure the seconds per training step. The model does not change: it runs
    in evaluation mode, without an optimizer step."""
    number = min(brain.hparams.batch_size, len(dataset))
    # Spread out, because neighbors often share a speaker and a length.
    indices = [i * len(dataset) // number for i in range(number)]
    python_state = random.getstate()
    brain.on_stage_start(sb.Stage.TRAIN)
    brain.modules.eval()
    with torch.random.fork_rng(), torch.enable_grad():
        for _ in range(2):  # The first step is slower and not counted
            start = time.perf_counter()
            batch = PaddedBatch([dataset[i] for i in indices])
            outputs = brain.compute_forward(batch, sb.Stage.TRAIN)
            loss = brain.compute_objectives(outputs, batch, sb.Stage.TRAIN)
            loss.backward()
            loss.item()  # Wait for the GPU
            seconds = time.perf_counter() - start
    brain.modules.zero_grad(set_to_none=True)
    random.setstate(python_state)
    return seconds


def in_words(seconds: float) -> str:
    """Format a rough duration.

    >>> in_words(170), in_words(20), in_words(9000)
    ('3 min', '20 s', '2.5 h')
    """
    if seconds < 90:
        return f"{max(round(seconds, -1), 10):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
