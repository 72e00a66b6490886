"""Evaluation reports as Markdown and JSON."""

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
    "abx_max_pairs": "maximum ABX pairs of items compared for an error",
    "abx_frames": "ABX frames of an item",
    "seconds_decoded": "seconds decoded",
    "segmentation_tolerance": "boundary tolerance",
    "reconstructed": "utterances reconstructed",
    "converted": "utterances converted",
}
_CONTEXTS = {"within": "same context", "any": "any context"}  # Of ABX items


def as_markdown(evaluation: Evaluation) -> str:
    """Format an evaluation as Markdown tables, aligned to be read as text."""
    lines = ["# Evaluation"]
    for section, estimates in evaluation.metrics.items():
        rows = [("metric", "value", "95 % interval")]
        for value, low, high, quantity in estimates.values():
            interval = ""
            if low is not None:
                interval = f"{_number(low)} to {_number(high)}"
            rows.append((str(quantity), _number(value), interval))
        width = max(len(row[0]) for row in rows)
        table = [
            f"| {label:{width}} | {value:>9} | {interval:18} |"
            for label, value, interval in rows
        ]
        table.insert(1, f"|{'-' * (width + 2)}|{'-' * 10}:|{'-' * 20}|")
        lines += ["", f"## {evaluation.titles[section]}", "", *table]
    left_out = evaluation.left_out[:20]
    if len(evaluation.left_out) > 20:
        left_out.append(f"... and {len(evaluation.left_out) - 20} more")
    if left_out:
        lines += ["", "## Left out", "", *(f"- {note}" for note in left_out)]
    lines += ["", "## Settings", ""]
    lines += [f"- {setting}" for setting in _settings(evaluation)]
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
            value = [f"{v} ({_CONTEXTS.get(k, k)})" for k, v in value.items()]
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        if key == "segmentation_tolerance":
            value = f"{1000 * value:g} ms"
        yield f"{SETTINGS.get(key) or key.replace('_', ' ')}: {value}"
