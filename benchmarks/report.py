"""What the pages of all benchmarks have in common.

Authors
 * speechbrain_vq authors 2026
"""

import importlib.metadata
import pathlib
import platform

from speechbrain_vq.dataio.replacing import replacing

OURS = ("speechbrain_vq", "torch")


def versions(*others: str) -> str:
    """A line with what a benchmark was run on, and other packages of it."""
    packages = [
        f"{x} {importlib.metadata.version(x)}" for x in (*OURS, *others)
    ]
    python = f"Python {platform.python_version()}"
    return f"{', '.join([*packages, python, platform.machine()])}."


def save(path: pathlib.Path, lines: list[str]) -> str:
    """Writes a page, all or nothing, and returns its text."""
    text = "\n".join([*lines, ""])
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return text
