"""What the pages of all benchmarks have in common.

Authors
 * speechbrain_vq authors 2026
"""

import pathlib

from speechbrain_vq.dataio.atomic import atomic_write


def save(path: pathlib.Path, lines: list[str]) -> str:
    """Writes a page, all or nothing, and returns its text."""
    text = "\n".join([*lines, ""])
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return text
