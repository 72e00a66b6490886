"""Helpers for the result pages of all benchmarks."""

import pathlib
from collections.abc import Iterable

from speechbrain_vq.dataio.atomic import atomic_write


def versions_line(*packages: str, recorded: Iterable[str] = ()) -> str:
    """Format the versions that runs recorded, or those installed here."""
    # Local, because it imports torch, which recorded versions do not need.
    from speechbrain_vq.versions import versions

    texts = sorted(set(recorded)) or [versions(*packages)]
    return f"{' or '.join(texts)}."


def save(path: pathlib.Path, lines: list[str]) -> str:
    """Write a page atomically and return its text."""
    text = "\n".join([*lines, ""])
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return text
