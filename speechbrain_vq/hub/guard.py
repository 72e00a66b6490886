"""Reading the yaml of a model that a stranger published.

HyperPyYAML runs what a yaml names. Here only what is known to be harmless is
named, built and referred to, and it is looked at twice: as it stands in the
file, and as it is once references are resolved and strings put together.

Authors
 * speechbrain_vq authors 2026
"""

import os
import pathlib
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import IO, Any

import ruamel.yaml
import yaml

from . import nodes
from .limits import (
    MAX_TEXT,
    bounded_hyperpyyaml,
    replace,
)
from .memory import MAX_BYTES, TensorLimit
from .names import ALLOWED, Refusal, find_callable, find_class, locate

NEW, NAME, GETATTR = "!new:", "!name:", "!apply:getattr"
PLAIN = {
    f"tag:yaml.org,2002:{name}"
    for name in "null bool int float str seq map merge timestamp".split()
}


class UnsafeHparamsError(ValueError):
    """A yaml asks for what no model needs; nothing of it was run.

    Arguments
    ---------
    reason : str
        Why it is refused.
    file : str
        Of the yaml.
    node : ruamel.yaml.Node, optional
        Where in it.
    """

    def __init__(
        self, reason: str, file: str, node: ruamel.yaml.Node | None = None
    ) -> None:
        self.file, self.line, self.column, self.tag = file, None, None, None
        where, what = file, "the file"
        if node is not None:
            self.line = node.start_mark.line + 1
            self.column = node.start_mark.column + 1
            self.tag = what = str(node.tag or "").replace(nodes.YAML, "!!")
            if isinstance(node, ruamel.yaml.ScalarNode) and node.value:
                what = f"{what} {node.value[:80]!r}"
            where = f"{file}, line {self.line}, column {self.column}"
        super().__init__(
            f"{where}: {what} is refused: {reason}. If you trust whoever "
            "published it, load it with trust_remote_code=True (or with "
            "hyperpyyaml itself): it then may run any code as you."
        )


def load_hparams_safely(
    yaml_stream: str | pathlib.Path | IO,
    overrides: Mapping | str | None = None,
    overrides_must_match: bool = True,
    *,
    allowed: Sequence[str] = ALLOWED,
    max_bytes: int = MAX_BYTES,
) -> dict[str, Any]:
    """What ``load_hyperpyyaml`` gives, for a yaml that may be hostile.

    Modules of PyTorch, SpeechBrain and this package are built and named;
    whatever else a yaml can do (call, import, include, unpickle, reach
    private attributes or methods) is refused. Of a ``Pretrainer`` only the
    loadables and plain conditions stay: it loads from where its caller says,
    not from the ``paths`` of the yaml.

    Bounded are the size of the yaml and of all that references, merges and
    arithmetic make of it, the memory of tensors, and how many tensors, modules
    and parameters are made. Not bounded are the numbers, texts and lists that
    the constructor of an allowed module makes of its arguments, the time that
    it spends otherwise, and what a module does once it is used: load a yaml
    of a stranger where a process may take no more than it should.

    Arguments
    ---------
    yaml_stream : str, path or file
        The yaml itself, or a file with it.
    overrides : mapping or str, optional
        Values that replace those of the yaml.
    overrides_must_match : bool
        Whether an override that is not in the yaml is an error.
    allowed : sequence of str
        Dotted names of the modules and classes that the yaml may name.
    max_bytes : int
        What the tensors of the model may take.

    Returns
    -------
    dict
        The hyperparameters, with all modules built.

    Raises
    ------
    UnsafeHparamsError
        If something in it is refused; it says what and where.
    ValueError
        If it is no mapping, such as a path that was given as a text.

    Example
    -------
    >>> load_hparams_safely("net: !new:torch.nn.Linear [2, 3]")
    {'net': Linear(in_features=2, out_features=3, bias=True)}
    >>> load_hparams_safely("x: !apply:os.system [ls]")
    Traceback (most recent call last):
    speechbrain_vq.hub.guard.UnsafeHparamsError: the yaml, line 1, column 4:
    !apply:os.system is refused: ...
    """
    text, file = _read(yaml_stream)
    guard = _Guard(allowed, max_bytes)
    try:
        guard.scan(text)
        guard.check_is_mapping(file)
        return guard.load(text, overrides, overrides_must_match)
    except Refusal as refusal:
        node = guard.place(refusal)
        raise UnsafeHparamsError(str(refusal), file, node) from None
    except (RecursionError, MemoryError) as error:
        reason = f"it takes too much to read ({type(error).__name__})"
        raise UnsafeHparamsError(reason, file) from error


def _read(stream):
    """The text, once: what is checked is what is loaded."""
    file = "the yaml"
    if isinstance(stream, os.PathLike):
        with open(stream, encoding="utf-8") as opened:
            return _read(opened)
    if not isinstance(stream, str):
        file = str(getattr(stream, "name", file))
        stream = stream.read(MAX_TEXT + 1)
    if isinstance(stream, bytes):
        stream = stream.decode("utf-8")
    if len(stream) > MAX_TEXT:
        raise UnsafeHparamsError(f"it has over {MAX_TEXT} characters", file)
    return stream, file


class _Guard:
    """One loading of one yaml."""

    def __init__(self, allowed, max_bytes):
        self.allowed = tuple(allowed)
        self.limit = TensorLimit(max_bytes)
        # The yaml before and after references are resolved, and the node of
        # it that is looked at.
        self.written = self.resolved = self.node = None

    def scan(self, text):
        """Looks at the yaml as it stands; nothing is built."""
        self.written = nodes.compose(text)
        for node, _ in nodes.walk(self.written):
            self.node = node
            if node.tag in ("!ref", "!copy"):
                nodes.check_reference(node)
            elif node.tag != "!PLACEHOLDER":
                self._check(node)
        self.node = None

    def check_is_mapping(self, file):
        """Of names and values, as HyperPyYAML takes it to be."""
        if getattr(self.written, "tag", None) != nodes.YAML + "map":
            raise ValueError(
                f"{file} is no mapping; to read a file pass a pathlib.Path."
            )

    def load(self, text, overrides, overrides_must_match):
        """Builds, and looks again at all that is built."""
        core = bounded_hyperpyyaml()
        replace(core, "_make_tuple", nodes.make_tuple)
        replace(core, "pydoc", SimpleNamespace(locate=self._locate))
        core.open = self._locate
        try:
            with self.limit:
                return core.load_hyperpyyaml(
                    text, overrides, overrides_must_match, self._loader()
                )
        finally:
            # HyperPyYAML changes these for the process while it loads, and
            # leaves them changed when it fails.
            for library in (yaml, ruamel.yaml):
                base = library.constructor.BaseConstructor
                base.construct_object.__defaults__ = (False,)

    def place(self, refusal):
        """Where in the file stands what was refused."""
        if self.node is None and refusal.text is not None:
            for node, _ in nodes.walk(self.written):
                if node.value == refusal.text:
                    return node
        for node, path in nodes.walk(self.resolved):
            if node is self.node:
                return nodes.follow(self.written, path)
        return self.node

    def _loader(guard):
        class Loader(nodes.Loader):
            def get_single_node(self):
                guard.resolved = super().get_single_node()
                nodes.check_merges(guard.resolved)
                return guard.resolved

            def construct_object(self, node, deep=True):
                try:
                    guard._check(node, built=True)
                    value = super().construct_object(node, deep)
                    guard.limit.check()
                    return nodes.disarm(value)
                except Refusal:
                    # The innermost one of those that are being built.
                    guard.node = guard.node or node
                    raise

        return Loader

    def _check(self, node, built=False):
        tag = str(node.tag)
        if tag == nodes.TUPLE:
            # What is built is read, and so looked at, by make_tuple.
            if not built:
                nodes.read_tuple(node.value)
        elif tag.startswith(NEW):
            find_class(tag[len(NEW) :], self.allowed)
        elif tag.startswith(NAME):
            find_callable(tag[len(NAME) :], self.allowed)
        elif tag not in PLAIN and not (built and tag == GETATTR):
            raise Refusal("no model needs this tag")

    def _locate(self, name):
        if name == "getattr":
            return nodes.public_attribute
        return locate(name, self.allowed)[0]
