"""Validate a model before export: output folder, weights, codebook usage."""

import math
import pathlib
from typing import Any

import torch
from speechbrain.utils.checkpoints import Checkpoint

from speechbrain_vq.hub.download import FILES
from speechbrain_vq.hub.folder import CARD_FILES, find_nonfinite
from speechbrain_vq.nnet.quantizers import VectorQuantizer

from .run import in_warmup

# All files that any version has written to an exported folder.
EXPORTED_FILES = {*CARD_FILES, *FILES}
# A codebook is dead below either of these: its tokens carry almost no
# information. Mediocre codebooks are far above.
MIN_USED_PERCENT, MIN_PERPLEXITY = 5.0, 2.0


class ExportRefused(ValueError):
    """Error for an unusable model.

    If ``force=True`` exports it anyway, the message mentions it."""


def check_output_folder(output: pathlib.Path) -> None:
    """Raise FileExistsError if ``output`` is not new, empty, or an exported
    model."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise FileExistsError(f"{output} is not a folder: choose another one.")
    names = {p.name for p in output.iterdir()} if output.is_dir() else set()
    others = sorted(names - EXPORTED_FILES)
    if others:
        raise FileExistsError(
            f"{output} contains {', '.join(others[:3])}, which no export wrote "
            "and which would be lost: choose another folder."
        )


def find_quantizers(
    modules: dict[str, torch.nn.Module],
) -> dict[str, VectorQuantizer]:
    """Find the quantizers in modules and their submodules by dotted name."""
    named = torch.nn.ModuleDict(modules).named_modules()
    return {n: m for n, m in named if isinstance(m, VectorQuantizer)}


def check_finite(states: dict[str, dict[str, Any]]) -> None:
    """Raise ExportRefused if weights are NaN or infinite."""
    broken = [
        f"'{module}.{name}'"
        for module, state in states.items()
        for name in find_nonfinite(state)
    ]
    if broken:
        raise ExportRefused(
            f"{', '.join(broken)}: values are NaN or infinite. Such a model "
            "cannot be loaded: choose another checkpoint (--checkpoint, "
            "--min-key), or train again."
        )


def find_problems(
    quantizers: dict[str, VectorQuantizer],
    states: dict[str, dict[str, Any]],
    checkpoint: Checkpoint,
) -> list[str]:
    """Return the reasons not to export a model, one sentence each: a quantizer
    in warm-up, or dead codebooks."""
    if in_warmup(checkpoint) or any(map(_is_bypassed, states.values())):
        return [
            "The model is still in its warm-up, when nothing is quantized: "
            "train longer, or shorten the warm-up of reinit_schedule (with "
            "warmup: forever, as in the preset none, it never ends)."
        ]
    sentences = (
        describe_dead_codebook(name, q.codebook_size, checkpoint.meta)
        for name, q in quantizers.items()
    )
    return [sentence for sentence in sentences if sentence]


def describe_dead_codebook(
    name: str, codebook_size: int, meta: dict[str, float]
) -> str | None:
    """Describe the usage of a dead codebook, based on a checkpoint's metrics on
    the validation set or else in training. Return None if the codebook is not
    dead, or its usage is unknown.

    Example
    -------
    >>> meta = {"valid_used_codes_percent": 0.4, "valid_perplexity": 1.5}
    >>> describe_dead_codebook("quantizer", 512, meta)[:62]
    "The codebook of 'quantizer' is dead: 2 of its 512 codes were u"
    """
    for stage in ("valid", "train"):
        percent, perplexity, vectors = (
            meta.get(f"{stage}_{name}.{key}", meta.get(f"{stage}_{key}"))
            for key in ("used_codes_percent", "perplexity", "vectors")
        )
        known = percent is not None and perplexity is not None
        # The metrics are NaN if nothing was quantized.
        if known and not math.isnan(perplexity) and vectors != 0:
            break
    else:
        return None
    # There cannot be more used codes than vectors.
    size = min(codebook_size, vectors or codebook_size)
    used = percent / 100 * codebook_size
    min_perplexity = min(MIN_PERPLEXITY, (1 + size) / 2)
    if used >= MIN_USED_PERCENT / 100 * size and perplexity >= min_perplexity:
        return None
    where = {"valid": "over the validation set", "train": "in training"}[stage]
    return (
        f"The codebook of '{name}' is dead: {used:.0f} of its {codebook_size} "
        f"codes were used {where}, with a perplexity of {perplexity:.1f} "
        f"(minimum: {MIN_USED_PERCENT:g} % and {min_perplexity:g}). Train it "
        "with the preset robust."
    )


def _is_bypassed(state: dict[str, Any]) -> bool:
    """Return whether a state was saved during the warm-up. Version 0.1 stored
    the flag in the extra state."""
    flags = [v > 0.5 for k, v in state.items() if k.endswith("in_warmup")]
    return any(flags) or any(
        isinstance(value, dict) and value.get("bypass", False)
        for key, value in state.items()
        if key.endswith("_extra_state")
    )
