"""Which classes and functions a stranger's yaml may name.

Authors
 * speechbrain_vq authors 2026
"""

import importlib
import importlib.util
import inspect
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

import torch

# Modules whose classes open no file, fetch nothing and run no code that they
# are handed, and single classes of which the same holds. Left out for that
# reason: nnet.schedulers and nnet.adapters, and the lobes that download or
# unpickle (beats, fairseq_wav2vec, discrete, MSTacotron2).
ALLOWED = (
    "torch.nn.modules",
    *(
        f"speechbrain.nnet.{name}"
        for name in (
            "CNN RNN activations attention autoencoders containers diffusion "
            "dropout embedding hypermixing linear losses normalization "
            "pooling quantisers transducer.transducer_joint unet"
        ).split()
    ),
    "speechbrain.processing.features",
    "speechbrain.lobes.features",
    *(
        f"speechbrain.lobes.models.{name}"
        for name in (
            "CRDNN Cnn14 ContextNet DiffWave ECAPA_TDNN ESPnetVGG "
            "EnhanceResnet HifiGAN MetricGAN RNNLM ResNet Tacotron2 VanillaNN "
            "Xvector bsq conv_tasnet convolution dual_path resepformer "
            "segan_model wav2vec transformer.Branchformer "
            "transformer.Conformer transformer.Transformer "
            "transformer.TransformerASR transformer.TransformerLM "
            "transformer.TransformerSE transformer.TransformerST"
        ).split()
    ),
    "speechbrain_vq.nnet",
    "speechbrain_vq.lobes",
    "speechbrain_vq.hub.pretrainer.WeightsPretrainer",
    "speechbrain.utils.parameter_transfer.Pretrainer",
    "speechbrain.dataio.encoder.CategoricalEncoder",
    "speechbrain.dataio.encoder.TextEncoder",
    "speechbrain.dataio.encoder.CTCTextEncoder",
)


class Refusal(Exception):
    """Why something of a yaml is refused; who catches it knows where it is.

    Arguments
    ---------
    reason : str
        Ends the sentence "... is refused: ".
    text : str, optional
        A scalar of the yaml, where that says which one it is.
    """

    def __init__(self, reason: str, text: str | None = None) -> None:
        super().__init__(reason)
        self.text = text


def find_class(name: str, allowed: Sequence[str] = ALLOWED) -> type:
    """The class that ``!new:name`` may build.

    Arguments
    ---------
    name : str
        Dotted, in any spelling that leads to the class.
    allowed : sequence of str
        Dotted names of modules and classes. Of a module, only what it defines
        itself and what is a ``torch.nn.Module``.

    Returns
    -------
    type
        The class.

    Raises
    ------
    Refusal
        If it is no class, or none of those.

    Example
    -------
    >>> find_class("torch.nn.functional.torch.nn.Linear")
    <class 'torch.nn.modules.linear.Linear'>
    """
    found, home = locate(name, allowed)
    if not inspect.isclass(found):
        raise Refusal(f"{home} is not a class")
    if home not in allowed and not issubclass(found, torch.nn.Module):
        raise Refusal(f"{home} is not a torch.nn.Module")
    return found


def find_callable(name: str, allowed: Sequence[str] = ALLOWED) -> Any:
    """The class or function that ``!name:name`` may hand out.

    Arguments
    ---------
    name, allowed
        As for ``find_class``; functions of PyTorch are left out, for some of
        ``torch.nn.modules`` change every module of the process.

    Returns
    -------
    callable
        The class or function.

    Raises
    ------
    Refusal
        If it is none of those.
    """
    found, home = locate(name, allowed)
    if inspect.isclass(found):
        if not issubclass(found, torch.nn.Module):
            raise Refusal(f"{home} is not a torch.nn.Module")
    elif not inspect.isfunction(found) or home.startswith("torch."):
        raise Refusal(f"{home} is neither a module nor a harmless function")
    return found


def locate(name: str, allowed: Sequence[str] = ALLOWED) -> tuple[Any, str]:
    """The object of a dotted name, and where it is defined.

    Arguments
    ---------
    name, allowed
        As for ``find_class``.

    Returns
    -------
    tuple
        The object, and the dotted name under which it is defined.

    Raises
    ------
    Refusal
        If it is defined elsewhere than in the allowed modules.
    """
    parts = name.split(".")
    if not all(is_public(part) for part in parts):
        raise Refusal(f"'{name}' is not a dotted name of public parts")
    # Nothing foreign is imported: not to look at it, not to find that it is
    # not there.
    if parts[0] not in {entry.split(".")[0] for entry in allowed}:
        raise Refusal(f"'{parts[0]}' is not on the list of packages")
    found = importlib.import_module(parts[0])
    for part in parts[1:]:
        if not isinstance(found, ModuleType):
            raise Refusal(f"'{name}' leads through what is not a module")
        found = _step(found, part, name, allowed)
    home = _home(found)
    if home is None or not any(_within(home, entry) for entry in allowed):
        raise Refusal(f"{home or name} is not on the list of what is harmless")
    return found, home


def _step(module, part, name, allowed):
    child = f"{module.__name__}.{part}"
    # Only modules on the way to an allowed one, and those below it.
    if (
        "__path__" in vars(module)
        and any(_within(child, e) or _within(e, child) for e in allowed)
        and importlib.util.find_spec(child) is not None
    ):
        return importlib.import_module(child)
    # Not getattr: packages import what they are asked for, and SpeechBrain's
    # and PyTorch's would import anything of theirs.
    if part in vars(module):
        return vars(module)[part]
    if part in vars(module).get("__all__", ()):
        return getattr(module, part)
    raise Refusal(f"'{name}' leads to nothing on the list of what is harmless")


def _home(found):
    """Where a class or function is defined, if it really is there."""
    module = getattr(found, "__module__", None)
    name = getattr(found, "__qualname__", None)
    if isinstance(module, str) and module in sys.modules:
        if vars(sys.modules[module]).get(name) is found:
            return f"{module}.{name}"
    return None


def _within(name, entry):
    return name == entry or name.startswith(entry + ".")


def is_public(part: str) -> bool:
    """Whether a part of a dotted name is plain and not private."""
    return part.isascii() and part.isidentifier() and part[0] != "_"
