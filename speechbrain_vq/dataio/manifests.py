"""Read and write manifests and ``corpus.json`` of any corpus.

A prepared corpus is a folder of SpeechBrain manifests and, if phones are known,
a ZeroSpeech item file of the test set (``phones.item``). ``corpus.json``, which
is written last, contains the parameters of the preparation.
"""

import csv
import hashlib
import json
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from speechbrain_vq._names import suggestion

from .atomic import atomic_write
from .items import item_file

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
SPLITS = ("train", "valid", "test")
MANIFESTS = tuple(f"{split}.json" for split in SPLITS)
FORMAT_VERSION = 1
# Seconds by which stated lengths and labels may differ from the audio.
TOLERANCE = 0.1
_DATA_ROOT = "{data_root}"
_MAX_SECONDS = 1e9

_NAMES = ("spk_id", "gender", "lang")
# Type and description of each field that an item may have.
_FIELDS = {
    "wav": (str, "the path of an audio file"),
    "length": (int | float, "a number of seconds above 0"),
    **dict.fromkeys(_NAMES, (str | int | float, "a name")),
    "words": (str, "a text"),
    "phones": (list, "a list of [start, end, name]"),
}


class ManifestError(ValueError):
    """A manifest, or a file next to it, cannot be used."""


def read_json(path: PathLike, **options: Any) -> Any:
    """Read a JSON file in UTF-8, with or without a byte order mark. ``options``
    are passed to ``json.loads``."""
    text = pathlib.Path(path).read_text("utf-8-sig")
    return json.loads(text, **options)


def write_json(path: PathLike, content: Any, **options: Any) -> None:
    """Write a JSON file in UTF-8 atomically. ``options`` are passed to
    ``json.dumps``."""
    _write_text(path, json.dumps(content, **options) + "\n")


def read_corpus(folder: PathLike) -> dict:
    """Read the preparation parameters in ``corpus.json``; empty if there is no
    such file. Raises ManifestError if it is invalid."""
    path = pathlib.Path(folder, "corpus.json")
    if not path.is_file():
        return {}
    try:
        corpus = read_json(path)
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"{path} is not valid JSON: {error}") from error
    root = corpus.get("data_root", "") if isinstance(corpus, dict) else None
    if not isinstance(root, str):
        raise ManifestError(
            f'{path} must be a JSON object whose "data_root" is a folder.'
        )
    return corpus


def data_root(folder: PathLike) -> str:
    """Return the folder to substitute for ``{data_root}`` in manifests: the
    ``data_root`` of ``corpus.json``, relative to the folder, or the folder."""
    root = read_corpus(folder).get("data_root", ".")
    return str(pathlib.Path(folder, root))


def read_manifest(
    path: PathLike,
    data_root: PathLike | None = None,
    needed: Sequence[str] = (),
) -> dict[str, dict]:
    """Read and check a json or csv manifest for SpeechBrain's
    ``DynamicItemDataset``.

    Each item has ``wav`` and the fields in ``needed``. ``length`` in seconds
    (in csv ``duration``), ``spk_id``, ``gender``, ``lang``, ``words`` and
    ``phones`` (start, end, name), in chronological order, are optional. Numbers
    used as names become text. ``{data_root}`` is replaced by ``data_root``, by
    default that of ``corpus.json`` next to the manifest, or the manifest's
    folder. Other relative paths are also relative to it, or to the working
    directory.
    A ManifestError names the file, item and field, and the expected value."""
    path = pathlib.Path(path)
    root = data_root or _root(path.parent)
    try:
        if path.suffix == ".csv":
            items = _read_csv(path)
        else:
            items = read_json(path, object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError, csv.Error) as error:
        raise ManifestError(
            f"{path} is not a valid manifest (json or csv, in UTF-8): {error}"
        ) from error
    if not isinstance(items, dict):
        raise ManifestError(
            f"{path}: a manifest must be an object of items by name, not a "
            f"{type(items).__name__}."
        )
    if needed and not items:
        raise ManifestError(f"{path}: it has no items.")
    for name, item in items.items():
        where = f"{path}, item {name!r}"
        items[name] = _checked(item, where, path.parent, root, needed)
    _warn_of_labels(path, items)
    return items


# read_manifest has an argument named data_root.
_root = data_root


def _warn_of_labels(path, items):
    """Warn about items whose labels contradict their audio, or the labels of
    another item of the same recording."""
    labels_of, parts, late, differing = {}, [], [], []
    for name, item in items.items():
        phones, length = item["phones"], item.get("length") or math.inf
        if phones and phones[-1][1] > length + TOLERANCE:
            late.append(name)
        labels = [item.get("spk_id"), item.get("words"), phones]
        if "start" in item:
            parts.append(name)
        elif labels_of.setdefault(item["wav"], labels) != labels:
            differing.append(name)
    for names, problem in (
        (parts, "have a start, which is not read: they are whole recordings"),
        (late, "have phones that end after the audio"),
        (differing, "have other labels than an earlier one of the same file"),
    ):
        if names:
            count = f"{len(names)} of {len(items)} items"
            first = first_names(names)
            logger.warning("%s: %s %s: %s", path, count, problem, first)


def _without_duplicates(pairs):
    """Make a dict of name and value pairs, whose names must be unique."""
    items = {}
    for name, value in pairs:
        if name in items:
            raise ValueError(f"{name!r} is defined more than once.")
        items[name] = value
    return items


def _read_csv(path):
    """Read a SpeechBrain csv manifest, and return it as a json manifest."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file, skipinitialspace=True, strict=True)
        _without_duplicates([(name, None) for name in rows.fieldnames or ()])
        pairs = [(row.pop("ID", None), row) for row in rows]
    for name, row in pairs:
        if not name or None in row:
            raise ValueError(
                "a row must have an ID and no more columns than the header, "
                f"not {row}."
            )
        row["wav"] = (row.get("wav") or "").replace("$data_root", _DATA_ROOT)
        seconds = row.pop("duration", None)
        if seconds is not None:
            try:
                row["length"] = float(seconds)
            except ValueError:
                raise ValueError(
                    f"item {name!r}: duration is {seconds!r}, not a number."
                ) from None
    return _without_duplicates(pairs)


def _checked(item, where, folder, root, needed):
    """Return an item with complete paths, or raise a ManifestError."""
    if not isinstance(item, dict):
        raise ManifestError(f"{where}: an item must be an object with fields.")
    for key, (kind, description) in _FIELDS.items():
        value = item.get(key)
        if value is None and key not in ("wav", *needed):
            continue
        is_valid = isinstance(value, kind) and not isinstance(value, bool)
        is_valid = is_valid and value == value  # pandas writes NaN
        if key == "length":
            is_valid = is_valid and 0 < value < _MAX_SECONDS
        if not is_valid or (key == "wav" and not value):
            problem = f"is {value!r:.40}" if key in item else "is missing"
            raise ManifestError(
                f'{where}: "{key}" {problem}; it must be {description}.'
            )
    item = {**item, "phones": item.get("phones") or []}
    _check_phones(where, item["phones"])
    if not item["wav"].startswith(_DATA_ROOT):
        in_folder = folder / item["wav"]
        if in_folder.exists() or not os.path.exists(item["wav"]):
            item["wav"] = str(in_folder)
    names = {k: str(item[k]) for k in _NAMES if item.get(k) is not None}
    return _substituted(item | names, root)


def _substituted(value, root):
    """Replace ``{data_root}`` in all strings, as SpeechBrain does."""
    if isinstance(value, str):
        parts = value.split(_DATA_ROOT)
        parts = [p.replace("{{", "{").replace("}}", "}") for p in parts]
        return str(root).join(parts)
    if isinstance(value, list):
        return [_substituted(part, root) for part in value]
    if isinstance(value, dict):
        return {key: _substituted(part, root) for key, part in value.items()}
    return value


def _check_phones(where, phones):
    previous = (0, 0)
    for number, phone in enumerate(phones, 1):
        try:
            start, end, name = phone
            if not 0 <= start <= end < _MAX_SECONDS:
                raise ValueError
            name.strip()
        except (TypeError, ValueError, AttributeError):
            raise ManifestError(
                f"{where}: phone {number} is {phone!r:.60}; it must be [start, "
                "end, name], in seconds."
            ) from None
        if start < previous[0] or end < previous[1]:
            raise ManifestError(
                f"{where}: phone {number} ({name!r}) is from {start} to {end} "
                f"s, after a phone from {previous[0]} to {previous[1]} s. Sort "
                "the phones by time."
            )
        previous = start, end


def manifest_path(folder: PathLike, split: str) -> pathlib.Path:
    """Return the path of a manifest: csv if only csv exists, else json."""
    path = pathlib.Path(folder, f"{split}.json")
    csv_path = path.with_suffix(".csv")
    return csv_path if csv_path.exists() and not path.exists() else path


def has_manifests(folder: pathlib.Path) -> bool:
    """Return whether a folder has the manifests of all splits, json or csv."""
    return all(manifest_path(folder, split).is_file() for split in SPLITS)


def given_manifests(
    data_folder: pathlib.Path, save_folder: pathlib.Path
) -> bool:
    """Return whether the data folder has the user's own manifests; those in the
    save folder were created by the preparation."""
    prepared = data_folder.resolve() == save_folder.resolve()
    return has_manifests(data_folder) and not prepared


def is_done(
    folder: pathlib.Path, corpus: dict, ignoring: Sequence[str] = ()
) -> bool:
    """Return whether a preparation is complete: all manifests exist, and
    ``corpus`` equals ``corpus.json``, apart from the keys in ``ignoring``."""
    written = read_corpus(folder)
    for key in ignoring:
        written.pop(key, None)
    complete = all((folder / name).is_file() for name in MANIFESTS)
    return complete and written == corpus


def digest(contents: Iterable[bytes]) -> str:
    """Hash the inputs of a preparation, for ``corpus.json``."""
    return hashlib.sha1(b"".join(contents)).hexdigest()


def manifests_digest(folder: pathlib.Path) -> str | None:
    """Hash the manifests of all splits; None if any is missing."""
    paths = [manifest_path(folder, split) for split in SPLITS]
    if not all(path.is_file() for path in paths):
        return None
    return digest(path.read_bytes() for path in paths)


def sizes(paths: Iterable[pathlib.Path]) -> Iterator[bytes]:
    """Yield file names and sizes, for ``digest``."""
    for path in paths:
        yield f"{path.name} {path.stat().st_size}\n".encode()


def folder_contents(
    folder: PathLike, pattern: str = "*", maximum: int = 5
) -> str:
    """List the first names in a folder, for an error message."""
    return first_names(sorted(pathlib.Path(folder).glob(pattern)), maximum)


def first_names(names: Iterable[PathLike], most: int = 5) -> str:
    """List the first few names, for a message."""
    names = [pathlib.Path(name).name for name in names]
    more = ["..."] if len(names) > most else []
    return ", ".join(names[:most] + more) or "nothing"


def missing_folder(folder: PathLike) -> str:
    """Return the error message for a folder that does not exist, and suggest
    one with a similar name."""
    path = pathlib.Path(folder)
    names = [p.name for p in path.parent.glob("*") if p.is_dir()]
    hint = suggestion(path.name, names, lambda name: str(path.parent / name))
    return f"There is no folder {folder}.{hint}"


def utterance(
    path: str,
    length: float,
    speaker: str,
    lang: str = "",
    words: str = "",
    phones: Iterable = (),
) -> dict:
    """Make a manifest entry. The audio path is relative to ``data_root``, times
    are in seconds, and ``phones`` are (start, end, name).

    Braces in names and texts are doubled, to escape them from SpeechBrain's
    replacements.

    Example
    -------
    >>> utterance("ann/{1}.wav", 0.5, "ann")["wav"]
    '{data_root}/ann/{{1}}.wav'
    """
    return {
        "wav": "{data_root}/" + _escape(path),
        "length": length,
        "spk_id": _escape(speaker),
        "lang": lang,
        "words": _escape(words),
        "phones": [[start, end, _escape(name)] for start, end, name in phones],
    }


def write_corpus(
    folder: pathlib.Path, utts: dict[str, dict], corpus: dict
) -> None:
    """Write the manifests, the item file and finally ``corpus.json``. ``utts``
    are the entries by split and utterance id, and ``corpus`` is the content of
    ``corpus.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.json").unlink(missing_ok=True)
    for split in SPLITS:
        _write_text(folder / f"{split}.json", _json_lines(utts[split]))
    items = item_file(utts["test"])
    if items:
        _write_text(folder / "phones.item", items)
    else:
        (folder / "phones.item").unlink(missing_ok=True)
    write_json(folder / "corpus.json", corpus, indent=1)
    parts = (
        f"{split} {duration(sum(utt['length'] for utt in part.values()))}"
        f" ({len(part)} utterance{'s' * (len(part) != 1)})"
        for split, part in utts.items()
    )
    logger.info("%s: %s", folder, ", ".join(parts))


def duration(seconds: float) -> str:
    """Format a duration.

    Example
    -------
    >>> duration(4.5), duration(870)
    ('4.5 s', '14.5 min')
    """
    return f"{seconds:.1f} s" if seconds < 90 else f"{seconds / 60:.1f} min"


def _write_text(path: PathLike, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, "utf-8", newline="\n")


def _json_lines(utts: dict[str, dict]) -> str:
    """Format a JSON object with one utterance per line."""
    lines = []
    for utt_id, utt in utts.items():
        text = json.dumps(utt, ensure_ascii=False)
        # A file name that is not valid text can only be written in ASCII.
        text = text if text.isprintable() else json.dumps(utt)
        lines.append(f"{json.dumps(utt_id)}: {text}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
