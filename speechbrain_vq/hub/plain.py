"""Read the yaml of a model folder as data.

A yaml has scalars, lists, mappings and registered classes (``!new:``, and
``!name:`` for a class that another one builds). HyperPyYAML would run whatever
it names; here all else is refused before anything is built.
"""

import functools
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ruamel.yaml
import torch
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from torch import nn
from torch.overrides import TorchFunctionMode

from speechbrain_vq._names import suggestion

from .registry import BUILDABLE, Buildable

# The largest yaml of a recipe has 3 kB and 150 nodes.
MAX_BYTES = 2**16
MAX_NODES = 2**10  # With aliases and references written out
MAX_DEPTH = 32
MAX_BRACKETS = 2**8  # In a line, whose nesting the parser looks ahead for
MAX_NUMBER = 80  # Characters
MAX_TENSORS = 2**11  # Of the weights; models of the recipes have up to 250
# Calls of torch functions while modules are built: models take about ten for
# each tensor.
CALLS_PER_TENSOR, CALLS_AT_LEAST = 12, 2**13
# Functions without an effect on the meta device.
DRAWN = {torch.Tensor.normal_, torch.Tensor.bernoulli_}

YAML = "tag:yaml.org,2002:"
NEW, NAME, REF, TUPLE = "!new:", "!name:", "!ref", "!tuple"
SCALARS = {f"{YAML}{kind}" for kind in "null bool int float str".split()}
# SpeechBrain's own loader finds the weights by it; this one needs no help.
SKIPPED = "pretrainer"
PLAIN = bool | int | float | str | None


class UnsafeHparamsError(ValueError):
    """Report a yaml that is not plain data, or too large; nothing was run."""

    def __init__(
        self, reason: str, file: str, node: Node | None = None
    ) -> None:
        self.file, self.line, self.column, self.tag = file, None, None, None
        where, what = file, "the file"
        if node is not None:
            self.line = node.start_mark.line + 1
            self.column = node.start_mark.column + 1
            self.tag = what = str(node.tag or "").replace(YAML, "!!")[:80]
            if isinstance(node, ScalarNode) and node.value:
                what = f"{what} {node.value[:80]!r}"
            where = f"{file}, line {self.line}, column {self.column}"
        super().__init__(
            f"{where}: {what} is refused: {reason}. A class of your own: "
            "register_module. If you trust whoever published the model, load "
            "it with trust_remote_code=True: SpeechBrain's loader then runs "
            "what the yaml asks for, as you."
        )


class _Refused(Exception):
    """Why a node is refused; who catches it knows the file."""

    def __init__(self, reason: str, node: Node | None = None) -> None:
        super().__init__(reason)
        self.node = node


class _Value:
    """Hold a value that replaces a node."""

    def __init__(self, value: Any) -> None:
        self.value = value


class ModelYaml:
    """Read and check the yaml of a model folder without building anything.

    ``overrides`` are plain values in place of those of the yaml, nested as they
    are there. An UnsafeHparamsError tells what is no data, or too much; another
    ValueError, that it is no yaml, or that an override has no place in it.

    Example
    -------
    >>> from speechbrain_vq import bundled
    >>> yaml = ModelYaml(f"{bundled('mini')}/hyperparams.yaml")
    >>> yaml.build(num_tensors=50)["modules"]["quantizer"].codebook.device
    device(type='meta')
    """

    def __init__(
        self,
        path: str | os.PathLike,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.file = str(path)
        with self._named():
            self._loader, self._root = _parse(_read(path))
            self._top = _pairs(self._root)
            self._measure(self._root, {}, 0)
            self._override(self._root, overrides or {})
            self._top = _pairs(self._root)

    def scalar(self, key: str) -> Any:
        """Return the plain scalar of a key, None where there is none."""
        node = self._top.get(key)
        is_scalar = isinstance(node, ScalarNode) and node.tag in SCALARS
        if isinstance(node, _Value):
            return node.value
        with self._named():
            return self._scalar(node) if is_scalar else None

    def build(
        self, device: str = "meta", num_tensors: int = 0
    ) -> dict[str, Any]:
        """Build the plain values and modules of the yaml, without their
        weights.

        ``device`` is that of all modules but those that compute tensors;
        ``num_tensors`` is that of the weights, which bounds that of the model.
        An UnsafeHparamsError tells what is too large, another ValueError, which
        class cannot be built.
        """
        limit = CALLS_AT_LEAST + CALLS_PER_TENSOR * num_tensors
        self._device, self._built = device, {}
        with self._named(), _CallLimit(limit) as self._limit:
            if num_tensors > MAX_TENSORS:
                raise _Refused(f"its weights have over {MAX_TENSORS} tensors")
            return self._mapping(self._root, skipped=SKIPPED)

    # Checks ----------------------------------------------------------------

    def _measure(self, node: Node, sizes: dict, depth: int) -> int:
        """Check a node and those below it, and count them."""
        if depth > MAX_DEPTH:
            raise _Refused(f"it is nested more than {MAX_DEPTH} deep", node)
        if id(node) not in sizes:
            # What is met again before it is counted is in itself.
            sizes[id(node)] = None
            below = self._below(node)
            sizes[id(node)] = 1 + sum(
                self._measure(child, sizes, depth + 1) for child in below
            )
        size = sizes[id(node)]
        if size is None:
            raise _Refused("it refers to itself", node)
        if size > MAX_NODES:
            raise _Refused(f"it stands for more than {MAX_NODES} values", node)
        return size

    def _below(self, node: Node) -> list[Node]:
        tag = str(node.tag)
        if tag == REF:
            return [self._referred(node)]
        if isinstance(node, ScalarNode) and tag in SCALARS:
            self._scalar(node)
            return []
        if tag == TUPLE and isinstance(node, ScalarNode):
            self._tuple(node)
            return []
        if tag.startswith((NEW, NAME)):
            if _entry(tag) is None:
                raise _Refused("it is no registered class", node)
            if isinstance(node, ScalarNode):
                if node.value:
                    raise _Refused("arguments must be a list or mapping", node)
                return []
        elif tag not in (f"{YAML}map", f"{YAML}seq"):
            raise _Refused("it is no plain data", node)
        if isinstance(node, MappingNode):
            pairs = _pairs(node)
            if node is self._root:
                pairs = {k: v for k, v in pairs.items() if k != SKIPPED}
            return list(pairs.values())
        return list(node.value)

    def _referred(self, node: Node) -> Node:
        name = re.fullmatch(r"<(\w+)>", str(node.value))
        if name is None or name[1] not in self._top:
            raise _Refused("a reference must be <key>, one of the file", node)
        value = self._top[name[1]]
        # HyperPyYAML would follow it.
        if isinstance(value, ScalarNode) and "<" in value.value:
            raise _Refused("it refers to text with a reference", node)
        return value

    def _override(
        self, node: Node, values: Mapping[str, Any], path: str = ""
    ) -> None:
        """Put plain values in the place of nodes of the same type."""
        if not isinstance(values, Mapping):
            raise TypeError(
                f"overrides are a dict of values by name, got {values!r}."
            )
        pairs = _pairs(node) if isinstance(node, MappingNode) else {}
        for key, value in values.items():
            name = f"{path}{key}"
            if key not in pairs:
                raise ValueError(
                    f"overrides: the yaml has no '{name}'."
                    f"{suggestion(key, pairs)} There it has "
                    f"{', '.join(pairs) or 'no keys'}."
                )
            if isinstance(value, Mapping):
                self._override(pairs[key], value, f"{name}.")
                continue
            if not _is_plain(value):
                raise ValueError(
                    f"overrides: '{name}' is {value!r}; plain values (numbers, "
                    "words, lists of them) can be given."
                )
            expected = self._type_of(pairs[key])
            # Text may be left out, such as the name of a vocoder.
            absent = value is None and expected == "text"
            if expected not in (_type_name(value), "null") and not absent:
                raise ValueError(
                    f"overrides: '{name}' is {value!r}, but the yaml has a "
                    f"{expected} there."
                )
            node.value = [
                (k, _Value(value) if k.value == key else v)
                for k, v in node.value
            ]

    def _type_of(self, node: Node) -> str:
        """Return the type of the value of a node, in words."""
        if node.tag == REF:
            return self._type_of(self._referred(node))
        if isinstance(node, ScalarNode) and node.tag in SCALARS:
            return _type_name(self._scalar(node))
        is_list = isinstance(node, SequenceNode) and node.tag == f"{YAML}seq"
        return "list" if is_list or node.tag == TUPLE else "mapping or module"

    # Building --------------------------------------------------------------

    def _build(self, node: Node) -> Any:
        if isinstance(node, _Value):
            return node.value
        # What is one node (an alias, a reference) becomes one module.
        if id(node) not in self._built:
            self._built[id(node)] = self._build_new(node)
        return self._built[id(node)]

    def _build_new(self, node: Node) -> Any:
        tag = str(node.tag)
        if tag == REF:
            return self._build(self._referred(node))
        if tag == TUPLE:
            return self._tuple(node)
        if tag.startswith((NEW, NAME)):
            return self._construct(_entry(tag), node)
        if isinstance(node, MappingNode):
            return self._mapping(node)
        if isinstance(node, SequenceNode):
            return [self._build(child) for child in node.value]
        return self._scalar(node)

    def _mapping(self, node: Node, skipped: str | None = None) -> dict:
        pairs = _pairs(node).items()
        return {k: self._build(v) for k, v in pairs if k != skipped}

    def _construct(self, entry: Buildable, node: Node) -> Any:
        args, kwargs = [], {}
        if isinstance(node, MappingNode):
            kwargs = self._mapping(node)
        elif isinstance(node, SequenceNode):
            args = [self._build(child) for child in node.value]
        try:
            reason = entry.out_of_bounds(args, kwargs)
            if reason is not None:
                raise _Refused(reason)
            # A class to be built by another one, such as an activation.
            if str(node.tag).startswith(NAME):
                return functools.partial(entry.find(), *args, **kwargs)
            module = self._make(entry, args, kwargs)
            self._limit.check()
        except _Refused as refused:
            raise _Refused(str(refused), node) from None
        # Whatever its constructor raises, it is for what the file says.
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
                # A class that someone registered may compute something.
                if entry.cls is None or device == "cpu":
                    raise
        with torch.device("cpu"):
            return cls(*args, **kwargs)

    def _scalar(self, node: ScalarNode) -> PLAIN:
        kind = node.tag[len(YAML) :]
        if kind in ("int", "float") and len(node.value) > MAX_NUMBER:
            raise _Refused(f"a number has up to {MAX_NUMBER} characters", node)
        if kind == "str":
            return node.value
        try:
            return self._loader.construct_object(node)
        except (ValueError, ruamel.yaml.YAMLError) as error:
            raise _Refused(f"it is no {kind}", node) from error

    def _tuple(self, node: ScalarNode) -> tuple:
        """Return the tuple of plain scalars that ``(1, 2)`` stands for."""
        loader, inner = _parse(f"[{node.value[1:-1]}]")
        items = inner.value
        if not isinstance(inner, SequenceNode) or not all(
            isinstance(item, ScalarNode) and item.tag in SCALARS
            for item in items
        ):
            raise _Refused("a tuple must hold plain values", node)
        return tuple(self._scalar(item) for item in items)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Name the file in what is raised."""
        try:
            yield
        except _Refused as refused:
            raise UnsafeHparamsError(
                str(refused), self.file, refused.node
            ) from None
        except (ruamel.yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.file} is no yaml: {error}") from error


class _CallLimit(TorchFunctionMode):
    """Bound the calls of torch: tensors on the meta device still take time."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.left = limit

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.left -= 1
        self.check()
        kwargs = kwargs or {}
        first = args[0] if args else kwargs.get("tensor")
        if torch.is_tensor(first) and first.is_meta:
            # There are no values to draw or to sum, for which PyTorch would
            # import its compiler.
            home = getattr(function, "__module__", None)
            if function in DRAWN or home == "torch.nn.init":
                return first
            if function is torch.norm_except_dim:
                return _norm_except_dim(*args, **kwargs)
        return function(*args, **kwargs)

    def check(self) -> None:
        """Raise again what a constructor may have caught."""
        if self.left < 0:
            raise _Refused("it has many more tensors than the weights")


def _entry(tag: str) -> Buildable | None:
    """Look up the buildable class of a tag."""
    return BUILDABLE.get(tag.partition(":")[2])


def _norm_except_dim(v, pow=2, dim=0):
    """Make a tensor of the shape that ``torch.norm_except_dim`` returns."""
    shape = [1] * v.dim()
    shape[dim] = v.shape[dim]
    return v.new_empty(shape)


class _Loader(ruamel.yaml.SafeLoader):
    """Parse yaml as HyperPyYAML does: text in parentheses is a tuple."""

    @property
    def versioned_resolver(self) -> dict:
        """Return the tags of plain scalars by first character."""
        resolvers = super().versioned_resolver
        tuples = (TUPLE, re.compile(r"^\(.*\)$"))
        return {**resolvers, "(": [tuples]}


def _read(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise _Refused(f"it has over {MAX_BYTES} bytes")
    return content.decode("utf-8")


def _parse(text: str) -> tuple[_Loader, Node]:
    """Compose a yaml, and return the loader that knows its scalars."""
    if re.search("^%", text, re.MULTILINE):
        raise _Refused("directives (%YAML, %TAG) are not read")
    for line in text.splitlines():
        if line.count("[") + line.count("{") > MAX_BRACKETS:
            raise _Refused(f"a line has over {MAX_BRACKETS} brackets")
    # Composing recurses, reading events does not.
    loader, depth, number, anchors = _Loader(text), 0, 0, set()
    while loader.check_event():
        event = loader.get_event()
        number += 1
        anchor = getattr(event, "anchor", None)
        if anchor and not isinstance(event, ruamel.yaml.AliasEvent):
            if anchor in anchors:
                raise _Refused(f"the anchor {anchor[:80]!r} is defined twice")
            anchors.add(anchor)
        depth += isinstance(event, ruamel.yaml.CollectionStartEvent)
        depth -= isinstance(event, ruamel.yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise _Refused(f"it is nested more than {MAX_DEPTH} deep")
        # A mapping or list has two.
        if number > 2 * MAX_NODES:
            raise _Refused(f"it has more than {MAX_NODES} values")
    loader = _Loader(text)
    root = loader.get_single_node()
    return loader, root


def _pairs(node: Node | None) -> dict[str, Node]:
    """Return the values of a mapping by key."""
    if not isinstance(node, MappingNode):
        raise ruamel.yaml.YAMLError("it is no mapping of names to values")
    pairs = {}
    for key, value in node.value:
        if key.tag != f"{YAML}str":
            raise _Refused("a key must be a plain name", key)
        if key.value in pairs:
            raise _Refused("the key is defined twice", key)
        pairs[key.value] = value
    return pairs


def _type_name(value: Any) -> str:
    """Return the type of a plain value, in words; an int is a number too."""
    if value is None:
        return "null"
    names = {bool: "boolean value", str: "text"}
    default = "number" if isinstance(value, int | float) else "list"
    return names.get(type(value), default)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)
