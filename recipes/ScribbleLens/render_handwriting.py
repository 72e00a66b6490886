"""Generate a stand-in for ScribbleLens: lines rendered with handwriting fonts, in
the layout that ``scribblelens_prepare.py`` reads, with the extent of every
character. The same seed, fonts and version of Pillow give the same bytes.

Fourteen fonts in Debian are suitable (``HANDS``), one of them a secretary hand of
the 16th century:

    apt-get download fonts-joscelyn fonts-isabella fonts-femkeklaver \\
        fonts-breip fonts-dkg-handwriting fonts-rufscript fonts-kristi \\
        fonts-dancingscript fonts-bwht fonts-sjfonts fonts-kaushanscript \\
        fonts-ecolier-court
    for package in *.deb; do dpkg -x $package fonts; done
    python render_handwriting.py data fonts
"""

import argparse
import pathlib
import random
import zipfile
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import map_coordinates
from tqdm import tqdm

from speechbrain_vq.dataio.atomic import atomic_folder
from speechbrain_vq.recipes.ScribbleLens.scribblelens_prepare import (
    BLANK,
    HEIGHT,
    ROOT,
)

# Fonts that look handwritten, and differ from each other.
HANDS = (
    "Joscelyn-Regular Isabella femkeklaver Breip dkg Rufscript010 Kristi "
    "DancingScript-Regular BecauseWeBuild-Regular BecauseWeConnect-Regular "
    "Delphine SteveHand KaushanScript-Regular Ecolier-court"
).split()
# Words from Dutch ships' journals of the time.
WORDS = (
    "den de het een van met ende op in te tot aen "  # codespell:ignore
    "bij naer voor uijt over onder wij sij hij ons "  # codespell:ignore
    "haer sijn was waren hebben hadde gaf quam ging "
    "sagen seijlden bevonden liet brocht mochten "
    "konden soude wierd gesien morgens middaghs "  # codespell:ignore
    "avonts nacht dagh etmael wint coers zee landt "
    "schip schepen boot volck anker vaem water gront "
    "reede baij hoeck eijlandt custe berch rivier "
    "strant noorden zuijden oosten westen mijlen "
    "graden minuten breete lengte gegist goet weder "
    "harde coelte storm regen stil mist dito "  # codespell:ignore
    "januarij maert meij julij october november "
    "coninck heer gouverneur brief raet stuck gout "
    "peper rijs visch vee vers hout vat tonnen "
    "swarte cleijne groote hooge lage quade veel "
    "weijnich alsoo daer hier weder oock noch niet "
    "geen alle eenige twee drie vier vijf ses acht "  # codespell:ignore
    "tien twaelf oxhooft jacht kerck yver exempel"  # codespell:ignore
).split()
NUMBERS = range(1, 100)
LINES_ON_A_PAGE = 20
TEST_SHARE = 0.2
# Lines are drawn three times as large, then scaled down.
SCALE = 3
SIZE, MARGIN, EDGE = 22 * SCALE, 10 * SCALE, 4 * SCALE


def render(
    output: pathlib.Path, fonts: list[pathlib.Path], lines: int, seed: int
) -> None:
    """Write a corpus with one scribe per font, completely or not at all.

    The output is a ``data_folder`` for the recipe; it must be empty or not
    exist. Texts and strokes depend on the seed."""
    if output.exists() and any(output.iterdir()):
        raise FileExistsError(f"{output} is not empty: use another folder.")
    with atomic_folder(output) as folder:
        _write_corpus(folder / ROOT, fonts, lines, seed)


def find_fonts(places: list[str]) -> list[pathlib.Path]:
    """Find fonts in files and folders. If a folder has fonts in ``HANDS``, use
    only these."""
    chosen = []
    for path in map(pathlib.Path, places):
        fonts = [path] if path.is_file() else []
        if path.is_dir():
            fonts = sorted(
                p for p in path.rglob("*") if p.suffix in (".otf", ".ttf")
            )
            fonts = [p for p in fonts if p.stem in HANDS] or fonts
        if not fonts:
            raise FileNotFoundError(f"There is no font (.ttf, .otf) in {path}.")
        chosen += fonts
    return chosen


def texts(rng: random.Random, split: str) -> Iterator[str]:
    """Yield an endless stream of different lines of five to seven words for a
    split. No line is in both splits."""
    seen = set()
    while True:
        words = rng.choices(WORDS, k=rng.randint(5, 7))
        if rng.random() < 0.5:
            words[rng.randrange(len(words))] = str(rng.choice(NUMBERS))
        if rng.random() < 0.5:
            words[0] = words[0].capitalize()
        if rng.random() < 0.3:
            words[rng.randrange(len(words) - 1)] += ","
        text = " ".join(words)
        is_test = zlib.crc32(text.encode()) % 5 == 0
        if is_test == (split == "test") and text not in seen:
            seen.add(text)
            yield text


def render_line(
    font: ImageFont.FreeTypeFont, text: str, rng: np.random.Generator
) -> tuple[Image.Image, np.ndarray]:
    """Render a line in a font of size ``SIZE`` with random distortion and ink.

    Returns a gray image 32 pixels high, and the horizontal edges of the
    characters at mid-height, one more than there are characters."""
    lengths = [font.getlength(text[:i]) for i in range(len(text) + 1)]
    edges = MARGIN + np.array(lengths)
    # The drawn extent: some fonts state a wrong ascent and descent.
    _, top, _, bottom = map(int, font.getbbox(text))
    width, height = int(edges[-1]) + MARGIN, bottom - top + 2 * EDGE
    sheet = Image.new("L", (width, height), 255)
    ink = int(rng.integers(70))
    ImageDraw.Draw(sheet).text((MARGIN, EDGE - top), text, ink, font)

    x, y = np.arange(width), np.arange(height)
    steps = rng.normal(size=width // (25 * SCALE) + 2).cumsum()
    # Zero drift at both ends keeps the text within the image.
    steps -= np.linspace(steps[0], steps[-1], len(steps))
    drift = x + 0.6 * SCALE * _smooth(steps, width)
    knots = rng.normal(size=width // (60 * SCALE) + 2)
    wobble = 1.2 * SCALE * _smooth(knots, width)
    slant = rng.normal(0, 0.12) * (y - height / 2)
    rows = y[:, None] + wobble
    columns = drift + slant[:, None]
    bent = map_coordinates(
        np.asarray(sheet, np.float32), [rows, columns], order=1, cval=255
    )
    edges = np.interp(edges, drift, x)

    inked = np.flatnonzero((bent < 200).any(1))
    bent = bent[max(inked[0] - SCALE, 0) : inked[-1] + 1 + SCALE]
    size = round(width * HEIGHT / len(bent)), HEIGHT
    image = Image.fromarray(bent.round().astype(np.uint8))
    strokes = np.asarray(image.resize(size, Image.Resampling.LANCZOS))
    paper = 235 - 20 * _smooth(rng.uniform(size=8), size[0])
    gray = strokes / 255 * paper + rng.normal(0, 4, strokes.shape)
    gray = Image.fromarray(gray.clip(0, 255).round().astype(np.uint8))
    return gray, edges * size[0] / width


def alignment(name: str, text: str, edges: np.ndarray, width: int) -> str:
    """Format an alignment (``.ali``) as in ScribbleLens, where a column belongs to
    the character at its middle.

    >>> print(alignment("a.jpg", "a", np.array([1.0, 1.9]), 3))
    a.jpg 3 targetStr:*a*
    0 1 * 0.000000
    1 2 a 0.000000
    2 3 * 0.000000
    <BLANKLINE>
    """
    padded = [BLANK, *text.replace(" ", "_"), BLANK]
    indices = np.searchsorted(edges, np.arange(width) + 0.5, side="right")
    rows = [f"{name} {width} targetStr:*{text}*"]
    rows += [f"{x} {x + 1} {padded[i]} 0.000000" for x, i in enumerate(indices)]
    return "\n".join(rows) + "\n"


def _smooth(knots: np.ndarray, width: int) -> np.ndarray:
    positions = np.linspace(0, len(knots) - 1, width)
    return np.interp(positions, np.arange(len(knots)), knots)


def _write_corpus(root: pathlib.Path, fonts, lines: int, seed: int) -> None:
    lists, paths = {}, {}
    streams = {
        split: texts(random.Random(f"{split} {seed}"), split)
        for split in ("train", "test")
    }
    with tqdm(total=lines, desc="Lines written", disable=None) as bar:
        for index, path in enumerate(fonts):
            font = ImageFont.truetype(
                path, SIZE, layout_engine=ImageFont.Layout.BASIC
            )
            scribe = path.stem.lower()
            number = lines // len(fonts) + (index < lines % len(fonts))
            tests = round(TEST_SHARE * number)
            rng = np.random.default_rng([seed, index])
            for line in range(number):
                split = "test" if line >= number - tests else "train"
                text = next(streams[split])
                page, row = divmod(line, LINES_ON_A_PAGE)
                # The shift keeps pages from being in both splits.
                page += split == "test"
                stem = f"nl/{scribe}/{page // 2 + 1}.{page % 2}/line{row + 1}"
                image, edges = render_line(font, text, rng)
                target = root / f"{stem}.jpg"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.save(target, quality=95)
                target.with_suffix(".txt").write_text(f"{text}\n", "utf-8")
                for part in ("", f".{scribe}"):
                    name = f"nl.bw.lines{part}.{split}.dat"
                    row = f"{stem}.jpg {stem}.txt\n"
                    lists[name] = lists.get(name, "") + row
                name = f"{ROOT}/{stem}"
                paths[f"{name}.ali"] = alignment(
                    f"{name}.jpg", text, edges, image.width
                )
                bar.update()
    (root / "corpora").mkdir()
    for name, text in lists.items():
        (root / "corpora" / name).write_text(text, "utf-8")
    archive = root / "corpora/scribblelens.paths.1.4b.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in paths.items():
            # A ZipInfo has no time, so that the bytes are reproducible.
            info = zipfile.ZipInfo(name)
            file.writestr(info, text, zipfile.ZIP_DEFLATED)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("output", type=pathlib.Path, help="folder to write")
    parser.add_argument("fonts", nargs="+", help="font files or folders")
    parser.add_argument("--lines", type=int, default=2800, help="line count")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    options = parser.parse_args()
    fonts = find_fonts(options.fonts)
    render(options.output, fonts, options.lines, options.seed)
