"""Format the metrics of runs as tiles with bars, and as a table."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple


class Shown(NamedTuple):
    """Title, number format and unit of a metric on the page, and whether higher
    (1) or lower (-1) values are better, or neither (0)."""

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
# Medians of one codebook of 512, base cell of benchmarks/grid_recorded.md.
REFERENCES = {
    "used_codes_percent": {"vanilla": 5, "robust": 100},
    "perplexity": {"vanilla": 6, "robust": 332},
    "reconstruction_error": {"vanilla": 0.352, "robust": 0.236},
    "pnmi": {"vanilla": 0.180, "k-means": 0.509},
}
REFERENCE_SIZE = 512
# Columns of the comparison. Distortions are known for this model only.
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
    """Yield a tile for each known value: the metric (``shown``), its value and
    unit, the length of its bar, and reference ``marks``: name, value, and
    position on the bar."""
    size = size or 1
    max_rate = math.log2(size) * books * (token_rate or 0)
    # The upper ends of the scales.
    ends = {
        "used_codes_percent": 100,
        "perplexity": size,
        "reconstruction_error": 0.5,
        "mel_cepstral_distortion": 10,
        "pnmi": 1,
        "bits_per_second": max_rate,
    }
    # The distortion is shown only if this error is unknown.
    replaced = "reconstruction_error" in values
    for key, end in ends.items():
        if key not in values or key == "mel_cepstral_distortion" and replaced:
            continue
        shown = METRICS[key]
        # Measured with one codebook of this size only.
        is_comparable = (size, books) == (REFERENCE_SIZE, 1)
        marks = REFERENCES.get(key, {}) if is_comparable else {}
        if key == "bits_per_second" and max_rate:
            marks = {"even usage": max_rate}

        def length(value, end=end, better=shown.better):
            """Return the length of a bar, in [0, 1]."""
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


def rows(runs: list[dict[str, float]]) -> list[list[tuple]]:
    """Return the rows of the comparison from the values of each run. Each cell
    has the formatted value, the value, and whether it is the best in its
    column."""
    columns = []
    for key, shown in COLUMNS.items():
        scores = [shown.better * run[key] for run in runs if key in run]
        compared = shown.better and len(runs) > 1
        columns.append(
            [
                (
                    shown.form.format(run[key]),
                    run[key],
                    compared and shown.better * run[key] == max(scores),
                )
                if key in run
                else ("–", "", False)
                for run in runs
            ]
        )
    return list(zip(*columns, strict=True))
