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
