"""What speaks against exporting a model.

Authors
 * speechbrain_vq authors 2026
"""

import math

import torch
from speechbrain.utils.checkpoints import Checkpoint

from speechbrain_vq.nnet.quantizers import VectorQuantizer

from .runs import in_warmup

# A codebook is dead if fewer of its codes are used, or their perplexity is
# lower: below that, tokens tell next to nothing. Far from what a working
# codebook gives, so that no model which is only mediocre is held up.
LEAST_USED_PERCENT, LEAST_PERPLEXITY = 5.0, 2.0


class ExportRefused(ValueError):
    """The model is of no use as it is; the message says whether
    ``force=True`` exports it all the same."""


def find_quantizers(
    modules: dict[str, torch.nn.Module],
) -> dict[str, torch.nn.Module]:
    """The quantizers among modules, wherever they are, by name."""
    named = torch.nn.ModuleDict(modules).named_modules()
    return {n: m for n, m in named if isinstance(m, VectorQuantizer)}


def find_problems(
    quantizers: dict[str, torch.nn.Module],
    states: dict[str, dict],
    checkpoint: Checkpoint,
) -> list[str]:
    """What speaks against exporting a model.

    Arguments
    ---------
    quantizers : dict
        The model's, by name.
    states : dict
        State dicts of the checkpoint by module.
    checkpoint : Checkpoint
        Where they are from.

    Returns
    -------
    list of str
        Sentences; none if all is well.
    """
    if in_warmup(checkpoint) or any(map(_is_bypassed, states.values())):
        return [
            "The model is still in its warm-up, where nothing is quantized: "
            "train longer, or shorten the warm-up of reinit_schedule (where "
            "it is forever, as in the arm none, there never are codes)."
        ]
    dead = (
        dead_codebook(name, q.codebook_size, checkpoint.meta)
        for name, q in quantizers.items()
    )
    return [problem for problem in dead if problem]


def check_finite(states: dict[str, dict]) -> None:
    """Refuses weights that nobody could load, whatever is forced.

    Arguments
    ---------
    states : dict
        State dicts of the checkpoint by module.

    Raises
    ------
    ExportRefused
        If a value is NaN or infinite; the message names its tensor.
    """
    problems = [
        f"'{module}.{name}' is not finite: it has {number} values that are "
        "NaN or infinite."
        for module, state in states.items()
        for name, value in state.items()
        if torch.is_tensor(value) and (number := _count_nonfinite(value))
    ]
    if problems:
        raise ExportRefused(
            f"{' '.join(problems)} No one could load that: take another "
            "checkpoint (--checkpoint, --min-key), or train again."
        )


def dead_codebook(name: str, codebook_size: int, meta: dict) -> str | None:
    """Says how dead a codebook is, judged by its use over the validation set
    or, where there was none, in training.

    Arguments
    ---------
    name : str
        Of the quantizer.
    codebook_size : int
        Its number of codes.
    meta : dict
        Numbers of the checkpoint, as ``VQMixin`` notes them.

    Returns
    -------
    str or None
        A sentence; None if it lives, or nobody watched.

    Example
    -------
    >>> meta = {"valid_used_codes_percent": 0.4, "valid_perplexity": 1.5}
    >>> dead_codebook("quantizer", 512, meta)[:62]
    "The codebook of 'quantizer' is dead: 2 of its 512 codes were u"
    """
    for stage in ("valid", "train"):

        def of(key, stage=stage):
            # VQMixin leaves the name out where there is one quantizer.
            alone = meta.get(f"{stage}_{key}")
            return meta.get(f"{stage}_{name}.{key}", alone)

        percent, perplexity = of("used_codes_percent"), of("perplexity")
        vectors = of("vectors")
        # They are NaN where nothing was quantized.
        known = None not in (percent, perplexity)
        if known and not math.isnan(perplexity) and vectors != 0:
            break
    else:
        return None
    # No more codes can be used than there were vectors.
    size = min(codebook_size, vectors or codebook_size)
    used = percent / 100 * codebook_size
    least = min(LEAST_PERPLEXITY, (1 + size) / 2)
    if used >= LEAST_USED_PERCENT / 100 * size and perplexity >= least:
        return None
    where = {"valid": "over the validation set", "train": "in training"}[stage]
    return (
        f"The codebook of '{name}' is dead: {used:.0f} of its {codebook_size} "
        f"codes were used {where}, with a perplexity of {perplexity:.1f} "
        f"(wanted are {LEAST_USED_PERCENT:g} % and {least:g}). Train it with "
        "the preset robust."
    )


def _is_bypassed(state: dict) -> bool:
    # Of version 0.1.
    return any(
        isinstance(value, dict) and value.get("bypass", False)
        for key, value in state.items()
        if key.endswith("_extra_state")
    )


def _count_nonfinite(value: torch.Tensor) -> int:
    return int((~torch.isfinite(value)).sum())
