"""Names and saved states of version 0.1, supported for one more release."""

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def moved(former: str, present: str) -> Callable[[str], Any]:
    """Warn that a module has moved; return its function ``__getattr__``."""
    message = f"{former} has moved to {present}."
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return functools.partial(getattr, importlib.import_module(present))


class OldQuantizer:
    """Base class of quantizers with the names and states of version 0.1."""

    def reestimate(self, vectors=None, generator=None):
        """Deprecated name of ``reinitialize``."""
        message = "reestimate() is now reinitialize()."
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return self.reinitialize(vectors, generator=generator)

    @property
    def codewords(self) -> nn.Module:
        """Deprecated name of ``embedding``."""
        return self.embedding

    def _load_from_state_dict(self, state_dict, prefix, *args):
        upgrade_state_dict(self, state_dict, prefix)
        state_dict.pop(f"{prefix}reservoir._extra_state", None)
        extra = state_dict.pop(f"{prefix}_extra_state", None)
        if extra is not None:
            flag = torch.tensor(float(extra["bypass"]))
            state_dict[f"{prefix}in_warmup"] = flag
        if f"{prefix}embedding.weight" not in state_dict:
            state_dict.pop(f"{prefix}in_warmup", None)
        super()._load_from_state_dict(state_dict, prefix, *args)


def upgrade_state_dict(
    model: nn.Module, state_dict: dict, prefix: str = ""
) -> None:
    """Convert a ``state_dict`` of version 0.1, with keys that start with
    ``prefix``, in place. The model's norms get a scale and shift if the state
    has them. Values need not be tensors."""
    for name, quantizer in model.named_modules(remove_duplicate=False):
        if not isinstance(quantizer, OldQuantizer):
            continue
        at, norm = f"{prefix}{name}." if name else prefix, quantizer.norm
        is_affine = f"{at}norm.weight" in state_dict
        if norm is not None and norm.weight is None and is_affine:
            # The yaml of version 0.1 had no setting for it.
            norm.weight = nn.Parameter(torch.ones_like(norm.running_var))
            norm.bias = nn.Parameter(torch.zeros_like(norm.running_mean))
        old = [k for k in state_dict if k.startswith(f"{at}codewords.")]
        for key in old:
            value = state_dict.pop(key)
            if key.endswith("weight"):  # EMA averages are no longer saved.
                state_dict[f"{at}embedding.weight"] = value
        codebook = state_dict.get(f"{at}embedding.weight")
        if isinstance(codebook, Tensor):
            zero = codebook.new_zeros((), dtype=torch.float32)
            state_dict.setdefault(f"{at}in_warmup", zero)
        variance = f"{at}norm.running_var"
        if old and isinstance(state_dict.get(variance), Tensor):
            # The epsilon of version 0.1.
            state_dict[variance] = state_dict[variance] + 1e-5
