"""Figures of a codebook: usage, map of the codewords, phones and units."""

import colorsys
import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from speechbrain_vq.evaluation.ipa import MANNERS, by_manner, manner, to_ipa
from speechbrain_vq.evaluation.phone_units import phone_purity

from .charts import Dot, Line, dot_map, line_chart, tips_json
from .images import png
from .summary import FRAMES_PER_CODE

# Of manners of articulation, legible on white and on black.
COLOURS = {
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
# Shares in % of the codes used by a run of the preset vanilla: 300 steps on
# three minutes of MiniSpeech.
COLLAPSED = (18.2, 14.6, 13.2, 12.3, 11.4, 11.2, 8.9, 7.7, 1.2, 1.1, 0.1)


def is_few(counts: torch.Tensor | None) -> bool:
    """Return whether counts [C, K] are too few to show the usage of codes."""
    if counts is None:
        return True
    return bool(counts[0].sum() < FRAMES_PER_CODE * counts.shape[1])


def usage_curves(
    counts: torch.Tensor, others: Iterable[tuple[str, torch.Tensor]] = ()
) -> str:
    """Draw how often each code was used, [C, K], in descending order and %
    of the tokens, beside others by name; by default, beside a collapsed run."""
    size = counts.shape[1]
    lines = [Line("uniform", [(1, 100 / size), (size, 100 / size)], "dotted")]
    others = list(others) or [("a collapsed run", torch.tensor([COLLAPSED]))]
    lines += [Line(name, _ranked(some[0]), "quiet") for name, some in others]
    for number, row in enumerate(counts, 1):
        label = "this one"
        if len(counts) > 1:
            label = {1: "codebook 1", 2: "the others"}.get(number, "")
        style = "main" if number == 1 else "faint"
        lines.append(Line(label, _ranked(row), style))
    return line_chart(
        "Share of the tokens by rank of the code: the most frequent has "
        f"{_ranked(counts[0])[0][1]:.2g} %",
        lines,
        "rank of the code",
        log=True,
        number="{:.2g} %".format,
    )


class CodeMap:
    """Places and colours of codewords [C, K, D], by two principal axes; counts
    [P, K] of phones and units colour the codes of the first codebook.

    Example
    -------
    >>> codes = CodeMap(torch.randn(2, 8, 4))
    >>> codes.colours[1].shape
    torch.Size([8, 3])
    """

    def __init__(
        self,
        codebooks: torch.Tensor,
        phone_units: torch.Tensor | None = None,
        phones: Sequence[str] = (),
    ):
        places = [_principal(book) for book in codebooks.detach().cpu()]
        self.place, self.variance = places[0]
        self.colours = [_by_place(place) for place, _ in places]
        self.phones: dict[int, tuple[str, float]] = {}
        if phones:
            ipa = to_ipa(phones)
            total = phone_units.sum(0)
            for unit in torch.nonzero(total).flatten().tolist():
                most, row = phone_units[:, unit].max(0)
                share = float(most / total[unit])
                self.phones[unit] = ipa[phones[int(row)]], share
            self.colours[0][:] = _rgb(COLOURS["silence"])
            for unit, (phone, _) in self.phones.items():
                self.colours[0][unit] = _rgb(COLOURS[manner(phone)])

    def draw(self, counts: torch.Tensor | None) -> str:
        """Draw the map of the first codebook, with areas by counts [C, K]."""
        uses = torch.zeros(len(self.place))
        if counts is not None:
            uses = counts[0].double() / counts[0].sum().clamp(min=1)
        dots = []
        for code, (x, y) in enumerate(self.place.tolist()):
            tip = f"code {code}: {100 * uses[code]:.2f} % of the tokens"
            if code in self.phones:
                phone, share = self.phones[code]
                tip += f", {100 * share:.0f} % of them in /{phone}/"
            area = float(uses[code] / uses.max().clamp(min=1e-9))
            dots.append(Dot(x, y, area, _css(self.colours[0][code]), tip))
        title = f"Map of {len(dots)} codewords on two principal axes"
        return dot_map(title, dots)

    def strip(self, tokens: torch.Tensor) -> str:
        """Draw tokens [T, C] as an image of a pixel a token."""
        rows = zip(self.colours, tokens.T, strict=False)
        return png(torch.stack([colours[row] for colours, row in rows]))


def legend(phones: Sequence[str]) -> list[tuple[str, str]]:
    """Return the manners of phones with their colours."""
    present = {manner(ipa) for ipa in to_ipa(phones).values()}
    return [(name, COLOURS[name]) for name in MANNERS if name in present]


def phone_unit_map(
    counts: torch.Tensor, phones: Sequence[str]
) -> dict[str, Any]:
    """Draw P(phone | unit) of counts [P, K], with phones by manner and units in
    the order of their most frequent phone.

    Returns ``groups`` of phones with an image each, an image of the
    ``purity`` of each unit and its ``mean``, the ``number`` of units, and
    ``tips``."""
    ipa, groups = to_ipa(phones), by_manner(phones, counts.sum(1).tolist())
    used = counts.sum(0).nonzero()[:, 0]
    share = counts[[row for _, rows in groups for row in rows]][:, used]
    share = share.double() / share.sum(0)
    # P(phone | unit), units by their most frequent phone.
    order = torch.argsort(share.argmax(0) - 0.5 * share.amax(0))
    share, used = share[:, order], used[order].tolist()
    groups = [(name, [ipa[phones[r]] for r in rows]) for name, rows in groups]
    names = [name for _, members in groups for name in members]
    tips = []
    for column, unit in enumerate(used):
        values, rows = share[:, column].topk(min(3, len(names)))
        text = ", ".join(
            f"/{names[row]}/ {100 * value:.0f} %"
            for value, row in zip(values.tolist(), rows.tolist(), strict=True)
            if value > 0.005
        )
        tips.append(((column + 0.5) / len(used), None, f"{unit}: {text}"))
    drawn, start = [], 0
    for name, members in groups:
        end = start + len(members)
        drawn.append(
            {
                "name": name,
                "colour": COLOURS[name],
                "phones": members,
                # Linear, a tenth would look like nothing.
                "image": png(share[start:end].sqrt()),
            }
        )
        start = end
    return {
        "groups": drawn,
        "purity": png(share.amax(0, keepdim=True)),
        "mean": phone_purity(counts),
        "number": len(used),
        "tips": tips_json(tips),
    }


def _ranked(counts):
    """Return the shares of used codes in descending order, in %."""
    share = 100 * counts.double() / counts.sum().clamp(min=1)
    share = share[share > 0].sort(descending=True).values.tolist()
    return list(enumerate(share, 1))


def _principal(codewords):
    """Project codewords [K, D] on two axes; return their share of variance."""
    centred = (codewords - codewords.mean(0)).double()
    _, spread, axes = torch.linalg.svd(centred, full_matrices=False)
    place = centred @ axes[:2].T
    place = torch.nn.functional.pad(place, (0, 2 - place.shape[1]))
    variance = spread.square()
    return place, float(variance[:2].sum() / variance.sum().clamp(min=1e-12))


def _by_place(place):
    """Colour points [K, 2] by their direction and distance: [K, 3]."""
    angles = torch.atan2(place[:, 1], place[:, 0]) / (2 * math.pi) % 1
    far = place.norm(dim=1) / place.norm(dim=1).max().clamp(min=1e-9)
    saturations = (0.25 + 0.45 * far).tolist()
    lightness = [0.55] * len(place)
    colours = map(colorsys.hls_to_rgb, angles.tolist(), lightness, saturations)
    return torch.tensor(list(colours))


def _rgb(colour):
    return torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def _css(colour):
    return "#" + "".join(f"{round(255 * c):02x}" for c in colour.tolist())
