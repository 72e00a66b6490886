"""Classes that a model folder may build, and limits on their arguments."""

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

# Limit on any numeric argument. It can be high, because layers on the meta
# device take no memory.
LARGEST = 2**20
# Arguments that only the caller of the loader may set.
_CALLERS = ("device", "dtype")
# Limits on numbers of layers and codebooks, which take time on any device.
_COUNT_LIMITS = dict.fromkeys(
    ("num_layers", "num_blocks", "num_codebooks", "num_quantizers"), 256
)


class Buildable(NamedTuple):
    """Class that a model folder may name.

    ``cls`` is the class or its import path (``module:name``). ``limits`` are
    the largest values of arguments by name, by default ``LARGEST``.
    ``computed`` is set if the constructor computes tensors (filter banks,
    windows), so that it cannot run on the meta device."""

    cls: type | str
    limits: Mapping[str, float] = _COUNT_LIMITS
    computed: bool = False

    @property
    def is_own(self) -> bool:
        """Whether the class is built in, not registered by a user."""
        return isinstance(self.cls, str)

    def find(self) -> type:
        """Return the class."""
        return pkgutil.resolve_name(self.cls) if self.is_own else self.cls

    def out_of_bounds(
        self, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> str | None:
        """Describe an argument that the yaml must not set, or a number that is
        too large, or return None. Raises TypeError if the class does not accept
        the arguments."""
        signature = inspect.signature(self.find())
        bound = signature.bind_partial(*args, **kwargs).arguments
        for name, value in bound.items():
            # **options are bound as one dictionary.
            inner = value if isinstance(value, dict) else {name: value}
            for key, item in inner.items():
                if key in _CALLERS and item is not None:
                    return f"{key} can only be set when the model is loaded"
                limit = self.limits.get(key, LARGEST)
                for number in leaves(item):
                    is_number = isinstance(number, int | float)
                    # Comparisons with NaN are false, so NaN is rejected.
                    if is_number and not abs(number) <= limit:
                        return f"{key}={number} is out of bounds (max {limit})"
        return None


# Names of built-in classes by module.
_CLASSES = {
    "speechbrain_vq.nnet": "VectorQuantizer ResidualVectorQuantizer "
    "MaskedBatchNorm",
    "speechbrain_vq.lobes.autoencoder": "ConvEncoder ConvDecoder "
    "SpeakerEncoder",
    "speechbrain_vq.lobes.features": "LogMel",
    "speechbrain_vq.lobes.handwriting": "LineEncoder CTCProbe",
    "speechbrain_vq.lobes.images": "ImageEncoder ImageDecoder ImageQuantizer",
    "speechbrain_vq.lobes.jitter": "TimeJitter",
    "speechbrain_vq.lobes.pixelcnn": "ColumnPixelCNN",
    "speechbrain_vq.lobes.recogniser": "PhoneEncoder LatentMixer",
    "speechbrain_vq.lobes.speakers": "SpeakerTable PretrainedSpeaker",
    "speechbrain_vq.lobes.ssl": "SSLFeatures FrameEncoder",
    "speechbrain_vq.lobes.vocoder": "SourceFilterVocoder",
    "speechbrain_vq.lobes.wavenet": "WaveNetDecoder",
    "speechbrain.lobes.features": "Fbank",
    "speechbrain.lobes.models.ECAPA_TDNN": "ECAPA_TDNN",
    "speechbrain.lobes.models.HifiGAN": "HifiganGenerator UnitHifiganGenerator",
    "speechbrain.lobes.models.Xvector": "Xvector",
    "speechbrain.nnet.linear": "Linear",
    "speechbrain.processing.features": "InputNormalization",
    "torch.nn": "BatchNorm1d BatchNorm2d Conv1d Conv2d ConvTranspose1d "
    "ConvTranspose2d Dropout ELU Embedding GELU GRU GroupNorm Identity "
    "InstanceNorm1d LSTM LayerNorm LeakyReLU Linear ModuleDict ModuleList "
    "PReLU ReLU Sequential SiLU Sigmoid Softplus Tanh",
}
# Limits on classes whose constructors compute tensors.
_FILTERS = {
    **dict.fromkeys(("n_fft", "win_length", "hop_length"), 2**13),
    **{"n_mels": 512, "left_frames": 32, "right_frames": 32},
}
_LIMITS = {
    **dict.fromkeys(("Fbank", "LogMel", "SSLFeatures"), _FILTERS),
    "SourceFilterVocoder": {**_COUNT_LIMITS, **_FILTERS, "num_layers": 32},
    "WaveNetDecoder": {**_COUNT_LIMITS, "cycle": 24},
}
_COMPUTED = (
    *("Fbank", "InputNormalization", "LogMel"),
    *("SSLFeatures", "SourceFilterVocoder"),
)
# Classes by the dotted names that yamls use.
BUILDABLE = {
    f"{module}.{name}": Buildable(
        f"{module}:{name}", _LIMITS.get(name, _COUNT_LIMITS), name in _COMPUTED
    )
    for module, names in _CLASSES.items()
    for name in names.split()
}
# Yamls of older releases and hand-written ones use these names.
for _home in ("", ".nnet.quantizers", ".nnet.quantisers"):
    for _name in ("VectorQuantizer", "ResidualVectorQuantizer"):
        BUILDABLE[f"speechbrain_vq{_home}.{_name}"] = BUILDABLE[
            f"speechbrain_vq.nnet.{_name}"
        ]


def register_module(
    cls: type | None = None, *, name: str | None = None
) -> type | Callable[[type], type]:
    """Allow model folders to build your own ``torch.nn.Module`` class.

    Call this in the process that loads the model, before ``from_hparams``.
    Numeric arguments of the class are limited, and its number of parameters is
    limited by the weights. Otherwise the class is trusted. It is built on the
    meta device, or on the CPU if that fails.

    Arguments
    ---------
    cls : type
        Class to register. It is returned, so this works as a decorator.
    name : str, optional
        Dotted name in yaml files (``!new:name``); by default the module and
        name of the class.

    Raises
    ------
    TypeError, ValueError
        If it is not a ``torch.nn.Module`` class, or the name is taken.

    Example
    -------
    >>> @register_module(name="mylab.Encoder")
    ... class Encoder(nn.Module):
    ...     pass
    >>> "mylab.Encoder" in BUILDABLE
    True
    """
    if cls is None:
        return lambda cls: register_module(cls, name=name)
    if not (inspect.isclass(cls) and issubclass(cls, nn.Module)):
        raise TypeError(
            f"register_module takes a torch.nn.Module class, got {cls!r}."
        )
    name = name or _dotted(cls)
    known = BUILDABLE.get(name)
    # Rerunning a notebook cell defines the same class again.
    if known and (known.is_own or _dotted(known.cls) != _dotted(cls)):
        raise ValueError(
            f"'{name}' is already the name of another class: pass another "
            "name to register_module."
        )
    BUILDABLE[name] = Buildable(cls)
    return cls


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def leaves(value: Any) -> Iterator[Any]:
    """Yield the values in nested lists and mappings."""
    if not isinstance(value, list | tuple | dict):
        yield value
        return
    for item in value.values() if isinstance(value, dict) else value:
        yield from leaves(item)
