"""The classes that a model folder may build, and the bounds of their arguments."""

import importlib
import inspect
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

    ``limits`` are the largest values of arguments by name, where ``LARGEST`` is
    too large; ``computed`` says that the constructor computes tensors (filter
    banks, windows), and so cannot run on the meta device; ``cls`` is the class
    itself, where it was registered.
    """

    module: str
    name: str
    limits: Mapping[str, float] = MANY
    computed: bool = False
    cls: type | None = None

    def find(self) -> type:
        """Return the class."""
        if self.cls is not None:
            return self.cls
        return getattr(importlib.import_module(self.module), self.name)

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
                for number in _numbers(one):
                    # NaN is not within any limit.
                    if not abs(number) <= limit:
                        return f"{key}={number} is out of bounds (to {limit})"
        return None


def _table() -> dict[str, Buildable]:
    """Make the table of buildable classes by dotted name."""
    lobes = "speechbrain_vq.lobes"
    nnet = "speechbrain_vq.nnet"
    models = "speechbrain.lobes.models"
    # Sizes of what is computed on the spot.
    filters = {
        **{"n_fft": 2**13, "win_length": 2**13, "hop_length": 2**13},
        **{"n_mels": 512, "left_frames": 32, "right_frames": 32},
    }
    layers = (
        "BatchNorm1d BatchNorm2d Conv1d Conv2d ConvTranspose1d "
        "ConvTranspose2d Dropout ELU Embedding GELU GRU GroupNorm Identity "
        "InstanceNorm1d LSTM LayerNorm LeakyReLU Linear ModuleDict ModuleList "
        "PReLU ReLU Sequential SiLU Sigmoid Softplus Tanh"
    )
    rows = [
        *((nnet, "VectorQuantizer"), (nnet, "ResidualVectorQuantizer")),
        (nnet, "MaskedBatchNorm"),
        (f"{lobes}.features", "LogMel", filters, True),
        *(
            (f"{lobes}.autoencoder", name)
            for name in ("ConvEncoder", "ConvDecoder", "SpeakerEncoder")
        ),
        (f"{lobes}.handwriting", "LineEncoder"),
        (f"{lobes}.handwriting", "CTCProbe"),
        *(
            (f"{lobes}.images", name)
            for name in ("ImageEncoder", "ImageDecoder", "ImageQuantizer")
        ),
        (f"{lobes}.jitter", "TimeJitter"),
        (f"{lobes}.pixelcnn", "ColumnPixelCNN"),
        (f"{lobes}.recogniser", "PhoneEncoder"),
        (f"{lobes}.recogniser", "LatentMixer"),
        (f"{lobes}.ssl", "SSLFeatures", filters, True),
        (f"{lobes}.ssl", "FrameEncoder"),
        (f"{lobes}.speakers", "SpeakerTable"),
        (f"{lobes}.speakers", "PretrainedSpeaker"),
        (
            f"{lobes}.vocoder",
            "SourceFilterVocoder",
            {**MANY, **filters, "kernel_size": 64, "channels": 2**12},
            True,
        ),
        (f"{lobes}.wavenet", "WaveNetDecoder", {**MANY, "cycle": 24}),
        (f"{models}.HifiGAN", "HifiganGenerator"),
        (f"{models}.HifiGAN", "UnitHifiganGenerator"),
        (f"{models}.ECAPA_TDNN", "ECAPA_TDNN"),
        (f"{models}.Xvector", "Xvector"),
        ("speechbrain.nnet.linear", "Linear"),
        ("speechbrain.lobes.features", "Fbank", filters, True),
        ("speechbrain.processing.features", "InputNormalization", MANY, True),
        *(("torch.nn", name) for name in layers.split()),
    ]
    table = {f"{row[0]}.{row[1]}": Buildable(*row) for row in rows}
    # Other names of the same, as yamls of older releases and hand-written
    # ones have them.
    for home in ("speechbrain_vq", f"{nnet}.quantizers", f"{nnet}.quantisers"):
        for name in ("VectorQuantizer", "ResidualVectorQuantizer"):
            table[f"{home}.{name}"] = table[f"{nnet}.{name}"]
    return table


BUILDABLE = _table()


def register_module(
    cls: type | None = None, *, name: str | None = None
) -> type | Callable[[type], type]:
    """Let model folders build a class of one's own, a ``torch.nn.Module``.

    A model folder is data and builds registered classes only. Register a
    class, in the process that loads, before the first ``from_hparams``.
    Numbers among its arguments are bounded, and so are its parameters, by the
    weights; beyond that what the class does is up to its author. It is built
    on the meta device, or on the CPU if that fails.

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
    name = name or f"{cls.__module__}.{cls.__qualname__}"
    known = BUILDABLE.get(name)
    # A notebook's cell that is run again defines the class again.
    if known is not None and (known.cls is None or not _same(known.cls, cls)):
        raise ValueError(
            f"'{name}' is another class already: give register_module "
            "another name."
        )
    BUILDABLE[name] = Buildable(cls.__module__, cls.__qualname__, MANY, cls=cls)
    return cls


def _same(one: type, other: type) -> bool:
    """Return whether two classes are from the same line of code."""
    return (one.__module__, one.__qualname__) == (
        other.__module__,
        other.__qualname__,
    )


def _numbers(value: Any) -> Iterator[float]:
    """Yield all numbers of a value, in nested lists and mappings."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, list | tuple | dict):
        inner = value.values() if isinstance(value, dict) else value
        for one in inner:
            yield from _numbers(one)
