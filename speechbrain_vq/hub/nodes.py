"""The nodes of a stranger's yaml, and what becomes of them.

Authors
 * speechbrain_vq authors 2026
"""

import logging
import pathlib
import re
import sys
from collections.abc import Iterator
from typing import Any

import ruamel.yaml
import torch
import yaml

from .limits import MAX_DEPTH, MAX_MERGED, MAX_NODES, check_text
from .names import Refusal, is_public

logger = logging.getLogger(__name__)

TUPLE = "!tuple"
YAML = "tag:yaml.org,2002:"
DATA = (
    *(bool, int, float, complex, str, bytes, type(None)),
    *(torch.Tensor, torch.nn.Module, torch.dtype, torch.device),
)


class Loader(ruamel.yaml.SafeLoader):
    """Composes what HyperPyYAML's loader composes, and constructs plain
    data."""

    @classmethod
    def add_implicit_resolver(cls, tag: str, regexp: Any, first: Any) -> None:
        """Nothing: ruamel.yaml would add it to all loaders of the process."""

    @property
    def versioned_resolver(self) -> dict:
        """With the tuples that HyperPyYAML adds."""
        resolvers = super().versioned_resolver
        resolvers.setdefault("(", [(TUPLE, re.compile(r"^\(.*\)$"))])
        return resolvers


def compose(text: str) -> ruamel.yaml.Node | None:
    """The root of a yaml of a sensible size; nothing is constructed."""
    # Composing recurses, reading events does not.
    loader, depth, number = Loader(text), 0, 0
    while loader.check_event():
        event = loader.get_event()
        depth += isinstance(event, ruamel.yaml.CollectionStartEvent)
        depth -= isinstance(event, ruamel.yaml.CollectionEndEvent)
        number += 1
        if depth > MAX_DEPTH or number > MAX_NODES:
            raise Refusal("it is too deep or too large for a model")
    root = Loader(text).get_single_node()
    check_merges(root)
    return root


def check_merges(root: ruamel.yaml.Node | None) -> None:
    """Refuses a yaml whose merges (``<<``) together are too large to read."""
    sizes, total = {}, 0
    for node, _ in walk(root):
        if _merged(node):
            total += _merged_size(node, sizes)
        if total > MAX_MERGED:
            raise Refusal("its merged mappings multiply")


def _merged(node):
    if not isinstance(node, ruamel.yaml.MappingNode):
        return []
    return [value for key, value in node.value if key.tag == YAML + "merge"]


def _merged_size(node, sizes):
    """Pairs of a mapping with those merged into it, as often as they are."""
    if id(node) not in sizes:
        is_list = isinstance(node, ruamel.yaml.SequenceNode)
        merged, size = (node.value, 1) if is_list else (_merged(node), 1)
        if isinstance(node, ruamel.yaml.MappingNode):
            size = len(node.value)
        sizes[id(node)] = size + sum(_merged_size(m, sizes) for m in merged)
    return sizes[id(node)]


def walk(
    root: ruamel.yaml.Node | None,
) -> Iterator[tuple[ruamel.yaml.Node, tuple]]:
    """All nodes in the order of the file, keys included, each once.

    Arguments
    ---------
    root : ruamel.yaml.Node, optional
        Where to begin.

    Yields
    ------
    tuple
        A node, and the keys and indices that lead to it.
    """
    todo, seen = [(root, ())] if root is not None else [], set()
    while todo:
        node, path = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        yield node, path
        if isinstance(node, ruamel.yaml.SequenceNode):
            below = [(n, (*path, i)) for i, n in enumerate(node.value)]
        elif isinstance(node, ruamel.yaml.MappingNode):
            below = []
            for key, value in node.value:
                below += [(key, path), (value, (*path, str(key.value)))]
        else:
            below = []
        todo += reversed(below)


def follow(root: ruamel.yaml.Node, path: tuple) -> ruamel.yaml.Node:
    """The node at a path, or as near to it as the path leads."""
    for part in path:
        if isinstance(root, ruamel.yaml.SequenceNode):
            below = dict(enumerate(root.value))
        elif isinstance(root, ruamel.yaml.MappingNode):
            below = {str(key.value): value for key, value in root.value}
        else:
            break
        if part not in below:
            break
        root = below[part]
    return root


def check_reference(node: ruamel.yaml.Node) -> None:
    """Refuses references to what is not public."""
    if not isinstance(node, ruamel.yaml.ScalarNode):
        raise Refusal("a reference is a text")
    check_text(node.value)
    for reference in re.findall(r"<([^>]*)>", node.value):
        _, dot, attribute = reference.partition(".")
        if dot and not is_public(attribute):
            raise Refusal(
                f"'{attribute}' is not the name of a public attribute"
            )


def public_attribute(value: Any, name: str) -> Any:
    """What ``!ref <object.name>`` stands for: data, a tensor or a module.

    Arguments
    ---------
    value : object
        Built by the yaml.
    name : str
        Of the attribute.

    Returns
    -------
    object
        The attribute.

    Raises
    ------
    Refusal
        If it is private, or can be called as methods and classes can.

    Example
    -------
    >>> public_attribute(torch.nn.Linear(2, 3), "in_features")
    2
    """
    if not isinstance(name, str) or not is_public(name):
        raise Refusal(f"'{name}' is not the name of a public attribute")
    found = getattr(value, name)
    if not _is_data(found):
        raise Refusal(f"'{name}' is neither data nor a module")
    return found


def _is_data(value):
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    return isinstance(value, DATA)


def make_tuple(loader: Loader, node: ruamel.yaml.ScalarNode) -> tuple:
    """HyperPyYAML's tuple, read by a loader that cannot run code."""
    return read_tuple(node.value)


def read_tuple(text: str) -> tuple:
    """The tuple that a scalar in parentheses stands for.

    Arguments
    ---------
    text : str
        Numbers, words or lists of them. Anchors, aliases and mappings are
        refused, for they multiply.

    Returns
    -------
    tuple
        What HyperPyYAML makes of them.

    Raises
    ------
    Refusal
        If there is more in it than numbers and words.

    Example
    -------
    >>> read_tuple("(1, two, 3.5)")
    (1, 'two', 3.5)
    """
    problem = Refusal("it is not a tuple of numbers and words")
    if not isinstance(text, str):
        raise problem
    check_text(text)
    try:
        found = yaml.load("[" + text[1:-1] + "]", Loader=_TupleLoader)
    except (yaml.YAMLError, ValueError, LookupError, RecursionError):
        raise problem from None
    return tuple(found)


class _TupleLoader(yaml.SafeLoader):
    def compose_node(self, parent, index):
        event = self.peek_event()
        plain = isinstance(event, yaml.ScalarEvent | yaml.SequenceStartEvent)
        if not plain or event.anchor:
            raise yaml.YAMLError("an anchor, alias or mapping")
        return super().compose_node(parent, index)


def disarm(value: Any) -> Any:
    """Keeps a SpeechBrain ``Pretrainer`` from calling, fetching and reading
    what the yaml says; anything else is as it was."""
    # Where SpeechBrain is not loaded, there is none.
    module = sys.modules.get("speechbrain.utils.parameter_transfer")
    if module is None or not isinstance(value, module.Pretrainer):
        return value
    if value.custom_hooks:
        raise Refusal("custom_hooks are called with files of the model")
    if any(map(callable, value.conditions.values())):
        raise Refusal("a condition that is called")
    for name in value.loadables:
        # It becomes the name of a file. This one splits at / and \ alike.
        plain = isinstance(name, str) and pathlib.PureWindowsPath(name).name
        if not plain or plain != name or ".." in name:
            raise Refusal(f"the loadable '{name}' is not a plain name")
    if value.paths or value.collect_in is not None:
        logger.warning(
            "paths and collect_in of the yaml's pretrainer are left out: "
            "files come from where the yaml came from."
        )
        value.paths, value.collect_in = {}, None
    return value
