"""What the pages of all benchmarks have in common."""

import pathlib

from speechbrain_vq.dataio.replacing import replacing


def save(path: pathlib.Path, lines: list[str]) -> str:
    """Writes a page, all or nothing, and returns its text."""
    text = "\n".join([*lines, ""])
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return text
