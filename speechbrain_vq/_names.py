"""Suggestions for names that are not known, in error messages."""

from collections.abc import Callable, Iterable
from difflib import get_close_matches


def suggestion(
    name: str, known: Iterable[str], shown: Callable[[str], str] = str
) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, as it is to
    be shown, or nothing.

    Example
    -------
    >>> suggestion("los", ["loss", "pnmi"])
    " Did you mean 'loss'?"
    """
    close = get_close_matches(name, list(known), n=1)
    return f" Did you mean {shown(close[0])!r}?" if close else ""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> str:
    """Describe an unknown name: the closest one, and all known."""
    known = list(known)
    # Of the recipes of a corpus, unit discovery is the one to begin with.
    first = f"{name}/unit-discovery"
    hint = suggestion(first if first in known else name, known)
    message = f"No {kind} {name!r}.{hint}"
    # Of the keys of a yaml there are dozens.
    if hint and len(known) > 20:
        return message
    return f"{message} Known: {', '.join(known)}."
