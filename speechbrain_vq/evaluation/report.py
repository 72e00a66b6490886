"""Evaluation reports as plain text, Markdown and JSON."""

import json
import math
import os
import pathlib

from speechbrain_vq.dataio.atomic import atomic_write

from .evaluate import Evaluation

# Labels of settings. Other settings are labeled with their keys.
SETTINGS = {
    "abx_items_from": "ABX items",
    "seconds": "seconds of speech",
    "replicates": "bootstrap replicates",
    "abx_max_size_group": "maximum ABX items per phone, speaker and neighbors",
    "abx_max_x_across": "maximum ABX speakers of X across speakers",
    "abx_items": "ABX items used",
    "abx_items_of": "ABX items available",
    "abx_triples": "ABX triples compared",
    "abx_triples_of": "ABX triples available",
    "abx_frames": "ABX frames of an item",
    "seconds_decoded": "seconds decoded",
    "segmentation_tolerance": "boundary tolerance",
    "reconstructed": "utterances reconstructed",
    "converted": "utterances converted",
}
_CONTEXTS = {"within": "same context", "any": "any context"}


def as_text(evaluation: Evaluation) -> str:
    """Format an evaluation as plain tables."""
    lines = []
    for title, rows in _sections(evaluation):
        width = max(len(row[0]) for row in rows)
        lines += ["", title]
        lines += [
            f"  {label:{width}}  {value:>9}  {interval}".rstrip()
            for label, value, interval in rows
        ]
    lines += _notes(evaluation, "", "  ")
    return "\n".join(lines).lstrip("\n") + "\n"


def as_markdown(evaluation: Evaluation) -> str:
    """Format an evaluation as Markdown tables."""
    lines = ["# Evaluation"]
    for title, rows in _sections(evaluation):
        lines += ["", f"## {title}", ""]
        lines += ["| metric | value | 95 % interval |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += _notes(evaluation, "## ", "- ")
    return "\n".join(lines) + "\n"


def as_json(evaluation: Evaluation) -> dict:
    """Convert an evaluation to plain data, with None instead of nan."""
    return {
        "figures": {
            section: {key: _plain(e) for key, e in estimates.items()}
            for section, estimates in evaluation.metrics.items()
        },
        "settings": evaluation.settings,
        "left_out": evaluation.left_out,
    }


def write_report(
    evaluation: Evaluation, folder: str | os.PathLike
) -> list[pathlib.Path]:
    """Write ``results.json`` and ``results.md`` to a folder, which is created
    if necessary, and return their paths."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    results = json.dumps(as_json(evaluation), indent=2, allow_nan=False)
    texts = {
        folder / "results.json": results + "\n",
        folder / "results.md": as_markdown(evaluation),
    }
    for path, text in texts.items():
        with atomic_write(path) as partial:
            # Names of files may not be valid text.
            partial.write_text(text, "utf-8", "backslashreplace")
    return list(texts)


def _sections(evaluation):
    """Yield the title and the rows of each section."""
    for section, estimates in evaluation.metrics.items():
        rows = []
        for value, low, high, quantity in estimates.values():
            interval = ""
            if low is not None:
                interval = f"{_number(low)} to {_number(high)}"
            rows.append((str(quantity), _number(value), interval))
        yield evaluation.titles[section], rows


def _number(value):
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def _plain(estimate):
    return {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in zip(estimate._fields, estimate[:3], strict=False)
    }


def _settings(evaluation):
    """Yield each setting with its label."""
    for key, value in evaluation.settings.items():
        if isinstance(value, dict):
            value = [f"{v} ({_condition(k)})" for k, v in value.items()]
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        if key == "segmentation_tolerance":
            value = f"{1000 * value:g} ms"
        yield f"{SETTINGS.get(key) or key.replace('_', ' ')}: {value}"


def _condition(key):
    """Return the label of an ABX context or condition."""
    words = _CONTEXTS.get(key) or key.replace("_speaker_", " speakers, ")
    return words.replace("_", " ")


def _notes(evaluation, heading, bullet):
    left_out = evaluation.left_out[:20]
    if len(evaluation.left_out) > 20:
        left_out.append(f"... and {len(evaluation.left_out) - 20} more")
    lines = []
    sections = {"Left out": left_out, "Settings": [*_settings(evaluation)]}
    for title, notes in sections.items():
        if notes:
            # Markdown requires an empty line after a heading.
            lines += ["", heading + title] + [""] * bool(heading)
            lines += [bullet + note for note in notes]
    return lines
