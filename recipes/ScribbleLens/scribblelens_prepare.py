"""Data preparation: ScribbleLens v1.2 (openslr 84), lines of Dutch handwriting
of the 16th to 18th century, from its zip archive or its unpacked folder.

The recipe's README describes the layout, and states what is not verified.
Writes SpeechBrain manifests (``train.json``, ``valid.json``, ``test.json``). The
archive has no validation set, so every tenth training page is held out.
"""

import io
import itertools
import logging
import os
import pathlib
import zipfile
import zlib
from collections.abc import Sequence
from fnmatch import fnmatch

import numpy as np
from PIL import Image
from tqdm import tqdm

from speechbrain_vq.dataio.manifests import (
    MANIFESTS,
    digest,
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
# Exceptions that damaged files raise, inside an archive or on disk.
DAMAGED = (
    EOFError,
    KeyError,
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    Image.DecompressionBombError,
    zipfile.BadZipFile,
    zlib.error,
)


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
        The zip archive, or a folder with it or with the files unpacked from it.
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
        If the archive is damaged, or no line of it can be used.
    """
    source, root = find_corpus(pathlib.Path(data_folder))
    folder = pathlib.Path(save_folder)
    settings = {"source": str(source), "colour": colour, "scribe": scribe}
    settings["digest"] = _digest(source, root)
    marker = folder / "prepared.json"
    complete = all((folder / name).is_file() for name in MANIFESTS)
    if complete and marker.is_file() and read_json(marker) == settings:
        return folder
    marker.unlink(missing_ok=True)
    alignments = find_alignments(root, source)
    lists = {
        split: read_list(root, colour, scribe, split)
        for split in ("train", "test")
    }
    splits = {s: _read_lines(root, alignments, lists[s], s) for s in lists}
    splits["train"], splits["valid"] = hold_out(splits["train"])
    folder.mkdir(parents=True, exist_ok=True)
    for split, items in splits.items():
        path = folder / f"{split}.json"
        write_json(path, items, ensure_ascii=False, indent=0)
    write_json(marker, settings, ensure_ascii=False, indent=0)
    counts = [f"{split} {len(items)} lines" for split, items in splits.items()]
    logger.info("%s: %s", folder, ", ".join(counts))
    return folder


def _digest(source, root) -> str:
    """Hash the sizes of the archives, or of all files in a folder."""
    paths = [source, *sorted(source.parent.glob(ALIGNMENTS))]
    if source.is_dir():
        paths = sorted(p for p in pathlib.Path(root).rglob("*") if p.is_file())
    return digest(sizes(paths))


class LineImages:
    """Reader of line images, scaled to a height of 32 pixels, with a cache.
    ``source`` is the one in ``prepared.json``."""

    def __init__(self, source: str | pathlib.Path):
        self.source = pathlib.Path(source)
        self._cache = {}
        self._root = self._process = None

    def __call__(self, name: str) -> np.ndarray:
        """Return the gray levels 0..255, [width, 32]."""
        if name not in self._cache:
            # Forked workers must not share the file position of an archive.
            if self._process != os.getpid():
                self._root, self._process = _open(self.source), os.getpid()
            self._cache[name] = read_image(self._root / name)
        return self._cache[name]


def find_corpus(data_folder: pathlib.Path):
    """Find the corpus. Returns the archive or the parent folder, and the path of
    ``scribblelens.corpus.v1`` in it."""
    sources, resolved = [data_folder], data_folder.resolve()
    if resolved.name == ROOT:
        sources.append(resolved.parent)
    if data_folder.is_dir():
        sources += sorted(data_folder.glob(f"{ROOT}*.zip"), reverse=True)
    for source in sources:
        root = _open(source)
        if root is not None and (root / ROOT / "corpora").is_dir():
            return source.resolve(), root / ROOT
    raise FileNotFoundError(
        f"There is no ScribbleLens in {data_folder}: neither {ROOT}.2.zip nor "
        f"the folder {ROOT}/corpora unpacked from it. Get the archive from "
        "https://www.openslr.org/84/, or generate a stand-in with "
        "render_handwriting.py."
    )


def find_alignments(root, source: pathlib.Path):
    """Find the forced alignments, an archive or files next to the images.
    Returns the path of their ``scribblelens.corpus.v1``."""
    beside = source if source.is_dir() else source.parent
    corpora = sorted((root / "corpora").iterdir(), key=str)
    alignments = sorted(beside.glob(ALIGNMENTS))
    alignments += [p for p in corpora if fnmatch(p.name, ALIGNMENTS)]
    if alignments:
        archive = alignments[-1]
        try:
            return zipfile.Path(io.BytesIO(archive.read_bytes())) / ROOT
        except DAMAGED as error:
            raise ValueError(_damaged(archive, error)) from error
    if next(iter(root.glob("nl/*/*/*.ali")), None) is not None:
        return root
    raise FileNotFoundError(
        f"There are no alignments: {ALIGNMENTS} is neither in {beside} nor in "
        f"{ROOT}/corpora of {source}, its folder in version 1.2 of the archive."
    )


def read_list(
    root, colour: str, scribe: str | None, split: str
) -> list[tuple[str, str]]:
    """Read the list of a split: pairs of image and transcript paths, relative to
    ``root``."""
    part = f".{scribe}" if scribe else ""
    path = root / "corpora" / f"nl.{colour}.lines{part}.{split}.dat"
    if not path.is_file():
        names = sorted(p.name for p in path.parent.iterdir())
        lists = [name for name in names if name.endswith(".dat")]
        raise FileNotFoundError(
            f"{path} is missing. The lists there: {', '.join(lists) or 'none'}."
        )
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except DAMAGED as error:
        raise ValueError(_damaged(path, error)) from error
    pairs = []
    for line in lines:
        names = line.split()
        if names and len(names) != 2:
            raise ValueError(
                f"{path}: {line!r} is not the paths of an image and its "
                "transcript."
            )
        pairs += [tuple(names)] if names else []
    return pairs


def read_image(path) -> np.ndarray:
    """Read gray levels 0..255 of a line at a height of 32 pixels, [width, 32]."""
    with Image.open(io.BytesIO(path.read_bytes())) as image:
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
    has_target = len(words) > 2 and "targetStr:" in header
    if not has_target or not words[1].isdecimal():
        raise ValueError(f"{header[:60]!r} is not the header of an alignment")
    rows = [row.split() for row in rows if row.strip()]
    if len(rows) != int(words[1]) or any(len(row) != 4 for row in rows):
        raise ValueError(
            f"the alignment has {len(rows)} rows of 'x x+1 symbol score', but "
            f"its header states {words[1]}"
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


def _open(source: pathlib.Path):
    """Return the root path of a folder or an archive, or None for others."""
    if source.is_dir():
        return source
    if source.suffix != ".zip" or not source.is_file():
        return None
    try:
        return zipfile.Path(source)
    except zipfile.BadZipFile as error:
        raise ValueError(_damaged(source, error)) from error


def _damaged(archive, error) -> str:
    return f"{archive} is cut short or damaged: get it again ({error})."


def _read_lines(root, alignments, pairs, split: str) -> dict[str, dict]:
    """Read the lines of a split, and warn about those that cannot be used."""
    items, problems = {}, []
    for image, transcript in tqdm(
        pairs, desc=f"Lines of {split}", leave=False, disable=None
    ):
        try:
            item = _read_line(root, alignments, image, transcript)
        except DAMAGED as error:
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
    path = alignments / (image.rsplit(".", 1)[0] + ".ali")
    symbols = read_alignment(path.read_text(encoding="utf-8"))
    if len(symbols) != width:
        raise ValueError(
            f"its alignment has {len(symbols)} columns, the image {width} at "
            f"height {HEIGHT}"
        )
    text = (root / transcript).read_text(encoding="utf-8")
    text = " ".join(text.translate(UNWRITTEN).split())
    folders = pathlib.PurePosixPath(image).parent.parts
    writers = [f for f in folders if f not in ("nl", "unsupervised")]
    if not writers:
        raise ValueError("its path has no folder of a writer")
    return {
        "image": f"{ROOT}/{image}",
        "width": width,
        "writer": writers[0],
        "page": "/".join(folders),
        "text": text,
        "characters": find_characters(symbols, text),
    }
