"""Manifests, as the recipes write them.

Authors
 * speechbrain_vq authors 2026
"""

import json
import os
import pathlib


def read_manifest(
    path: str | os.PathLike, data_root: str | os.PathLike | None = None
) -> dict[str, dict]:
    """Reads a manifest as SpeechBrain's ``DynamicItemDataset`` does: json,
    with ``wav``, ``length``, and where known ``spk_id``, ``gender``, ``words``
    and ``phones`` (start, end, name).

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
        return {
            name: {
                **entry,
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


def _root(folder):
    corpus = folder / "corpus.json"
    said = json.loads(corpus.read_text("utf-8")) if corpus.is_file() else {}
    return folder / said.get("data_root", ".")


def _filled(text, root):
    text = text.replace("{data_root}", str(root))
    return text.replace("{{", "{").replace("}}", "}")
