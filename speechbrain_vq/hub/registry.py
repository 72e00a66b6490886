"""The classes that a model folder may build, and the bounds of their arguments."""

import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn

# Of any integer or other number among the arguments; layers built on the meta
# device take no memory, whatever their width.
LARGEST = 2**20
# Numbers of layers, books and the like, which cost time on any device.
MANY = MappingProxyType(
    {
        **dict.fromkeys(("num_layers", "num_blocks"), 256),
        **dict.fromkeys(("num_codebooks", "num_quantizers"), 256),
    }
)


class Buildable(NamedTuple):
    """Describe a class that a model folder may name.

    ``cls`` is the class, or where to import it from (``module:name``);
    ``limits`` are the largest values of arguments by name, where ``LARGEST`` is
    too large; ``computed`` says that the constructor computes tensors (filter
    banks, windows), and so cannot run on the meta device.
    """

    cls: type | str
    limits: Mapping[str, float] = MANY
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
        """Return which number among arguments is too large, None if none is;
        raise a TypeError if the class takes no such arguments."""
        signature = inspect.signature(self.find())
        given = signature.bind_partial(*args, **kwargs).arguments
        for name, value in given.items():
            # **options come as one dictionary.
            inner = value if isinstance(value, dict) else {name: value}
            for key, one in inner.items():
                limit = self.limits.get(key, LARGEST)
                numbers = (x for x in leaves(one) if isinstance(x, int | float))
                for number in numbers:
                    # NaN is not within any limit.
                    if not abs(number) <= limit:
                        return f"{key}={number} is out of bounds (to {limit})"
        return None


# Names of the classes by module.
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
# Sizes of what is computed on the spot.
_FILTERS = {
    **{"n_fft": 2**13, "win_length": 2**13, "hop_length": 2**13},
    **{"n_mels": 512, "left_frames": 32, "right_frames": 32},
}
_LIMITS = {
    **dict.fromkeys(("Fbank", "LogMel", "SSLFeatures"), _FILTERS),
    "SourceFilterVocoder": {
        **{**MANY, **_FILTERS},
        **{"kernel_size": 64, "channels": 2**12},
    },
    "WaveNetDecoder": {**MANY, "cycle": 24},
}
_COMPUTED = frozenset(
    "Fbank InputNormalization LogMel SSLFeatures SourceFilterVocoder".split()
)
# By the dotted names in yamls.
BUILDABLE = {
    f"{module}.{name}": Buildable(
        f"{module}:{name}", _LIMITS.get(name, MANY), name in _COMPUTED
    )
    for module, names in _CLASSES.items()
    for name in names.split()
}
# Yamls of older releases, and hand-written ones, have other names of the same.
for _home in ("", ".nnet.quantizers", ".nnet.quantisers"):
    for _name in ("VectorQuantizer", "ResidualVectorQuantizer"):
        BUILDABLE[f"speechbrain_vq{_home}.{_name}"] = BUILDABLE[
            f"speechbrain_vq.nnet.{_name}"
        ]


def register_module(
    cls: type | None = None, *, name: str | None = None
) -> type | Callable[[type], type]:
    """Let model folders build a class of one's own, a ``torch.nn.Module``.

    Register a class, in the process that loads, before the first
    ``from_hparams``. Numbers among its arguments are bounded, and so are its
    parameters, by the weights; beyond that what the class does is up to its
    author. It is built on the meta device, or on the CPU if that fails.

    Arguments
    ---------
    cls : type
        The class, which is also returned, so that this can be a decorator.
    name : str, optional
        Dotted name in yaml files (``!new:name``); by default the module and
        the name of the class.

    Raises
    ------
    TypeError, ValueError
        If it is no ``torch.nn.Module``, or another class has the name.

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
    # A notebook's cell that is run again defines the class again.
    if known and (known.is_own or _dotted(known.cls) != _dotted(cls)):
        raise ValueError(
            f"'{name}' is another class already: give register_module "
            "another name."
        )
    BUILDABLE[name] = Buildable(cls)
    return cls


def _dotted(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def leaves(value: Any) -> Iterator[Any]:
    """Yield what is in nested lists and mappings."""
    if not isinstance(value, list | tuple | dict):
        yield value
        return
    for one in value.values() if isinstance(value, dict) else value:
        yield from leaves(one)
