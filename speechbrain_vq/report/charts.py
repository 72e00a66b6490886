"""Charts as inline SVG, colored by the page's style sheet.

An element's ``data-tips`` is a JSON list of tooltips [x, y or null, text], with
x and y as fractions of its size. The page shows the tooltip nearest to the
pointer; the arrow keys step through them.
"""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 84, 20, 38
# Minimum distance of labels, which are larger on narrow screens.
_LABEL_HEIGHT = 17


class Line(NamedTuple):
    """Line of a chart: its label, points (x, y) and CSS class."""

    label: str
    points: list[tuple[float, float]]
    style: str = "main"


def line_chart(
    title: str,
    lines: Sequence[Line],
    x_label: str,
    ends: tuple[float, float] | None = None,
    log: bool = False,
    top: float | None = None,
    marks: Iterable[float] = (),
    shade: float | None = None,
    number: Callable[[float], str] = "{:.3g}".format,
) -> Markup:
    """Draw lines, with at least one point in total, as SVG.

    ``title`` is for screen readers. ``x_label`` is that of the horizontal axis,
    which spans ``ends``, by default those of the points. The vertical axis ends
    at ``top``, by default the largest value. ``marks`` are the steps of
    re-initializations, ``shade`` is the end of the warm-up, and ``number``
    formats a value for the tooltips."""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points if y > 0 or not log]
    low, high = ends or (min(xs), max(xs))
    bottom = 10 ** math.floor(math.log10(min(ys))) if log else min(0, *ys, 0)
    top = top or max(ys) * (1 if log else 1.06) or 1
    if log:
        top = 10 ** math.ceil(math.log10(top))
    plot_width, plot_height = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM

    def right(x):
        """Map a step to a horizontal position."""
        return _LEFT + plot_width * (x - low) / ((high - low) or 1)

    def down(y):
        """Map a value to a vertical position."""
        if log:
            share = math.log(max(y, bottom) / bottom) / math.log(top / bottom)
        else:
            share = (y - bottom) / (top - bottom)
        return _TOP + plot_height * (1 - min(share, 1))

    parts = []
    if shade is not None and shade > low:
        parts += [
            f'<rect class="warmup" x="{_LEFT}" y="{_TOP}" '
            f'width="{right(min(shade, high)) - _LEFT:.1f}" '
            f'height="{plot_height}"/>',
            f'<text x="{_LEFT}" y="{_TOP - 5}">warm-up</text>',
        ]
    for value in _log_ticks(bottom, top) if log else _ticks(bottom, top):
        parts.append(
            f'<path class="grid" d="M{_LEFT} {down(value):.1f}h{plot_width}"/>'
            f'<text class="end" x="{_LEFT - 8}" y="{down(value) + 4:.1f}">'
            f"{_short(value)}</text>"
        )
    near = (high - low) / 8
    inner = [x for x in _ticks(low, high, 4) if low + near < x < high - near]
    for value in (low, *inner, high):
        parts.append(
            f'<text class="middle" x="{right(value):.1f}" '
            f'y="{HEIGHT - _BOTTOM + 18}">{_short(value)}</text>'
        )
    parts += [
        f'<path class="mark" d="M{right(x):.1f} {_TOP + plot_height}v-10"/>'
        for x in marks
        if low <= x <= high
    ]
    parts.append(
        f'<text class="middle" x="{_LEFT + plot_width / 2}" '
        f'y="{HEIGHT - 4}">{escape(x_label)}</text>'
    )
    for line in lines:
        path = "L".join(f"{right(x):.1f} {down(y):.1f}" for x, y in line.points)
        # Draw a single point as a line of length zero with round caps.
        path += "h0" if len(line.points) == 1 else ""
        parts.append(f'<path class="line {line.style}" d="M{path}"/>')
    parts += _labels(lines, right, down)
    by_x: dict[float, list[str]] = {}
    for line in lines:
        for x, y in line.points if line.label else ():
            by_x.setdefault(x, []).append(f"{line.label} {number(y)}")
    tips = [
        (right(x) / WIDTH, None, f"{x_label} {_short(x)}: {', '.join(texts)}")
        for x, texts in sorted(by_x.items())
    ]
    return _svg(title, parts, tips, WIDTH, HEIGHT)


class Dot(NamedTuple):
    """Dot of a map: position, area in [0, 1], CSS color, and tooltip."""

    x: float
    y: float
    area: float
    color: str
    tip: str


def dot_map(title: str, dots: Sequence[Dot]) -> Markup:
    """Draw a map of dots with equal scales on both axes."""
    margin = 16
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    scale = (WIDTH - 2 * margin) / (max(xs) - min(xs) or 1)
    height = scale * (max(ys) - min(ys)) + 2 * margin
    parts, tips = [], []
    # Draw large dots first, so that they do not cover small ones.
    for dot in sorted(dots, key=lambda dot: -dot.area):
        x = margin + scale * (dot.x - min(xs))
        y = margin + scale * (max(ys) - dot.y)
        radius = 2 + 11 * math.sqrt(dot.area)
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:.1f}" '
            f'style="fill:{dot.color}"/>'
        )
        tips.append((x / WIDTH, y / height, dot.tip))
    return _svg(title, parts, tips, WIDTH, round(height), "map")


def tips_json(tips: Iterable[tuple[float, float | None, str]]) -> str:
    """Format tooltips for an element's ``data-tips``."""
    rounded = [
        (round(x, 4), None if y is None else round(y, 4), text)
        for x, y, text in tips
    ]
    return json.dumps(rounded, ensure_ascii=False, separators=(",", ":"))


def _labels(lines, right, down):
    """Yield labels at the ends of lines, moved apart to overlap neither each
    other nor the tick labels of the horizontal axis."""
    ends = [
        (down(line.points[-1][1]) + 4, right(line.points[-1][0]) + 6, line)
        for line in lines
        if line.label
    ]
    placed = []
    for y, x, line in sorted(ends, key=lambda end: end[0]):
        for other_x, other_y, _ in placed:
            if abs(x - other_x) < 90:
                y = max(y, other_y + _LABEL_HEIGHT)
        placed.append((x, y, line))
    foot = HEIGHT - _BOTTOM
    for x, y, line in reversed(placed):
        y = min(y, foot)
        foot = min(foot, y - _LABEL_HEIGHT)
        yield (
            f'<text class="label {line.style}" x="{x:.1f}" y="{y:.1f}">'
            f"{escape(line.label)}</text>"
        )


def _svg(title, parts, tips, width, height, style="chart"):
    return Markup(
        f'<svg class="{style}" viewBox="0 0 {width} {height}" role="img" '
        f'tabindex="0" aria-label="{escape(title)}" '
        f'data-tips="{escape(tips_json(tips))}">{"".join(parts)}</svg>'
    )


def _ticks(low, high, count=5):
    """Return round numbers from ``low`` to ``high``, in at most ``count``
    steps."""
    span = (high - low) or 1
    step = 10 ** math.floor(math.log10(span / count))
    step *= next(m for m in (1, 2, 5, 10) if span / (step * m) <= count)
    first = math.ceil(low / step - 1e-9)
    return [step * n for n in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(bottom, top):
    number = round(math.log10(top / bottom))
    return [bottom * 10**n for n in range(number + 1)]


def _short(value):
    return f"{value:g}" if abs(value) < 10_000 else f"{value / 1000:g}k"
