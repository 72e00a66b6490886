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
    unit, and the length of its bar."""
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
        shown, unit, length = METRICS[key], METRICS[key].unit, None
        if key in ("perplexity", "bits_per_second") and end:
            unit = f"of {end:.0f} {unit}".rstrip()
        if end:
            length = min(values[key] / end, 1)
            length = 1 - length if shown.better < 0 else length
        yield {
            "shown": shown,
            "value": shown.form.format(values[key]),
            "unit": unit,
            "length": length,
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
