"""Checks of arguments, with messages that name them.

Authors
 * speechbrain_vq authors 2026
"""

from collections.abc import Sequence
from typing import Any


def check_choice(name: str, value: Any, choices: Sequence) -> None:
    """Raises ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {tuple(choices)}, got {value!r}."
        )


def check_sizes(**sizes: Any) -> None:
    """Raises ValueError unless each value is an integer of at least 1."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be an integer >= 1, got {size!r}.")
