"""Format the metrics of runs as tiles with scales and as a table."""

import math
from collections.abc import Iterator
from typing import Any

from .summary import REFERENCE_SIZE, REFERENCES, Summary

# Columns of the comparison: key, title, format, and direction: 1 if higher is
# better, -1 if lower is better, 0 if neither.
COLUMNS = (
    ("used_codes_percent", "used codes", "{:.0f} %", 1),
    ("perplexity", "perplexity", "{:.0f}", 1),
    ("reconstruction_error", "reconstruction error", "{:.3f}", -1),
    ("pnmi", "PNMI", "{:.3f}", 1),
    ("bits_per_second", "bits/s", "{:.0f}", 0),
    ("steps", "steps", "{:.0f}", 0),
)


def tiles(
    values: dict[str, float],
    size: int | None,
    books: int,
    token_rate: float | None,
) -> Iterator[dict[str, Any]]:
    """Yield a tile for each known value. It has a label, the value, its unit,
    the length of its bar, whether higher is ``better`` (see ``COLUMNS``), and
    reference ``marks``: name, value, and position on the bar."""
    size = size or 1
    max_rate = token_rate and token_rate * books * math.log2(size)
    distortion = "mel_cepstral_distortion"
    # Key, label, format, unit, end of the scale, and direction as in COLUMNS.
    scales = (
        ("used_codes_percent", "Used codes", "{:.0f}", "%", 100, 1),
        ("perplexity", "Perplexity", "{:.0f}", f"of {size}", size, 1),
        ("reconstruction_error", "Reconstruction error", "{:.3f}", "", 0.5, -1),
        (distortion, "Mel-cepstral distortion", "{:.1f}", "dB", 10, -1),
        ("pnmi", "PNMI", "{:.2f}", "", 1, 1),
        ("bits_per_second", "Bit rate", "{:.0f}", "bits/s", max_rate, 0),
    )
    if "reconstruction_error" in values:
        # The distortion is shown only in place of this error.
        values = {k: v for k, v in values.items() if k != distortion}
    for key, label, form, unit, end, better in scales:
        if key not in values:
            continue
        marks = dict(REFERENCES.get(key, {}))
        if key == "perplexity":
            marks = {n: v * size / REFERENCE_SIZE for n, v in marks.items()}
        if key == "reconstruction_error" and books > 1:
            marks = {}
        if key == "bits_per_second" and max_rate:
            marks = {"even usage": max_rate}

        def length(value, end=end, better=better):
            share = min(value / end, 1)
            return 1 - share if better < 0 else share

        yield {
            "label": label,
            "better": better,
            "value": form.format(values[key]),
            "unit": unit,
            "length": length(values[key]) if end else None,
            "marks": [
                (name, form.format(mark), length(mark))
                for name, mark in marks.items()
            ],
        }


def rows(summaries: list[Summary]) -> list[tuple[Summary, list[dict]]]:
    """Return the rows of the comparison, with the best value of each column
    marked."""
    best = {
        key: max(sign * s.values[key] for s in summaries if key in s.values)
        for key, _, _, sign in COLUMNS
        if sign and any(key in s.values for s in summaries)
    }
    table = []
    for summary in summaries:
        cells = []
        for key, _, form, sign in COLUMNS:
            cell = {"text": "–", "value": "", "best": False}
            if key in summary.values:
                value = summary.values[key]
                is_best = len(summaries) > 1 and best.get(key) == sign * value
                cell = {"text": form.format(value), "value": value}
                cell["best"] = is_best
            cells.append(cell)
        table.append((summary, cells))
    return table
