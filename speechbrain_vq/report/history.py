"""Read the course of a training from the logs of its folder, and draw it."""

import pathlib
import re
from typing import NamedTuple

from .charts import Line, line_chart

# Of SpeechBrain's FileTrainLogger: "train loss: 1.23e-01, valid loss: ...".
_METRIC = re.compile(r"((?:train|valid) [^:,]+): ([-+.\de]+)")
_REINIT = re.compile(r"Step (\d+): re-initialized")


class History(NamedTuple):
    """Course of a training: points (x, y) of each metric, such as ``"valid
    loss"``; whether x counts steps or epochs; the steps after which the
    codebook was re-initialized, and at which the warm-up ended."""

    metrics: dict[str, list[tuple[float, float]]]
    axis: str = "epoch"
    reinits: list[int] = []
    warmup: int | None = None


# Title, key, format and upper end of the charts of a training.
_CHARTS = (
    ("Loss", "loss", "{:.3g}", None),
    ("Reconstruction error", "reconstruction_error", "{:.3g}", None),
    ("Used codes (%)", "used_codes_percent", "{:.0f}", 100),
    ("Perplexity", "perplexity", "{:.0f}", None),
)


def read_history(folder: pathlib.Path | None) -> History:
    """Read ``train_log.txt`` and ``log.txt`` of a run; without a run or a
    ``train_log.txt`` there are no metrics."""
    if folder is None:
        return History({})
    log = _text(folder / "train_log.txt")
    axis = "step" if re.search(r"\bstep: \d", log, re.IGNORECASE) else "epoch"
    position = re.compile(rf"\b{axis}: (\d+)", re.IGNORECASE)
    points: dict[str, dict[int, float]] = {}
    for line in log.splitlines():
        where = position.search(line)
        if where is None:
            continue
        # A run that was resumed has epochs twice: the later ones count.
        values = dict(_METRIC.findall(line))
        # Resumed at the end of the epoch, it had no steps left to train.
        idle = float(values.get("train loss", "nan")) == 0
        for name, value in values.items():
            if idle and name.startswith("train"):
                continue
            points.setdefault(name, {})[int(where[1])] = float(value)
    metrics = {name: sorted(by_x.items()) for name, by_x in points.items()}
    if axis == "epoch":
        return History(metrics)
    steps = _REINIT.findall(_text(folder / "log.txt"))
    reinits = sorted({int(step) for step in steps})
    used = metrics.get("train used_codes_percent") or []
    first = next((x for name in metrics for x, _ in metrics[name]), 0)
    # Nothing is quantized in the warm-up, so nothing is logged of the codes.
    began_later = bool(used) and used[0][0] > first
    warmup = reinits[0] if reinits and began_later else None
    return History(metrics, axis, reinits, warmup)


def training_charts(history: History) -> list[tuple[str, str]]:
    """Draw the metrics of a training: title and chart of each."""
    charts = []
    ends = (0, max((p[-1][0] for p in history.metrics.values()), default=0))
    for title, key, form, top in _CHARTS:
        lines, courses = [], []
        for part, style in (("train", "quiet"), ("valid", "main")):
            points = history.metrics.get(f"{part} {key}")
            if points:
                lines.append(Line(part, points, style))
                first, last = (form.format(points[i][1]) for i in (0, -1))
                courses.append(f"{part} from {first} to {last}")
        if lines:
            chart = line_chart(
                f"{title} by {history.axis}: {', '.join(courses)}",
                lines,
                history.axis,
                ends=ends,
                top=top,
                marks=history.reinits,
                shade=history.warmup,
                number=form.format,
            )
            charts.append((title, chart))
    return charts


def _text(path):
    return path.read_text("utf-8", "replace") if path.is_file() else ""
