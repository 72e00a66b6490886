"""Public names that are imported when they are first used.

With it, the package shows all its names while plain PyTorch users never pay
for SpeechBrain (PEP 562).
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any


def attach(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the hooks ``__getattr__`` and ``__dir__`` and the list ``__all__``
    of a package whose public names load on first use: ``exports`` has them by
    the submodule, relative to the package, that defines them."""
    home = {name: module for module in exports for name in exports[module]}

    def getattr_hook(name: str) -> Any:
        """Import a public name, and keep it in the package."""
        if name not in home:
            raise AttributeError(
                f"module {package!r} has no attribute {name!r}"
            )
        value = getattr(import_module(f"{package}.{home[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    def dir_hook() -> list[str]:
        """List what is loaded and what could be."""
        return sorted({*vars(sys.modules[package]), *home})

    return getattr_hook, dir_hook, sorted(home)
