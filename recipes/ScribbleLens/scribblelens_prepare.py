"""Data preparation: ScribbleLens v1.2 (openslr 84), lines of Dutch handwriting
of the 16th to 18th century, from its unpacked archive.

The recipe's README describes the layout, and states what is not verified.
Writes SpeechBrain manifests (``train.json``, ``valid.json``, ``test.json``). The
archive has no validation set, so every tenth training page is held out.
"""

import itertools
import logging
import pathlib
import zipfile
from collections.abc import Sequence

import numpy as np
from PIL import Image
from tqdm import tqdm

from speechbrain_vq.dataio.manifests import (
    MANIFESTS,
    digest,
    folder_contents,
    read_json,
    sizes,
    write_json,
)

logger = logging.getLogger(__name__)

ROOT = "scribblelens.corpus.v1"
ALIGNMENTS = "scribblelens.paths.*.zip"
HEIGHT = 32
# Characters in transcripts but not in alignments; DistSup also drops them.
UNWRITTEN = str.maketrans("", "", ".'")
BLANK = "*"


def prepare(
    data_folder: str | pathlib.Path,
    save_folder: str | pathlib.Path,
    colour: str = "bw",
    scribe: str | None = None,
) -> pathlib.Path:
    """Write the manifests, unless they exist, and return their folder. Its
    ``prepared.json``, written last, has the ``source`` of the images.

    Arguments
    ---------
    data_folder : path
        The folder ``scribblelens.corpus.v1``, or the one that contains it.
    save_folder : path
        Folder for the manifests.
    colour : str
        Kind of images: ``"bw"`` (as in the paper), ``"gray"`` or ``"color"``.
    scribe : str, optional
        Scribe whose lines to use, such as ``"tasman"``; all by default.

    Raises
    ------
    FileNotFoundError
        If a part of the corpus is missing.
    ValueError
        If the alignments are damaged, or no line can be used.
    """
    root, folder = _find_root(data_folder), pathlib.Path(save_folder)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    settings = {
        "source": str(root.parent),
        "colour": colour,
        "scribe": scribe,
        "digest": digest(sizes(files)),
    }
    marker = folder / "prepared.json"
    complete = all((folder / name).is_file() for name in MANIFESTS)
    if complete and marker.is_file() and read_json(marker) == settings:
        return folder
    marker.unlink(missing_ok=True)
    splits = {}
    with _open_alignments(root) as alignments:
        for split in ("train", "test"):
            pairs = _read_list(root, colour, scribe, split)
            splits[split] = _read_lines(root, alignments, pairs, split)
    splits["train"], splits["valid"] = hold_out(splits["train"])
    folder.mkdir(parents=True, exist_ok=True)
    for split, items in splits.items():
        path = folder / f"{split}.json"
        write_json(path, items, ensure_ascii=False, indent=0)
    write_json(marker, settings, ensure_ascii=False, indent=0)
    counts = [f"{split} {len(items)} lines" for split, items in splits.items()]
    logger.info("%s: %s", folder, ", ".join(counts))
    return folder


def _find_root(data_folder: str | pathlib.Path) -> pathlib.Path:
    """Find the folder ``scribblelens.corpus.v1``."""
    source = pathlib.Path(data_folder).resolve()
    root = source if source.name == ROOT else source / ROOT
    if not (root / "corpora").is_dir():
        raise FileNotFoundError(
            f"There is no folder {ROOT}/corpora in {data_folder}, which holds "
            f"{folder_contents(source)}: unpack {ROOT}.2.zip of "
            "https://www.openslr.org/84/ there, or generate a stand-in with "
            "render_handwriting.py."
        )
    return root


def _open_alignments(root: pathlib.Path) -> zipfile.ZipFile:
    """Open the archive of the forced alignments."""
    archives = sorted((root / "corpora").glob(ALIGNMENTS))
    if not archives:
        raise FileNotFoundError(
            f"There are no alignments: {ALIGNMENTS} is not in {root}/corpora, "
            "its folder in version 1.2 of the archive."
        )
    try:
        return zipfile.ZipFile(archives[-1])
    except zipfile.BadZipFile as error:
        raise ValueError(f"{archives[-1]} is damaged: {error}.") from error


def _read_list(
    root: pathlib.Path, colour: str, scribe: str | None, split: str
) -> list[list[str]]:
    """Read the list of a split: pairs of image and transcript paths, relative to
    ``root``."""
    part = f".{scribe}" if scribe else ""
    path = root / "corpora" / f"nl.{colour}.lines{part}.{split}.dat"
    if not path.is_file():
        lists = folder_contents(path.parent, "*.dat", maximum=30)
        raise FileNotFoundError(f"{path} is missing. The lists there: {lists}.")
    lines = path.read_text(encoding="utf-8").splitlines()
    return [line.split() for line in lines if line.strip()]


def read_image(path: str | pathlib.Path) -> np.ndarray:
    """Read gray levels 0..255 of a line at a height of 32 pixels, [width, 32]."""
    with Image.open(path) as image:
        image = image.convert("L")
        size = scaled_width(*image.size), HEIGHT
        if image.size != size:
            image = image.resize(size, Image.Resampling.BICUBIC)
        return np.ascontiguousarray(np.asarray(image).T)


def scaled_width(width: int, height: int) -> int:
    """Compute the width at a height of 32 pixels, rounded as in the alignments.

    >>> scaled_width(2277, 184)
    396
    """
    return int(0.5 + HEIGHT / height * width)


def read_alignment(text: str) -> list[str]:
    """Read the symbols of an alignment (``.ali``), one per column: a character,
    or ``*`` for none.

    >>> read_alignment("a.jpg 2 targetStr:*a*\\n0 1 a -0.1\\n1 2 _ -0.2\\n")
    ['a', ' ']
    """
    header, *rows = text.splitlines() or [""]
    words = header.split()
    rows = [row.split() for row in rows]
    if len(words) < 2 or words[1] != str(len(rows)):
        raise ValueError(
            f"the alignment has {len(rows)} rows, but its header is "
            f"{header[:60]!r}"
        )
    spaces = ("_", "SPACE")
    return [" " if row[2] in spaces else row[2] for row in rows]


def find_characters(symbols: Sequence[str], text: str) -> list[list]:
    """Find the extent [x0, x1, character] of each character, in columns.

    An alignment has one run of columns for a double letter. If it otherwise
    matches the transcript, the run is divided equally between the letters.

    >>> find_characters("*zzeeee*e", "zee")
    [[1, 3, 'z'], [3, 7, 'e'], [8, 9, 'e']]
    >>> find_characters("*zzeeee**", "zee")
    [[1, 3, 'z'], [3, 5.0, 'e'], [5.0, 7.0, 'e']]
    """
    runs, x = [], 0
    for symbol, columns in itertools.groupby(symbols):
        x, start = x + len(list(columns)), x
        if symbol != BLANK:
            runs.append([start, x, symbol])
    known = {run[2] for run in runs}
    groups = _groups(runs, key=lambda run: run[2])
    written = _groups(c for c in text if c in known)
    if [g[0][2] for g in groups] != [g[0] for g in written]:
        return runs
    return [
        part
        for group, letters in zip(groups, written, strict=True)
        for part in _divide(group, len(letters))
    ]


def hold_out(items: dict[str, dict]) -> tuple[dict, dict]:
    """Split lines by name into training lines and those of every tenth page."""
    pages = sorted({item["page"] for item in items.values()})
    if len(pages) < 2:
        raise ValueError(
            f"The training set has {len(items)} lines of {len(pages)} page(s): "
            "at least one to train on and one to validate on are required."
        )
    held_out = set(pages[::10])
    train = {k: v for k, v in items.items() if v["page"] not in held_out}
    return train, {k: v for k, v in items.items() if v["page"] in held_out}


def _groups(items, key=None) -> list[list]:
    return [list(group) for _, group in itertools.groupby(items, key)]


def _divide(group: list[list], number: int) -> list[list]:
    """Divide a run of columns into parts of equal width, one per letter."""
    if len(group) == number:
        return group
    start, end, symbol = group[0][0], group[-1][1], group[0][2]
    width = (end - start) / number
    edges = [start, *(start + i * width for i in range(1, number + 1))]
    return [[*edge, symbol] for edge in itertools.pairwise(edges)]


def _read_lines(root, alignments, pairs, split: str) -> dict[str, dict]:
    """Read the lines of a split, and warn about those that cannot be used."""
    items, problems = {}, []
    for image, transcript in tqdm(
        pairs, desc=f"Lines of {split}", leave=False, disable=None
    ):
        try:
            item = _read_line(root, alignments, image, transcript)
        except (KeyError, OSError, ValueError) as error:
            problems.append(f"{image} ({error})")
            continue
        name = image.removeprefix("nl/").rsplit(".", 1)[0].replace("/", "-")
        items[name] = item
    shown = "; ".join(problems[:5])
    if not items:
        raise ValueError(
            f"None of the {len(pairs)} lines of the {split} list can be used: "
            f"{shown}"
        )
    if problems:
        more = " ..." if len(problems) > 5 else ""
        logger.warning(
            "%d of %d lines of the %s list are left out: %s%s",
            *(len(problems), len(pairs), split, shown, more),
        )
    return items


def _read_line(root, alignments, image: str, transcript: str) -> dict:
    width = len(read_image(root / image))
    path = pathlib.PurePosixPath(ROOT, image).with_suffix(".ali")
    symbols = read_alignment(alignments.read(str(path)).decode())
    if len(symbols) != width:
        raise ValueError(
            f"its alignment has {len(symbols)} columns, the image {width} at "
            f"height {HEIGHT}"
        )
    text = (root / transcript).read_text(encoding="utf-8")
    text = " ".join(text.translate(UNWRITTEN).split())
    folders = pathlib.PurePosixPath(image).parent.parts
    writers = [f for f in folders if f not in ("nl", "unsupervised")]
    return {
        "image": f"{ROOT}/{image}",
        "width": width,
        "writer": writers[0],
        "page": "/".join(folders),
        "text": text,
        "characters": find_characters(symbols, text),
    }
