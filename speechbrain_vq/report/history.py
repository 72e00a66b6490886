"""Read the training curves of a run from its logs, and draw them."""

import pathlib
import re
from typing import NamedTuple

from .charts import Line, line_chart
from .numbers import METRICS

# Line of SpeechBrain's FileTrainLogger: "train loss: 1.23e-01, valid ...".
_METRIC = re.compile(r"((?:train|valid) [^:,]+): ([-+.\de]+)")
_REINIT = re.compile(r"Step (\d+): re-initialized")
_CHARTS = ("loss", "reconstruction_error", "used_codes_percent", "perplexity")


class History(NamedTuple):
    """Training curves of a run.

    ``metrics`` maps names such as ``"valid loss"`` to points (x, y), ``axis``
    is the unit of x, ``reinits`` are the steps after which the codebook was
    re-initialized, and ``warmup`` is the step at which the warm-up ended."""

    metrics: dict[str, list[tuple[float, float]]]
    axis: str = "epoch"
    reinits: list[int] = []
    warmup: int | None = None


def read_history(folder: pathlib.Path) -> History:
    """Read ``train_log.txt`` and ``log.txt`` of a run. Without a
    ``train_log.txt``, the history has no metrics."""
    log = _text(folder / "train_log.txt")
    axis = "step" if re.search(r"\bstep: \d", log, re.IGNORECASE) else "epoch"
    position = re.compile(rf"\b{axis}: (\d+)", re.IGNORECASE)
    points: dict[str, dict[int, float]] = {}
    for line in log.splitlines():
        match = position.search(line)
        if match is None:
            continue
        values = dict(_METRIC.findall(line))
        # A run resumed at the end of an epoch trains no step of that epoch, and
        # logs a loss of 0.
        untrained = float(values.get("train loss", "nan")) == 0
        for name, value in values.items():
            if untrained and name.startswith("train"):
                continue
            # A resumed run may log an epoch twice: keep the later values.
            points.setdefault(name, {})[int(match[1])] = float(value)
    metrics = {name: sorted(by_x.items()) for name, by_x in points.items()}
    if axis == "epoch":
        return History(metrics)
    steps = _REINIT.findall(_text(folder / "log.txt"))
    reinits = sorted({int(step) for step in steps})
    used = metrics.get("train used_codes_percent") or []
    first = next((x for name in metrics for x, _ in metrics[name]), 0)
    # Code usage is logged only after the warm-up.
    had_warmup = bool(used) and used[0][0] > first
    warmup = reinits[0] if reinits and had_warmup else None
    return History(metrics, axis, reinits, warmup)


def training_charts(history: History) -> list[tuple[str, str]]:
    """Draw the metrics of a run. Return the title and chart of each."""
    charts = []
    ends = (0, max((p[-1][0] for p in history.metrics.values()), default=0))
    for key in _CHARTS:
        shown, lines, descriptions = METRICS[key], [], []
        for part, style in (("train", "quiet"), ("valid", "main")):
            points = history.metrics.get(f"{part} {key}")
            if points:
                lines.append(Line(part, points, style))
                first, last = (shown.form.format(points[i][1]) for i in (0, -1))
                descriptions.append(f"{part} from {first} to {last}")
        if lines:
            chart = line_chart(
                f"{shown} by {history.axis}: {', '.join(descriptions)}",
                lines,
                history.axis,
                ends=ends,
                top=100 if shown.unit == "%" else None,
                marks=history.reinits,
                shade=history.warmup,
                number=shown.form.format,
            )
            charts.append((str(shown), chart))
    return charts


def _text(path):
    return path.read_text("utf-8", "replace") if path.is_file() else ""
