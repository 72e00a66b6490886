"""Read and write the result lines and pages of all benchmarks."""

import json
import pathlib
from collections.abc import Iterable

from speechbrain_vq.dataio.atomic import atomic_write


def versions_line(*packages: str, recorded: Iterable[str] = ()) -> str:
    """Format the versions that runs recorded, or those installed here."""
    # Local, because it imports torch, which recorded versions do not need.
    from speechbrain_vq.versions import versions

    texts = sorted(set(recorded)) or [versions(*packages)]
    return f"{' or '.join(texts)}."


def read_lines(path: pathlib.Path) -> list[dict]:
    """Read the JSON lines of earlier runs; none if there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]


def append_line(path: pathlib.Path, line: dict) -> None:
    """Append a JSON line to a file."""
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def save(path: pathlib.Path, lines: list[str]) -> str:
    """Write a page atomically and return its text."""
    text = "\n".join([*lines, ""])
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return text
