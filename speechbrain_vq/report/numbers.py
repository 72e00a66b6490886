"""Format the metrics of runs as tiles with scales and as a table."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

from .summary import REFERENCE_SIZE, REFERENCES, Summary


class Shown(NamedTuple):
    """How the page shows a metric: title, number format, unit, and direction: 1
    if higher is better, -1 if lower is better, 0 if neither."""

    title: str
    form: str
    unit: str = ""
    better: int = 0

    def __str__(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


METRICS = {
    "loss": Shown("loss", "{:.3g}", better=-1),
    "used_codes_percent": Shown("used codes", "{:.0f}", "%", 1),
    "perplexity": Shown("perplexity", "{:.0f}", better=1),
    "reconstruction_error": Shown("reconstruction error", "{:.3f}", better=-1),
    "mel_cepstral_distortion": Shown(
        "mel-cepstral distortion", "{:.1f}", "dB", -1
    ),
    "pnmi": Shown("PNMI", "{:.3f}", better=1),
    "bits_per_second": Shown("bit rate", "{:.0f}", "bits/s"),
    "steps": Shown("steps", "{:.0f}"),
}
# Columns of the comparison. Distortions are known of this model only.
COLUMNS = {
    key: METRICS[key]
    for key in METRICS
    if key not in ("loss", "mel_cepstral_distortion")
}


def tiles(
    values: dict[str, float],
    size: int | None,
    books: int,
    token_rate: float | None,
) -> Iterator[dict[str, Any]]:
    """Yield a tile for each known value: the metric as ``shown``, the value,
    its unit, the length of its bar, and reference ``marks``: name, value, and
    position on the bar."""
    size = size or 1
    max_rate = math.log2(size) * books * (token_rate or 0)
    # The ends of the scales.
    ends = {
        "used_codes_percent": 100,
        "perplexity": size,
        "reconstruction_error": 0.5,
        "mel_cepstral_distortion": 10,
        "pnmi": 1,
        "bits_per_second": max_rate,
    }
    # The distortion is shown only in place of this error.
    replaced = "reconstruction_error" in values
    for key, end in ends.items():
        if key not in values or key == "mel_cepstral_distortion" and replaced:
            continue
        shown = METRICS[key]
        marks = REFERENCES.get(key, {})
        if key == "perplexity":
            marks = {n: v * size / REFERENCE_SIZE for n, v in marks.items()}
        if key == "reconstruction_error" and books > 1:
            marks = {}
        if key == "bits_per_second" and max_rate:
            marks = {"even usage": max_rate}

        def length(value, end=end, better=shown.better):
            share = min(value / end, 1)
            return 1 - share if better < 0 else share

        yield {
            "shown": shown,
            "value": shown.form.format(values[key]),
            "unit": f"of {size}" if key == "perplexity" else shown.unit,
            "length": length(values[key]) if end else None,
            "marks": [
                (name, shown.form.format(mark), length(mark))
                for name, mark in marks.items()
            ],
        }


def rows(summaries: list[Summary]) -> list[tuple[Summary, list[tuple]]]:
    """Return the rows of the comparison, whose cells are the formatted value,
    the value, and whether it is the best of its column."""
    table = [(summary, []) for summary in summaries]
    for key, shown in COLUMNS.items():
        column = [summary.values.get(key) for summary in summaries]
        known = [shown.better * x for x in column if x is not None]
        compared = shown.better and len(summaries) > 1
        for (_, cells), value in zip(table, column, strict=True):
            if value is None:
                cells.append(("–", "", False))
                continue
            is_best = compared and shown.better * value == max(known)
            cells.append((shown.form.format(value), value, is_best))
    return table
