"""Manifests, as the recipes write them."""

import json
import math
import os
import pathlib


def read_manifest(
    path: str | os.PathLike, data_root: str | os.PathLike | None = None
) -> dict[str, dict]:
    """Reads a manifest as SpeechBrain's ``DynamicItemDataset`` does: json,
    with ``wav``, ``length``, and where known ``spk_id``, ``gender``, ``words``
    and ``phones`` (start, end, name) in order of time. Numbers that name a
    speaker become text.

    Arguments
    ---------
    path : path
        The manifest.
    data_root : path, optional
        For ``{data_root}``; by default what ``corpus.json`` beside the
        manifest says, or else the manifest's folder.

    Returns
    -------
    dict
        From name to entry.

    Raises
    ------
    ValueError
        If it is no such manifest.
    """
    path = pathlib.Path(path)
    try:
        entries = json.loads(path.read_text("utf-8"))
        root = data_root or _root(path.parent)
        found = {
            name: {
                **entry,
                **_texts(entry),
                "wav": _filled(entry["wav"], root),
                "phones": [
                    (start, end, _filled(phone, root))
                    for start, end, phone in entry.get("phones") or ()
                ],
            }
            for name, entry in entries.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: no manifest: a json object is wanted, of entries with a "
            f'"wav" each, and maybe "phones" of [start, end, name] ({error!r}).'
        ) from error
    for name, entry in found.items():
        _check_phones(path, name, entry["phones"])
    return found


def _texts(entry):
    """Names, of which some are numbers in other people's json."""
    names = {key: entry.get(key) for key in ("spk_id", "gender")}
    return {key: str(it) for key, it in names.items() if it is not None}


def _check_phones(path, name, phones):
    before = (0.0, 0.0)
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
        if times[0] < before[0] or times[1] < before[1]:
            raise ValueError(
                f"{where}: it is from {times[0]} to {times[1]} s, after one "
                f"from {before[0]} to {before[1]} s. Sort the phones by time."
            )
        before = times


def _root(folder):
    corpus = folder / "corpus.json"
    said = json.loads(corpus.read_text("utf-8")) if corpus.is_file() else {}
    return folder / said.get("data_root", ".")


def _filled(text, root):
    text = text.replace("{data_root}", str(root))
    return text.replace("{{", "{").replace("}}", "}")
