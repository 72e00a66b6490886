"""Suggest close matches for unknown names in error messages."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


def suggestion(
    name: str, known: Iterable[str], shown: Callable[[str], str] = str
) -> str:
    """Return ``" Did you mean 'x'?"`` with the closest known name, formatted by
    ``shown``, or an empty string if none is close.

    Example
    -------
    >>> suggestion("los", ["loss", "pnmi"])
    " Did you mean 'loss'?"
    """
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {shown(close[0])!r}?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Return an error message with the closest known name and all others."""
    known = list(known)
    hint = suggestion(name, known)
    message = f"No {kind} {name!r}.{hint}"
    # Yaml keys, for example, would be too many to list.
    if hint and len(known) > 20:
        return message
    return f"{message} Known: {', '.join(known)}."
