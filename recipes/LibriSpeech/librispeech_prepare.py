"""Data preparation: LibriSpeech, from its folders or through ``datasets``.

The corpus has no phones: they come from a lexicon, or from a function.

Authors
 * speechbrain_vq authors 2026
"""

import hashlib
import logging
import os
import pathlib
import re
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from speechbrain_vq.dataio.check import AudioError, check_audio
from speechbrain_vq.recipes.common.lexicon import Pronouncer
from speechbrain_vq.recipes.MiniSpeech.manifests import (
    FORMAT_VERSION,
    PathLike,
    is_done,
    utterance,
    write_corpus,
)

logger = logging.getLogger(__name__)

# Configuration and split of openslr/librispeech_asr on the Hub.
ON_THE_HUB = {
    "train-clean-100": ("clean", "train.100"),
    "train-clean-360": ("clean", "train.360"),
    "train-other-500": ("other", "train.500"),
    "dev-clean": ("clean", "validation"),
    "dev-other": ("other", "validation"),
    "test-clean": ("clean", "test"),
    "test-other": ("other", "test"),
}
HOW_TO_GET = (
    "The archives are at https://www.openslr.org/12; "
    "--data_folder=openslr/librispeech_asr takes them from the Hub"
)


def prepare(
    data_folder: PathLike,
    save_folder: PathLike,
    lexicon: PathLike | None = None,
    g2p: str | None = None,
    train: Iterable[str] = ("train-clean-100",),
    valid: Iterable[str] = ("dev-clean",),
    test: Iterable[str] = ("test-clean",),
) -> pathlib.Path:
    """Writes manifests for LibriSpeech.

    Arguments
    ---------
    data_folder : path or str
        The folder LibriSpeech, or the one that it is in; or what ``datasets``
        loads: ``openslr/librispeech_asr``, or a folder with a copy of it, whose
        audio is then written to save_folder, as it is.
    save_folder : path
        Where the manifests go.
    lexicon : path, optional
        A file in the format of CMUdict, such as librispeech-lexicon.txt.
    g2p : str, optional
        ``module:function`` for words that the lexicon lacks; without one,
        their utterances are left out, and counted.
    train, valid, test : iterable of str
        The parts of the corpus for each, such as ``train-clean-100``.

    Returns
    -------
    save_folder : pathlib.Path
        The folder of the manifests.

    Raises
    ------
    FileNotFoundError
        If a part is missing.
    ValueError
        If a part is unknown, or there is neither a lexicon nor a g2p.

    Example
    -------
    >>> prepare(  # doctest: +SKIP
    ...     "LibriSpeech", "prepared", "librispeech-lexicon.txt"
    ... )
    PosixPath('prepared')
    """
    folder = pathlib.Path(save_folder)
    wanted = {"train": [*train], "valid": [*valid], "test": [*test]}
    for part in sum(wanted.values(), []):
        if part not in ON_THE_HUB:
            raise ValueError(
                f"LibriSpeech has no part {part!r}, but "
                f"{', '.join(ON_THE_HUB)}."
            )
    pronouncer = Pronouncer(lexicon, g2p)
    root = _find_root(pathlib.Path(data_folder), wanted)
    corpus = {
        "corpus": "librispeech",
        "version": FORMAT_VERSION,
        "parts": wanted,
        **pronouncer.about,
        # What the Hub has does not change.
        "source": str(data_folder) if root is None else _digest(root, wanted),
        "data_root": "." if root is None else str(root.resolve()),
    }
    if is_done(folder, corpus):
        return folder
    utts: dict[str, dict] = {split: {} for split in wanted}
    for split, parts in wanted.items():
        for part in parts:
            if root is None:
                found = _fetch(str(data_folder), part, folder)
            else:
                found = _walk(root, part)
            utts[split].update(_read(root or folder, found, pronouncer))
        if not utts[split]:
            pronouncer.tell("LibriSpeech")
            raise ValueError(
                f"{data_folder}: no utterance of {', '.join(parts)} is left "
                f"for {split}."
            )
    pronouncer.tell("LibriSpeech")
    write_corpus(folder, utts, corpus)
    return folder


def _find_root(
    source: pathlib.Path, wanted: dict[str, list[str]]
) -> pathlib.Path | None:
    """The folder of the parts; None if it is for ``datasets`` to load."""
    parts = sum(wanted.values(), [])
    for root in (source, source / "LibriSpeech"):
        there = [part for part in parts if (root / part).is_dir()]
        if there:
            missing = sorted(set(parts) - set(there))
            if missing:
                raise FileNotFoundError(
                    f"{root} lacks {', '.join(missing)}. {HOW_TO_GET}."
                )
            return root
    if source.is_dir():
        if next(source.rglob("*.parquet"), None) is not None:
            return None
        holds = sorted(path.name for path in source.glob("*"))[:5]
        raise FileNotFoundError(
            f"{source} holds {', '.join(holds) or 'nothing'}; wanted are "
            f"folders such as {parts[0]}. {HOW_TO_GET}."
        )
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", source.as_posix()):
        raise FileNotFoundError(f"There is no folder {source}. {HOW_TO_GET}.")
    return None


def _digest(root: pathlib.Path, wanted: dict[str, list[str]]) -> str:
    sha = hashlib.sha1()
    for part in sorted(sum(wanted.values(), [])):
        for path in sorted((root / part).rglob("*.*")):
            sha.update(f"{path.name} {path.stat().st_size}\n".encode())
    return sha.hexdigest()


def _walk(
    root: pathlib.Path, part: str
) -> Iterator[tuple[str, pathlib.Path, str]]:
    """Name, audio and text of the utterances of a part: for the files of
    ``PART/SPEAKER/CHAPTER``, lines ``NAME TEXT``."""
    tables = sorted((root / part).glob("*/*/*.trans.txt"))
    if not tables:
        raise FileNotFoundError(
            f"{root / part} has no SPEAKER/CHAPTER/*.trans.txt. {HOW_TO_GET}."
        )
    for table in tqdm(tables, part, unit="chapter"):
        for line in table.read_text("utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            if name:
                yield name, table.with_name(f"{name}.flac"), text


def _fetch(
    source: str, part: str, folder: pathlib.Path
) -> Iterator[tuple[str, pathlib.Path, str]]:
    """The same, of what ``datasets`` loads; the audio is written as it is."""
    import datasets

    config, split = ON_THE_HUB[part]
    try:
        rows = datasets.load_dataset(
            source, config, split=split, streaming=True
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{source} cannot be loaded by `datasets` ({config}, {split}): "
            f"{error}. {HOW_TO_GET}, and local folders are read as well."
        ) from error
    # The bytes of the file: decoding them is soundfile's work.
    rows = rows.cast_column("audio", datasets.Audio(decode=False))
    audio = folder / "audio" / part
    audio.mkdir(parents=True, exist_ok=True)
    for row in tqdm(rows, part, unit="utt"):
        path = audio / f"{row['id']}.flac"
        data = row["audio"]["bytes"]
        if data is None:
            data = pathlib.Path(row["audio"]["path"]).read_bytes()
        if not path.exists() or path.stat().st_size != len(data):
            partial = path.with_suffix(".partial")
            partial.write_bytes(data)
            os.replace(partial, path)
        yield row["id"], path, row["text"]


def _read(
    root: pathlib.Path,
    found: Iterable[tuple[str, pathlib.Path, str]],
    pronouncer: Pronouncer,
) -> dict[str, dict]:
    utts, bad = {}, 0
    for name, path, text in found:
        try:
            length = check_audio(path)
        except AudioError as error:
            logger.warning("Left out %s", error)
            bad += 1
            continue
        phones = pronouncer(text)
        if phones:
            relative = path.relative_to(root).as_posix()
            speaker = name.split("-")[0]
            utts[name] = utterance(relative, length, speaker, "en", text)
            utts[name]["phone_names"] = phones
    if bad:
        logger.warning("%d files cannot be read: left out", bad)
    return utts
