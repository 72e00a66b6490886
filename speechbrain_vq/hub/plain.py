"""Read the yaml of a model folder as data.

Only scalars, lists, mappings and registered classes (``!new:``, and ``!name:``
for a class that another one instantiates) are allowed. Anything else, which
HyperPyYAML might run, is rejected before anything is built.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import ruamel.yaml
import torch
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from torch import nn
from torch.overrides import TorchFunctionMode

from speechbrain_vq._names import unknown_name

from .registry import BUILDABLE, Buildable

# The largest yaml of a recipe has 3 kB and 150 nodes.
MAX_BYTES = 2**16
MAX_NODES = 2**10  # With aliases and references expanded
MAX_DEPTH = 32
MAX_BRACKETS = 2**8  # In a line; the parser looks ahead for their nesting
MAX_NUMBER = 80  # Characters
MAX_TENSORS = 2**11  # In the weights; models of the recipes have up to 250
# Limit on calls of torch functions while modules are built. Models make about
# ten per tensor.
CALLS_PER_TENSOR, CALLS_AT_LEAST = 12, 2**12
# Limit on modules that compute tensors: they take memory before their weights
# are checked.
MAX_COMPUTED = 8
# Random functions, which have no effect on the meta device.
RANDOM = {torch.Tensor.normal_, torch.Tensor.bernoulli_}

YAML = "tag:yaml.org,2002:"
NEW, NAME, REF, TUPLE = "!new:", "!name:", "!ref", "!tuple"
SCALARS = {f"{YAML}{kind}" for kind in "null bool int float str".split()}
# Key by which SpeechBrain's own loader finds the weights; not needed here.
SKIPPED = "pretrainer"
PLAIN = bool | int | float | str | None


class UnsafeHparamsError(ValueError):
    """Error for a yaml that is not plain data, or is too large. No code in it
    was run."""

    def __init__(
        self, reason: str, file: str, node: Node | None = None
    ) -> None:
        place, content = file, "the file"
        if node is not None:
            mark = node.start_mark
            place = f"{file}, line {mark.line + 1}, column {mark.column + 1}"
            content = str(node.tag or "").replace(YAML, "!!")[:80]
            if isinstance(node, ScalarNode) and node.value:
                content = f"{content} {node.value[:80]!r}"
        super().__init__(
            f"{place}: {content} is refused: {reason}. Allow a class of your "
            "own with register_module. If you trust the publisher of the "
            "model, load it with trust_remote_code=True: SpeechBrain's loader "
            "then runs any code that the yaml names, with your permissions."
        )


class _Refused(Exception):
    """Reason to refuse a node. ``_file_in_errors`` adds the file name."""

    def __init__(self, reason: str, node: Node | None = None) -> None:
        super().__init__(reason)
        self.node = node


class _Reference(NamedTuple):
    """Reference to the value of another top-level key."""

    key: str


class _Call(NamedTuple):
    """Registered class of a node, and its arguments."""

    entry: Buildable
    arguments: list | dict
    node: Node


class ModelYaml:
    """Yaml of a model folder, read and checked without building anything.

    ``overrides`` are plain values that replace those of the yaml, nested as in
    the yaml. Raises UnsafeHparamsError if the yaml is not plain data or is too
    large, and ValueError if it is not yaml or an override does not fit.

    Example
    -------
    >>> from speechbrain_vq import bundled
    >>> yaml = ModelYaml(f"{bundled('units')}/hyperparams.yaml")
    >>> yaml.build(num_tensors=50)["modules"]["quantizer"].codebook.device
    device(type='meta')
    """

    def __init__(
        self,
        path: str | os.PathLike,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.file = str(path)
        with self._file_in_errors():
            self._root = _parse(_read(path))
            self._top = _pairs(self._root)
            self._top.pop(SKIPPED, None)
            # Values and sizes of nodes, by id.
            self._sized: dict[int, tuple[Any, int | None]] = {}
            self._computed = 0
            self._values = self._value(self._root, 0)[0]
            if not isinstance(self._values, dict):
                raise _Refused("it must be a plain mapping", self._root)
            self._override(self._values, overrides or {})

    def scalar(self, key: str) -> Any:
        """Return the plain scalar under a key, or None."""
        value = self._values.get(key)
        return value if isinstance(value, PLAIN) else None

    def build(
        self, device: str = "meta", num_tensors: int = 0
    ) -> dict[str, Any]:
        """Build the plain values and modules of the yaml, without their
        weights.

        Modules are on ``device``, except those that compute tensors.
        ``num_tensors`` is the number of tensors in the weights, which limits
        the number in the model. Raises UnsafeHparamsError if the model is too
        large, and ValueError if a class cannot be built."""
        limit = CALLS_AT_LEAST + CALLS_PER_TENSOR * num_tensors
        self._device, self._built = device, {}
        with self._file_in_errors(), _CallLimit(limit) as self._limit:
            if num_tensors > MAX_TENSORS:
                raise _Refused(f"its weights have over {MAX_TENSORS} tensors")
            return self._build(self._values)

    # Reading ---------------------------------------------------------------

    def _value(self, node: Node, depth: int) -> tuple[Any, int]:
        """Return the checked value of a node, and the number of values in it
        with aliases and references expanded."""
        if depth > MAX_DEPTH:
            raise _Refused(f"it is nested more than {MAX_DEPTH} deep", node)
        if id(node) not in self._sized:
            # A node that is visited again before its size is set contains
            # itself.
            self._sized[id(node)] = None, None
            self._sized[id(node)] = self._new_value(node, depth + 1)
        value, size = self._sized[id(node)]
        if size is None:
            raise _Refused("it refers to itself", node)
        if size > MAX_NODES:
            raise _Refused(f"it expands to more than {MAX_NODES} values", node)
        return value, size

    def _new_value(self, node: Node, depth: int) -> tuple[Any, int]:
        tag = str(node.tag)
        if tag == REF:
            key = self._referred(node)
            return _Reference(key), 1 + self._value(self._top[key], depth)[1]
        if isinstance(node, ScalarNode) and tag in SCALARS:
            return _scalar(node), 1
        if isinstance(node, ScalarNode) and tag == TUPLE:
            return _tuple(node), 1
        is_call = tag.startswith((NEW, NAME))
        entry = BUILDABLE.get(tag.partition(":")[2])
        if is_call and entry is None:
            raise _Refused("it is not a registered class", node)
        if not is_call and tag not in (f"{YAML}map", f"{YAML}seq"):
            raise _Refused("it is not plain data", node)
        if is_call and entry.computed:
            self._computed += 1
            if self._computed > MAX_COMPUTED:
                reason = f"more than {MAX_COMPUTED} modules compute tensors"
                raise _Refused(reason, node)
        if isinstance(node, MappingNode):
            pairs = self._top if node is self._root else _pairs(node)
            sized = {k: self._value(v, depth) for k, v in pairs.items()}
            value = {key: v for key, (v, _) in sized.items()}
            size = 1 + sum(n for _, n in sized.values())
        elif isinstance(node, SequenceNode):
            parts = [self._value(child, depth) for child in node.value]
            value, size = [v for v, _ in parts], 1 + sum(n for _, n in parts)
        elif node.value:
            raise _Refused("arguments must be a list or mapping", node)
        else:
            value, size = [], 1
        return (_Call(entry, value, node) if is_call else value), size

    def _referred(self, node: Node) -> str:
        match = re.fullmatch(r"<(\w+)>", str(node.value))
        if match is None or match[1] not in self._top:
            raise _Refused("a reference must be <key>, a key of the file", node)
        value = self._top[match[1]]
        # HyperPyYAML would resolve a reference in the text.
        if isinstance(value, ScalarNode) and "<" in value.value:
            raise _Refused("it refers to text with a reference", node)
        return match[1]

    def _override(self, value: Any, overrides: Mapping[str, Any]) -> None:
        """Replace values with plain ones."""
        value = self._resolved(value)
        value = value.arguments if isinstance(value, _Call) else value
        known = value if isinstance(value, dict) else {}
        for key, new in overrides.items():
            if key not in known:
                raise ValueError(
                    f"overrides: {unknown_name('key', key, known)}"
                )
            if isinstance(new, Mapping):
                self._override(known[key], new)
            elif _is_plain(new):
                known[key] = new
            else:
                raise ValueError(
                    f"overrides: '{key}' is {new!r}: give plain values "
                    "(numbers, text, or lists of them)."
                )

    def _resolved(self, value: Any) -> Any:
        """Return the value that a reference stands for, or the value itself."""
        while isinstance(value, _Reference):
            value = self._values[value.key]
        return value

    # Building --------------------------------------------------------------

    def _build(self, value: Any) -> Any:
        value = self._resolved(value)
        if not isinstance(value, _Call | list | dict):
            return value
        # Aliases and references to a node share one module.
        if id(value) not in self._built:
            if isinstance(value, _Call):
                built = self._construct(*value)
            elif isinstance(value, dict):
                built = {key: self._build(v) for key, v in value.items()}
            else:
                built = [self._build(v) for v in value]
            self._built[id(value)] = built
        return self._built[id(value)]

    def _construct(
        self, entry: Buildable, arguments: list | dict, node: Node
    ) -> Any:
        built = self._build(arguments)
        args, kwargs = ([], built) if isinstance(built, dict) else (built, {})
        try:
            reason = entry.out_of_bounds(args, kwargs)
            if reason is not None:
                raise _Refused(reason)
            # Another class instantiates it, for example as its activation.
            if str(node.tag).startswith(NAME):
                return functools.partial(entry.find(), *args, **kwargs)
            module = self._make(entry, args, kwargs)
            self._limit.check()
        except _Refused as refused:
            raise _Refused(str(refused), node) from None
        # With arguments from the file, the constructor may raise any error.
        except Exception as error:
            raise ValueError(
                f"{self.file}, line {node.start_mark.line + 1}: "
                f"{str(node.tag).partition(':')[2]} cannot be built: "
                f"{type(error).__name__}: {error}"
            ) from error
        return module

    def _make(self, entry: Buildable, args: list, kwargs: dict) -> nn.Module:
        device = "cpu" if entry.computed else self._device
        cls = entry.find()
        with torch.device(device):
            try:
                return cls(*args, **kwargs)
            except RuntimeError:
                # A class registered by a user may compute tensors.
                if entry.is_own or device == "cpu":
                    raise
        with torch.device("cpu"):
            return cls(*args, **kwargs)

    @contextmanager
    def _file_in_errors(self) -> Iterator[None]:
        """Add the name of the file to errors."""
        try:
            yield
        except _Refused as refused:
            raise UnsafeHparamsError(
                str(refused), self.file, refused.node
            ) from None
        except (ruamel.yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.file} is not yaml: {error}") from error


class _CallLimit(TorchFunctionMode):
    """Limit the number of torch calls, since even calls on the meta device take
    time."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.left -= 1
        self.check()
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        if torch.is_tensor(first) and first.is_meta:
            # Meta tensors have no values to draw or sum, and PyTorch would
            # import its compiler for these functions.
            module = getattr(function, "__module__", None)
            if function in RANDOM or module == "torch.nn.init":
                return first
            if function is torch.norm_except_dim:
                return _norm_except_dim(*args, **kwargs)
        return function(*args, **kwargs)

    def check(self) -> None:
        """Raise _Refused above the limit, even if a constructor caught it."""
        if self.left < 0:
            raise _Refused("it has many more tensors than the weights")


def _norm_except_dim(v, pow=2, dim=0):
    """Return an empty tensor with the shape of ``torch.norm_except_dim``."""
    shape = [1] * v.dim()
    shape[dim] = v.shape[dim]
    return v.new_empty(shape)


class _Loader(ruamel.yaml.SafeLoader):
    """Loader that reads text in parentheses as a tuple, as HyperPyYAML does."""

    @property
    def versioned_resolver(self) -> dict:
        """Patterns of the tags of plain scalars by first character."""
        resolvers = super().versioned_resolver
        tuples = (TUPLE, re.compile(r"^\(.*\)$"))
        return {**resolvers, "(": [tuples]}


def _read(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _Refused(f"it has over {MAX_BYTES} bytes")
    return content.decode("utf-8")


def _parse(text: str) -> Node | None:
    """Parse a yaml to nodes within the limits."""
    if re.search("^%", text, re.MULTILINE):
        raise _Refused("directives (%YAML, %TAG) are not allowed")
    for line in text.splitlines():
        if line.count("[") + line.count("{") > MAX_BRACKETS:
            raise _Refused(f"a line has over {MAX_BRACKETS} brackets")
    # Check limits on events, since composing nodes is recursive.
    loader, depth, number = _Loader(text), 0, 0
    while loader.check_event():
        event = loader.get_event()
        number += 1
        depth += isinstance(event, ruamel.yaml.CollectionStartEvent)
        depth -= isinstance(event, ruamel.yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _Refused(f"it is nested more than {MAX_DEPTH} deep")
        # A mapping or list has two events.
        if number > 2 * MAX_NODES:
            raise _Refused(f"it has more than {MAX_NODES} values")
    return _Loader(text).get_single_node()


def _scalar(node: ScalarNode) -> PLAIN:
    kind = node.tag[len(YAML) :]
    if kind in ("int", "float") and len(node.value) > MAX_NUMBER:
        raise _Refused(f"a number has over {MAX_NUMBER} characters", node)
    if kind == "str":
        return node.value
    try:
        return _Loader("").construct_object(node)
    except (ValueError, ruamel.yaml.YAMLError) as error:
        raise _Refused(f"it is not a valid {kind}", node) from error


def _tuple(node: ScalarNode) -> tuple:
    """Return the tuple of plain scalars in text such as ``(1, 2)``."""
    inner = _parse(f"[{node.value[1:-1]}]")
    if not isinstance(inner, SequenceNode) or not all(
        isinstance(item, ScalarNode) and item.tag in SCALARS
        for item in inner.value
    ):
        raise _Refused("a tuple must contain plain values", node)
    return tuple(_scalar(item) for item in inner.value)


def _pairs(node: Node | None) -> dict[str, Node]:
    """Return the nodes of a mapping by key."""
    if not isinstance(node, MappingNode):
        raise ruamel.yaml.YAMLError("it must be a mapping of names to values")
    pairs = {}
    for key, value in node.value:
        if key.tag != f"{YAML}str":
            raise _Refused("a key must be a plain name", key)
        if key.value in pairs:
            raise _Refused("the key is defined twice", key)
        pairs[key.value] = value
    return pairs


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)
