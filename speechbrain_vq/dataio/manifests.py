"""Read and write manifests, item files and ``corpus.json`` of any corpus.

A prepared corpus is a folder with SpeechBrain manifests (``train.json``,
``valid.json``, ``test.json``), where phones are known a ZeroSpeech item file
of the test set (``phones.item``), and ``corpus.json``, written last, with the
parameters of the preparation and the folder of the audio (``data_root``).
"""

import json
import logging
import math
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from speechbrain_vq._names import suggestion

from .atomic import atomic_write

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
SPLITS = ("train", "valid", "test")
MANIFESTS = tuple(f"{split}.json" for split in SPLITS)
FORMAT_VERSION = 1
SILENCE = "SIL"
# Names of pauses in espeak, Kaldi, Festival and ZeroSpeech.
SILENCES = frozenset([SILENCE, "sil", "sp", "spn", "pau", "_", "#", ""])
# Longest gap between adjacent phones in seconds: alignments are in steps of a
# few ms. Half a ms more, since decimals are not exact in binary.
_LONGEST_GAP = 0.005 + 0.0005


def read_json(path: PathLike) -> Any:
    """Read a json file in UTF-8, with or without a byte order mark."""
    return json.loads(pathlib.Path(path).read_text("utf-8-sig"))


def read_corpus(folder: PathLike) -> dict:
    """Read ``corpus.json``, the parameters of a preparation, if it exists."""
    path = pathlib.Path(folder, "corpus.json")
    return read_json(path) if path.is_file() else {}


def data_root(folder: PathLike) -> str:
    """Return the folder to substitute for ``{data_root}`` in manifests: the
    ``data_root`` of ``corpus.json``, relative to the folder, or the folder.

    Example
    -------
    >>> data_root("/data/minispeech")
    '/data/minispeech'
    """
    root = read_corpus(folder).get("data_root", ".")
    return str(pathlib.Path(folder, root))


def read_manifest(
    path: PathLike, data_root: PathLike | None = None
) -> dict[str, dict]:
    """Read a json manifest as SpeechBrain's ``DynamicItemDataset`` does.

    Entries have ``wav``, ``length``, and where known ``spk_id``, ``gender``,
    ``words`` and ``phones`` (start, end, name) in order of time. Numbers that
    name a speaker become text. ``{data_root}`` becomes ``data_root``, or else
    that of ``corpus.json`` beside the manifest, or the manifest's folder.

    Raises
    ------
    ValueError
        If it is no such manifest.
    """
    path = pathlib.Path(path)
    try:
        root = data_root or _root(path.parent)
        entries = {
            name: {
                **entry,
                **_as_text(entry),
                "wav": _substitute(entry["wav"], root),
                "phones": [
                    (start, end, _substitute(phone, root))
                    for start, end, phone in entry.get("phones") or ()
                ],
            }
            for name, entry in read_json(path).items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: no manifest: a json object is wanted, of entries with a "
            f'"wav" each, and maybe "phones" of [start, end, name] ({error}).'
        ) from error
    for name, entry in entries.items():
        _check_phones(path, name, entry["phones"])
    return entries


# The argument of read_manifest has the same name.
_root = data_root


def _as_text(entry):
    """Names, some of which are numbers in other people's json."""
    names = {key: entry.get(key) for key in ("spk_id", "gender")}
    return {key: str(it) for key, it in names.items() if it is not None}


def _substitute(text, root):
    text = text.replace("{data_root}", str(root))
    return text.replace("{{", "{").replace("}}", "}")


def _check_phones(path, name, phones):
    previous = (0.0, 0.0)
    for number, (*times, phone) in enumerate(phones, 1):
        where = f"{path}, utterance {name}, phone {number} ({phone!r})"
        if not all(type(time) in (int, float) for time in times):
            raise ValueError(
                f"{where}: start and end are numbers of seconds, not "
                f"{times[0]!r} and {times[1]!r}."
            )
        if not 0 <= times[0] <= times[1] < math.inf:
            raise ValueError(
                f"{where}: from {times[0]} to {times[1]} s is no piece of "
                "time; a start and an end in seconds are wanted."
            )
        if times[0] < previous[0] or times[1] < previous[1]:
            raise ValueError(
                f"{where}: it is from {times[0]} to {times[1]} s, after one "
                f"from {previous[0]} to {previous[1]} s. Sort the phones by "
                "time."
            )
        previous = times


def has_manifests(folder: pathlib.Path) -> bool:
    """Return whether a folder has the manifests of all splits, json or csv."""
    return any(
        all((folder / f"{split}.{kind}").is_file() for split in SPLITS)
        for kind in ("json", "csv")
    )


def given_manifests(
    data_folder: pathlib.Path, save_folder: pathlib.Path
) -> bool:
    """Return whether a user's data folder has manifests to use as they are.

    Those in the folder for manifests made of the data are not a user's.
    """
    own = data_folder.resolve() == save_folder.resolve()
    given = has_manifests(data_folder) and not own
    if given:
        logger.debug("%s: its manifests are used as they are", data_folder)
    return given


def is_done(
    folder: pathlib.Path, corpus: dict, ignoring: Sequence[str] = ()
) -> bool:
    """Return whether the preparation that ``corpus``, the content of
    ``corpus.json`` but for some keys, describes is complete."""
    complete = all((folder / name).is_file() for name in MANIFESTS)
    written = read_corpus(folder)
    for key in ignoring:
        written.pop(key, None)
    return complete and written == corpus


def folder_contents(folder: PathLike, pattern: str = "*", most: int = 5) -> str:
    """List the first names in a folder, for an error message.

    Example
    -------
    >>> folder_contents("no/such/folder")
    'nothing'
    """
    return first_names(sorted(pathlib.Path(folder).glob(pattern)), most)


def first_names(names: Iterable[PathLike], most: int = 5) -> str:
    """List the first of some names, for a message.

    Example
    -------
    >>> first_names("abc", most=2)
    'a, b, ...'
    """
    names = [pathlib.Path(name).name for name in names]
    more = ["..."] if len(names) > most else []
    return ", ".join(names[:most] + more) or "nothing"


def no_folder(folder: PathLike) -> str:
    """Describe a folder that does not exist, and suggest one beside it.

    Example
    -------
    >>> no_folder("no/such/folder")
    'There is no folder no/such/folder.'
    """
    path = pathlib.Path(folder)
    beside = [p.name for p in path.parent.glob("*") if p.is_dir()]
    close = suggestion(path.name, beside, lambda name: str(path.parent / name))
    return f"There is no folder {folder}.{close}"


def utterance(
    path: str,
    length: float,
    speaker: str,
    lang: str = "",
    words: str = "",
    phones: Iterable = (),
) -> dict:
    """Make a manifest entry: the path of the audio is relative to
    ``data_root``, times are in seconds, ``phones`` are (start, end, name).

    Braces are doubled, those of ``{data_root}`` excepted, so that SpeechBrain's
    replacements leave names and texts alone.

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
    """Write the manifests of ``utts``, entries by split and utterance id, the
    item file and, last, ``corpus.json`` with the parameters of the preparation.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.json").unlink(missing_ok=True)
    for split in SPLITS:
        _write_text(folder / f"{split}.json", _json_lines(utts[split]))
    if any(utt["phones"] for utt in utts["test"].values()):
        _write_text(folder / "phones.item", _item_file(utts["test"]))
    else:
        (folder / "phones.item").unlink(missing_ok=True)
    _write_text(folder / "corpus.json", json.dumps(corpus, indent=1) + "\n")
    logger.info(
        "%s: %s",
        folder,
        ", ".join(
            f"{split} {sum(u['length'] for u in utts[split].values()) / 60:.1f}"
            f" min ({len(utts[split])} utterances)"
            for split in SPLITS
        ),
    )


def _write_text(path: pathlib.Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, "utf-8", newline="\n")


def _json_lines(utts: dict[str, dict]) -> str:
    """Format a json object with an utterance a line."""
    lines = (
        f"{json.dumps(utt_id)}: {json.dumps(utt, ensure_ascii=False)}"
        for utt_id, utt in utts.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


class Item(NamedTuple):
    """Line of a ZeroSpeech item file: a phone of an utterance, from onset to
    offset in seconds, its neighbours and the speaker."""

    file: str
    onset: float
    offset: float
    phone: str
    before: str
    after: str
    speaker: str


def read_items(path: PathLike) -> Iterator[Item]:
    """Read a ZeroSpeech item file, with the columns ``#file onset offset #phone
    prev-phone next-phone speaker``; a ValueError names a line that is none."""
    with open(path, encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.split()
            if not fields or line.startswith("#file"):
                continue
            try:
                file, onset, offset, *names = fields
                item = Item(file, float(onset), float(offset), *names)
                if not 0 <= item.onset <= item.offset < math.inf:
                    raise ValueError
            except (ValueError, TypeError):
                raise ValueError(
                    f"{path}, line {number}: an item has a file, an onset, an "
                    "offset, a phone, the phones before and after it, and a "
                    f"speaker; this is {line.strip()!r}."
                ) from None
            yield item


def make_items(
    file: str,
    phones: Sequence[tuple[float, float, str]],
    speaker: str,
    triphones: bool,
) -> list[Item]:
    """Make the items of an utterance: phones (start, end, name) without a pause
    before, in or after them, at most 5 ms from their neighbours. A triphone
    lasts from the phone before to the phone after.

    Example
    -------
    >>> phones = [(0.0, 0.1, "a"), (0.1, 0.3, "b"), (0.3, 0.4, "c")]
    >>> make_items("utt", phones, "ann", triphones=True)[0][:4]
    ('utt', 0.0, 0.4, 'b')
    """
    items = []
    for before, this, after in zip(
        phones, phones[1:], phones[2:], strict=False
    ):
        names = this[2], before[2], after[2]
        gap = max(abs(this[0] - before[1]), abs(after[0] - this[1]))
        if SILENCES.isdisjoint(names) and gap < _LONGEST_GAP:
            times = (before[0], after[1]) if triphones else this[:2]
            items.append(Item(file, *times, *names, speaker))
    return items


def _item_file(utts: dict[str, dict]) -> str:
    """ZeroSpeech triphones: from the phone before to the phone after."""
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for utt_id, utt in utts.items():
        for item in make_items(utt_id, utt["phones"], utt["spk_id"], True):
            lines.append(" ".join(map(str, item)))
    return "\n".join(lines) + "\n"
