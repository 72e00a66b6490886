"""Import public names lazily (PEP 562), so that plain PyTorch code does not
import SpeechBrain."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def attach(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Return ``__getattr__``, ``__dir__`` and ``__all__`` for a package whose
    public names are imported on first use. ``exports`` lists them by the
    submodule that defines them."""
    home = {name: module for module in exports for name in exports[module]}

    def getattr_hook(name: str) -> Any:
        """Import a public name on its first use."""
        if name not in home:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}"
            )
        value = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_hook() -> list[str]:
        """Return the public names."""
        return sorted({*vars(sys.modules[package]), *home})

    return getattr_hook, dir_hook, sorted(home)
