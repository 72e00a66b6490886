"""Manifests, whatever the corpus: written whole or not at all, and read.

Authors
 * speechbrain_vq authors 2026
"""

import csv
import io
import json
import logging
import os
import pathlib
from collections.abc import Iterable

from speechbrain_vq.dataio.replacing import replacing
from speechbrain_vq.evaluation.abx_items import make_items

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
SPLITS = ("train", "valid", "test")
MANIFESTS = tuple(f"{split}.json" for split in SPLITS)
FORMAT_VERSION = 1
SILENCE = "SIL"


def data_root(folder: PathLike) -> str:
    """The folder to put for ``{data_root}`` in the manifests of a folder.

    Arguments
    ---------
    folder : path
        A folder with manifests.

    Returns
    -------
    root : str
        What its ``corpus.json`` says, relative to the folder itself; the
        folder where it says nothing.

    Example
    -------
    >>> data_root("/data/minispeech")
    '/data/minispeech'
    """
    folder = pathlib.Path(folder)
    return str(folder / read_corpus(folder).get("data_root", "."))


def read_corpus(folder: pathlib.Path) -> dict:
    """What was made in a folder.

    Arguments
    ---------
    folder : pathlib.Path
        Where the manifests are.

    Returns
    -------
    corpus : dict
        What ``corpus.json`` says, nothing if there is none.

    Example
    -------
    >>> read_corpus(pathlib.Path("/nowhere"))
    {}
    """
    path = folder / "corpus.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def has_manifests(folder: pathlib.Path) -> bool:
    """Whether the manifests of all splits are there.

    Arguments
    ---------
    folder : pathlib.Path
        Where to look.

    Returns
    -------
    bool

    Example
    -------
    >>> has_manifests(pathlib.Path("/nowhere"))
    False
    """
    return any(
        all((folder / f"{split}.{kind}").is_file() for split in SPLITS)
        for kind in ("json", "csv")
    )


def given_manifests(
    data_folder: pathlib.Path, save_folder: pathlib.Path
) -> bool:
    """Whether what somebody named as their data are manifests, of any corpus,
    to be used as they are; says so.

    Arguments
    ---------
    data_folder : pathlib.Path
        Where to look.
    save_folder : pathlib.Path
        Where manifests of the data would go: those that are there are not
        given, but made.

    Returns
    -------
    bool

    Example
    -------
    >>> given_manifests(pathlib.Path("/nowhere"), pathlib.Path("/prepared"))
    False
    """
    own = data_folder.resolve() == save_folder.resolve()
    given = has_manifests(data_folder) and not own
    if given:
        logger.info("%s: its manifests are used as they are", data_folder)
    return given


def is_done(folder: pathlib.Path, corpus: dict) -> bool:
    """Whether a finished preparation with these parameters is there.

    Arguments
    ---------
    folder : pathlib.Path
        Where to look.
    corpus : dict
        What ``corpus.json`` would say.

    Returns
    -------
    bool

    Example
    -------
    >>> is_done(pathlib.Path("/nowhere"), {"corpus": "audio"})
    False
    """
    there = all((folder / name).is_file() for name in MANIFESTS)
    return there and read_corpus(folder) == corpus


def utterance(
    path: str,
    length: float,
    speaker: str,
    lang: str = "",
    words: str = "",
    phones: Iterable = (),
) -> dict:
    """An utterance as the manifests describe it.

    Arguments
    ---------
    path : str
        Of the audio, from the corpus's ``data_root``.
    length : float
        In seconds.
    speaker : str
        Who says it.
    lang : str
        In which language.
    words : str
        What is said.
    phones : iterable
        Of (start, end, name), in seconds.

    Returns
    -------
    utt : dict
        Its braces are doubled, those of ``{data_root}`` excepted, to keep
        SpeechBrain's replacements off names and texts.

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
    """Writes manifests, item file and, last, the mark that all is there.

    Arguments
    ---------
    folder : pathlib.Path
        Where they go; made if absent.
    utts : dict
        From split to a dict from id to utterance.
    corpus : dict
        For ``corpus.json``.

    Example
    -------
    >>> utts = {"train": {}, "valid": {}, "test": {}}
    >>> write_corpus(folder, utts, {"corpus": "mine"})  # doctest: +SKIP
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


def write_csv(path: pathlib.Path, utts: dict[str, dict]) -> None:
    """Writes SpeechBrain's csv for flac files; its root is ``$data_root``.

    Arguments
    ---------
    path : pathlib.Path
        The file.
    utts : dict
        From id to utterance.

    Example
    -------
    >>> write_csv(pathlib.Path("train.csv"), utts)  # doctest: +SKIP
    """
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["ID", "duration", "wav", "wav_format", "spk_id", "wrd"])
    for utt_id, utt in utts.items():
        wav = utt["wav"].replace("{data_root}", "$data_root")
        length, spk_id, words = utt["length"], utt["spk_id"], utt["words"]
        writer.writerow([utt_id, length, wav, "flac", spk_id, words])
    _write_text(path, table.getvalue())


def _write_text(path: pathlib.Path, text: str) -> None:
    """Writes all of a file or nothing."""
    with replacing(path) as partial:
        partial.write_text(text, "utf-8", newline="\n")


def _json_lines(utts: dict[str, dict]) -> str:
    """One json object, one utterance a line."""
    lines = (
        f"{json.dumps(utt_id)}: {json.dumps(utt, ensure_ascii=False)}"
        for utt_id, utt in utts.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _item_file(utts: dict[str, dict]) -> str:
    """ZeroSpeech triphones: from the phone before to the phone after."""
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for utt_id, utt in utts.items():
        for item in make_items(utt_id, utt["phones"], utt["spk_id"], True):
            lines.append(" ".join(map(str, item)))
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")
