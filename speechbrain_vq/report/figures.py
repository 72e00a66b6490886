"""Charts of a codebook: usage, map of the codewords, phones and units."""

import colorsys
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from speechbrain_vq.evaluation.ipa import manner
from speechbrain_vq.evaluation.phone_units import phone_purity

from .charts import Dot, Line, dot_map, line_chart, tips_json
from .images import png

# Manners of articulation in page order, with colors that are legible on white
# and on black.
COLORS = {
    "vowel": "#d9622b",
    "diphthong": "#d99a1c",
    "approximant": "#1f9d77",
    "nasal": "#c0629b",
    "fricative": "#3a7fc4",
    "affricate": "#3fb0c9",
    "plosive": "#7d63c9",
    "silence": "#8f96a0",
    "other": "#8f96a0",
}
# Percentage of tokens of each code that a collapsed run used: preset vanilla,
# 300 steps on three minutes of MiniSpeech.
COLLAPSED = (18.2, 14.6, 13.2, 12.3, 11.4, 11.2, 8.9, 7.7, 1.2, 1.1, 0.1)


def usage_curves(
    counts: torch.Tensor, others: Iterable[tuple[str, torch.Tensor]] = ()
) -> str:
    """Draw the percentage of tokens of each code by rank, from counts [C, K].
    ``others`` are the counts of other runs by name, by default those of a
    collapsed run."""
    size = counts.shape[1]
    lines = [Line("uniform", [(1, 100 / size), (size, 100 / size)], "dotted")]
    others = list(others) or [("a collapsed run", torch.tensor([COLLAPSED]))]
    lines += [Line(name, _ranked(other[0]), "quiet") for name, other in others]
    for number, row in enumerate(counts, 1):
        label = "this one"
        if len(counts) > 1:
            label = {1: "codebook 1", 2: "others"}.get(number, "")
        style = "main" if number == 1 else "faint"
        lines.append(Line(label, _ranked(row), style))
    return line_chart(
        "Percentage of tokens by code rank: the most frequent code has "
        f"{_ranked(counts[0])[0][1]:.2g} %",
        lines,
        "code rank",
        log=True,
        number="{:.2g} %".format,
    )


class CodeMap:
    """Positions and colors of codewords [C, K, D] on two principal axes. If
    counts [P, K] of phones (in IPA) and units are given, the first codebook is
    colored by phone.

    Example
    -------
    >>> codes = CodeMap(torch.randn(2, 8, 4))
    >>> codes.colors[1].shape
    torch.Size([8, 3])
    """

    def __init__(
        self,
        codebooks: torch.Tensor,
        phone_units: torch.Tensor | None = None,
        phones: Sequence[str] = (),
    ):
        projections = [_principal(book) for book in codebooks.detach().cpu()]
        self.positions, self.variance = projections[0]
        self.colors = [_by_position(points) for points, _ in projections]
        self.phones: dict[int, tuple[str, float]] = {}
        if phones:
            self.colors[0][:] = _rgb(COLORS["silence"])
            total = phone_units.sum(0)
            for unit in total.nonzero()[:, 0].tolist():
                count, row = phone_units[:, unit].max(0)
                phone = phones[int(row)]
                self.phones[unit] = phone, float(count / total[unit])
                self.colors[0][unit] = _rgb(COLORS[manner(phone)])

    def draw(self, counts: torch.Tensor | None) -> str:
        """Draw the first codebook. Counts [C, K] determine the dot areas."""
        usage = torch.zeros(len(self.positions))
        if counts is not None:
            usage = counts[0].double() / counts[0].sum().clamp(min=1)
        dots = []
        for code, (x, y) in enumerate(self.positions.tolist()):
            tip = f"code {code}: {100 * usage[code]:.2f} % of tokens"
            if code in self.phones:
                phone, share = self.phones[code]
                tip += f", {100 * share:.0f} % of them in /{phone}/"
            area = float(usage[code] / usage.max().clamp(min=1e-9))
            dots.append(Dot(x, y, area, _css(self.colors[0][code]), tip))
        title = f"Map of {len(dots)} codewords on two principal axes"
        return dot_map(title, dots)

    def strip(self, tokens: torch.Tensor) -> str:
        """Draw tokens [T, C] as an image with one pixel per token."""
        rows = zip(self.colors, tokens.T, strict=False)
        return png(torch.stack([colors[row] for colors, row in rows]))


def legend(phones: Sequence[str]) -> list[tuple[str, str]]:
    """Return the manners of articulation of phones, with their colors."""
    present = {manner(phone) for phone in phones}
    return [(name, COLORS[name]) for name in COLORS if name in present]


def phone_unit_map(
    counts: torch.Tensor, phones: Sequence[str]
) -> dict[str, Any]:
    """Draw P(phone | unit) from counts [P, K], with phones (in IPA) grouped by
    manner and units ordered by their most frequent phone.

    Returns the ``groups`` of phones (manner, color, phones, image), an image of
    the ``purity`` of each unit, the ``mean`` purity, the ``number`` of units
    that occur, and the tooltips (``tips``)."""
    manners = [manner(phone) for phone in phones]
    order, totals = list(COLORS), counts.sum(1).tolist()
    # Sort by manner, then by descending frequency.
    rows = sorted(
        range(len(phones)),
        key=lambda row: (order.index(manners[row]), -totals[row]),
    )
    names = [phones[row] for row in rows]
    used = counts.sum(0).nonzero()[:, 0]
    share = counts[rows][:, used].double()
    share /= share.sum(0)
    # Sort units by their most frequent phone, then by descending purity.
    columns = torch.argsort(share.argmax(0) - 0.5 * share.amax(0))
    share, used = share[:, columns], used[columns].tolist()
    tips = []
    for column, unit in enumerate(used):
        values, best = share[:, column].topk(min(3, len(names)))
        text = ", ".join(
            f"/{names[row]}/ {100 * value:.0f} %"
            for value, row in zip(values.tolist(), best.tolist(), strict=True)
            if value > 0.005
        )
        tips.append(((column + 0.5) / len(used), None, f"{unit}: {text}"))
    groups = []
    for name, group in itertools.groupby(
        range(len(rows)), key=lambda place: manners[rows[place]]
    ):
        places = list(group)
        members = [names[place] for place in places]
        # On a linear scale, a probability of 0.1 would be invisible.
        groups.append((name, COLORS[name], members, png(share[places].sqrt())))
    return {
        "groups": groups,
        "purity": png(share.amax(0, keepdim=True)),
        "mean": phone_purity(counts),
        "number": len(used),
        "tips": tips_json(tips),
    }


def _ranked(counts):
    """Return (rank, percentage of tokens) of each used code."""
    share = 100 * counts.double() / counts.sum().clamp(min=1)
    share = share[share > 0].sort(descending=True).values.tolist()
    return list(enumerate(share, 1))


def _principal(codewords):
    """Project codewords [K, D] on two principal axes. Return the points [K, 2]
    and the explained variance ratio."""
    centered = (codewords - codewords.mean(0)).double()
    _, singular_values, axes = torch.linalg.svd(centered, full_matrices=False)
    points = centered @ axes[:2].T
    points = torch.nn.functional.pad(points, (0, 2 - points.shape[1]))
    variance = singular_values.square()
    return points, float(variance[:2].sum() / variance.sum().clamp(min=1e-12))


def _by_position(points):
    """Choose colors [K, 3] of points [K, 2]: hue by direction from the origin,
    saturation by distance."""
    angles = torch.atan2(points[:, 1], points[:, 0]) / (2 * math.pi) % 1
    distance = points.norm(dim=1) / points.norm(dim=1).max().clamp(min=1e-9)
    saturations = (0.25 + 0.45 * distance).tolist()
    lightness = [0.55] * len(points)
    colors = map(colorsys.hls_to_rgb, angles.tolist(), lightness, saturations)
    return torch.tensor(list(colors))


def _rgb(color):
    return torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _css(color):
    return "#" + "".join(f"{round(255 * c):02x}" for c in color.tolist())
