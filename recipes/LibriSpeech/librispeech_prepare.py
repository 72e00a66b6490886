"""Data preparation: LibriSpeech, from its folders or through ``datasets``.

The corpus has no phones. A lexicon or a function can provide them.
"""

import itertools
import logging
import pathlib
from collections.abc import Iterable, Iterator

from tqdm import tqdm

from speechbrain_vq.dataio.audio import usable_files
from speechbrain_vq.dataio.logs import few_warnings
from speechbrain_vq.dataio.manifests import (
    FORMAT_VERSION,
    PathLike,
    digest,
    folder_contents,
    given_manifests,
    is_done,
    missing_folder,
    sizes,
    utterance,
    write_corpus,
)
from speechbrain_vq.recipes.common.lexicon import Pronouncer
from speechbrain_vq.recipes.LibriSpeech.librispeech_stream import (
    HOW_TO_GET,
    HUB_NAME,
    ON_THE_HUB,
    stream,
)

logger = logging.getLogger(__name__)


def prepare(
    data_folder: PathLike,
    save_folder: PathLike,
    lexicon: PathLike | None = None,
    g2p: str | None = None,
    train: Iterable[str] = ("train-clean-100",),
    valid: Iterable[str] = ("dev-clean",),
    test: Iterable[str] = ("test-clean",),
    phones: bool = True,
    hours: float | None = None,
    valid_hours: float | None = None,
) -> pathlib.Path:
    """Write manifests for LibriSpeech, and return their folder.

    Arguments
    ---------
    data_folder : path or str
        The folder LibriSpeech, or its parent. Or a source for ``datasets``:
        ``openslr/librispeech_asr``, or a folder with a copy of it. Its audio is
        then written unchanged to save_folder, continuing from an earlier call.
        Or a folder with manifests of any corpus.
    save_folder : path
        Folder for the manifests.
    lexicon : path, optional
        A file in the format of CMUdict, such as librispeech-lexicon.txt.
    g2p : str, optional
        ``module:function`` for words not in the lexicon. By default, utterances
        with such words are skipped, with a warning that counts them.
    train, valid, test : iterable of str
        Parts of the corpus in each split, such as ``train-clean-100``.
    phones : bool
        Whether to convert texts to phones; otherwise no lexicon is needed.
    hours, valid_hours : float, optional
        Hours to use from the start of each part, for training and for the other
        two splits. No more is downloaded. None: all.

    Raises
    ------
    FileNotFoundError
        If the folder or a part is missing, or cannot be loaded.
    ValueError
        If a part is unknown, the hours are not positive numbers, or ``phones``
        is true without a lexicon or a g2p.
    """
    folder = pathlib.Path(save_folder)
    if given_manifests(pathlib.Path(data_folder), folder):
        return pathlib.Path(data_folder)
    parts = {"train": [*train], "valid": [*valid], "test": [*test]}
    names = sum(parts.values(), [])
    for part in names:
        if names.count(part) > 1:
            raise ValueError(f"The part {part!r} must be in one split only.")
        if part not in ON_THE_HUB:
            raise ValueError(
                f"LibriSpeech has no part {part!r}, only "
                f"{', '.join(ON_THE_HUB)}."
            )
    for number in (hours, valid_hours):
        is_number = isinstance(number, int | float) and number > 0
        if number is not None and not is_number:
            raise ValueError(
                f"hours and valid_hours must be numbers above 0, got "
                f"{number!r}."
            )
    max_hours = {"train": hours, "valid": valid_hours, "test": valid_hours}
    pronouncer = Pronouncer(lexicon, g2p) if phones else None
    names.sort()
    root = _find_root(pathlib.Path(data_folder), names)
    # The data set on the Hub does not change, so its name is enough.
    version = str(data_folder)
    if root is not None:
        files = (sorted((root / name).rglob("*.*")) for name in names)
        version = digest(sizes(itertools.chain(*files)))
    corpus = {
        "corpus": "librispeech",
        "version": FORMAT_VERSION,
        "parts": parts,
        "hours": max_hours,
        **(pronouncer.about if phones else {}),
        "source": version,
        "data_root": "." if root is None else str(root.resolve()),
    }
    if is_done(folder, corpus):
        return folder
    utts: dict[str, dict] = {split: {} for split in parts}
    for split, names in parts.items():
        for part in names:
            if root is None:
                utterances = stream(str(data_folder), part, folder)
            else:
                utterances = _walk(root, part)
            utts[split] |= _read(
                root or folder, utterances, pronouncer, max_hours[split]
            )
    if phones:
        pronouncer.log_unknown("LibriSpeech")
    for split, names in parts.items():
        if not utts[split]:
            raise ValueError(
                f"{data_folder}: no utterance of {', '.join(names)} is left "
                f"for {split}."
            )
    write_corpus(folder, utts, corpus)
    return folder


def _find_root(source: pathlib.Path, parts: list[str]) -> pathlib.Path | None:
    """Find the folder of the parts, or return None if ``datasets`` loads them."""
    for root in (source, source / "LibriSpeech"):
        present = [part for part in parts if (root / part).is_dir()]
        if present:
            missing = sorted(set(parts) - set(present))
            if missing:
                raise FileNotFoundError(
                    f"{root} lacks {', '.join(missing)}. {HOW_TO_GET}."
                )
            return root
    if source.is_dir():
        if next(source.rglob("*.parquet"), None) is not None:
            return None
        raise FileNotFoundError(
            f"{source} holds {folder_contents(source)}; expected "
            f"folders such as {parts[0]}. {HOW_TO_GET}."
        )
    if source.as_posix() != HUB_NAME:
        raise FileNotFoundError(f"{missing_folder(source)} {HOW_TO_GET}.")
    return None


def _walk(
    root: pathlib.Path, part: str
) -> Iterator[tuple[str, pathlib.Path, str]]:
    """Yield name, audio path and text of each utterance of a part."""
    tables = sorted((root / part).glob("*/*/*.trans.txt"))
    if not tables:
        raise FileNotFoundError(
            f"{root / part} has no SPEAKER/CHAPTER/*.trans.txt. {HOW_TO_GET}."
        )
    for table in tqdm(tables, part, unit="chapter", disable=None):
        for line in table.read_text("utf-8").splitlines():
            name, _, text = line.strip().partition(" ")
            if name:
                yield name, table.with_name(f"{name}.flac"), text


@few_warnings(logger, maximum=10)
def _read(
    root: pathlib.Path,
    utterances: Iterable[tuple[str, pathlib.Path, str]],
    pronouncer: Pronouncer | None,
    hours: float | None,
) -> dict[str, dict]:
    utts, lengths, seconds = {}, {}, 0.0
    if hours is None:
        utterances = list(utterances)
        lengths = usable_files(path for _, path, _ in utterances)
    for name, path, text in utterances:
        # With a limit, files are checked one by one, up to the limit.
        if hours is not None:
            lengths |= usable_files([path])
        if path not in lengths:
            continue
        phones = pronouncer(text) if pronouncer else None
        if pronouncer and not phones:
            continue
        relative = path.relative_to(root).as_posix()
        speaker = name.split("-")[0]
        utts[name] = utterance(relative, lengths[path], speaker, "en", text)
        if phones:
            utts[name]["phone_names"] = phones
        seconds += lengths[path]
        if hours is not None and seconds >= 3600 * hours:
            break
    return utts
