"""How much a stranger's yaml may take: text, references,
arithmetic.

Authors
 * speechbrain_vq authors 2026
"""

import importlib.util
import operator
from types import ModuleType, SimpleNamespace

from .names import Refusal

# Far beyond any model's yaml; what is within is read in a few seconds.
MAX_TEXT = 2**18  # Characters of a yaml
MAX_NODES = 50_000
MAX_MERGED = 2**11  # Pairs of all mappings that merge others, with those merged
MAX_DEPTH = 64
MAX_STEPS = 2**18  # Nodes and characters met while references are resolved
STEPS_PER_COPY = 16
MAX_STRING = 2**12  # Characters of a reference, a tuple or what they make
MAX_REFERENCES = 2**8  # In one string
MAX_BITS = 2**10  # Of an integer that is computed


def bounded_hyperpyyaml() -> ModuleType:
    """HyperPyYAML, with an end to what references and arithmetic may take.

    Stock HyperPyYAML follows references and shared nodes as often as they are
    mentioned, so that ten lines ask for more than there is of memory or time.

    Returns
    -------
    module
        A copy of ``hyperpyyaml.core`` of the caller's own.

    Example
    -------
    >>> hyperpyyaml = bounded_hyperpyyaml()
    >>> hyperpyyaml.load_hyperpyyaml("{a: 3, b: !ref <a> ** 2}")
    {'a': 3, 'b': 9}
    """
    spec = importlib.util.find_spec("hyperpyyaml.core")
    core = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(core)
    steps = _Steps()
    walk, deref = core._walk_tree_and_resolve, core.deref
    resolve, parse = core.recursive_resolve, core.parse_arithmetic

    def bounded_walk(key, current_node, *args, **kwargs):
        steps.spend(1, str(key).partition("[")[0])
        return walk(key, current_node, *args, **kwargs)

    def bounded_resolve(reference, *args, **kwargs):
        try:
            if isinstance(reference, str) and "<" in reference:
                check_text(reference)
            return resolve(reference, *args, **kwargs)
        except Refusal as refusal:
            refusal.text = str(reference)
            raise

    def bounded_deref(ref, full_tree, copy_mode=False):
        cost = STEPS_PER_COPY if copy_mode else 1
        steps.spend_on(deref(ref, full_tree), cost)
        return deref(ref, full_tree, copy_mode)

    def bounded_parse(reference):
        check_text(reference)
        return parse(reference)

    replace(core, "_walk_tree_and_resolve", bounded_walk)
    replace(core, "recursive_resolve", bounded_resolve)
    replace(core, "deref", bounded_deref)
    replace(core, "parse_arithmetic", bounded_parse)
    names = "add sub mul truediv floordiv pow mod".split()
    operators = {name: _bounded(getattr(operator, name)) for name in names}
    replace(core, "op", SimpleNamespace(**operators))
    return core


def replace(module: ModuleType, name: str, value: object) -> None:
    """Sets what a module already has: a guard in the wrong place guards
    nothing."""
    if not hasattr(module, name):
        raise RuntimeError(
            f"This version of {module.__name__} has no {name}, so it cannot "
            "be guarded: install another one."
        )
    setattr(module, name, value)


class _Steps:
    def __init__(self):
        self.left = MAX_STEPS

    def spend(self, number, text=None):
        self.left -= number
        if self.left < 0:
            raise Refusal("its references and aliases multiply", text)

    def spend_on(self, value, cost):
        """All that is mentioned in a value, as often as it is."""
        todo = [value]
        while todo:
            value = todo.pop()
            self.spend(cost + (len(value) if isinstance(value, str) else 0))
            if isinstance(value, dict):
                todo += [*value.keys(), *value.values()]
            elif isinstance(value, list):
                todo += value


def check_text(text: str) -> None:
    """Refuses a string that takes too long to look at.

    Arguments
    ---------
    text : str
        A reference, a tuple or what references made.
    """
    if len(text) > MAX_STRING:
        raise Refusal(f"it makes a string of over {MAX_STRING} characters")
    # A < that nothing closes is looked for to the end of the string.
    if text.count("<") > MAX_REFERENCES:
        raise Refusal(f"it has over {MAX_REFERENCES} references in one string")


def _bounded(function):
    def bounded(left, right):
        if function is not operator.add:
            if isinstance(left, str | bytes) or isinstance(right, str | bytes):
                raise Refusal("it multiplies or formats text")
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(function, left, right)
        return function(left, right)

    return bounded


def _check_bits(function, left, right):
    bits = left.bit_length()
    if function is operator.pow:
        bits *= abs(right)
    elif function is operator.mul:
        bits += right.bit_length()
    if bits > MAX_BITS:
        raise Refusal(f"it computes a number of over {MAX_BITS} bits")
