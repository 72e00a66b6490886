"""Data preparation: festvox-ru, the Russian Festival voice in Debian and Ubuntu
(99 minutes of one reader at 16 kHz, with phone labels), from the package that
``apt-get download festvox-ru`` fetches, or from its unpacked files.
"""

import logging
import pathlib
import re
import tempfile

from speechbrain_vq.dataio.atomic import replace_folder
from speechbrain_vq.dataio.audio import check_audio
from speechbrain_vq.dataio.items import SILENCE
from speechbrain_vq.dataio.logs import few_warnings
from speechbrain_vq.dataio.manifests import (
    FORMAT_VERSION,
    PathLike,
    digest,
    folder_contents,
    given_manifests,
    is_done,
    sizes,
    utterance,
    write_corpus,
)
from speechbrain_vq.recipes.common.debian import how_to_get, unpack

logger = logging.getLogger(__name__)

VOICE = "msu_ru_nsh_clunits"
TEXTS = "etc/txt.done.data"
# Folder of the voice in the package.
INSTALLED = f"usr/share/festival/voices/russian/{VOICE}"
HOW_TO_GET = how_to_get("festvox-ru")
# Tolerated difference between the ends of recording and labels, in seconds. In
# the corpus, it is up to 14 ms, and the last label is a pause of 30 ms or more.
TOLERANCE = 0.02


def prepare(data_folder: PathLike, save_folder: PathLike) -> pathlib.Path:
    """Write manifests for festvox-ru, and return their folder.

    By a hash of their names, a tenth of the utterances is for validation and a
    tenth for testing. Pauses are labeled SIL.

    Arguments
    ---------
    data_folder : path
        The package ``festvox-ru_*.deb``, a folder with it, or a folder with the
        files unpacked from it. Or a folder with manifests of any corpus.
    save_folder : path
        Folder for the manifests, and for the unpacked files of a package.

    Raises
    ------
    FileNotFoundError
        If data_folder does not contain festvox-ru, or lacks a part of it.
    ValueError
        If the package is damaged, or a split would be empty.
    """
    source, folder = pathlib.Path(data_folder), pathlib.Path(save_folder)
    if given_manifests(source, folder):
        return source
    voice = find_voice(source, folder)
    inside = voice.parent == folder
    files = sorted([*voice.glob("lab/*.lab"), *voice.glob("wav/*.wav")])
    corpus = {
        "corpus": "festvox-ru",
        "version": FORMAT_VERSION,
        "source": digest([(voice / TEXTS).read_bytes(), *sizes(files)]),
        # Relative if the audio is inside, so that the folder can be moved.
        "data_root": voice.name if inside else str(voice.resolve()),
    }
    if is_done(folder, corpus):
        return folder
    utts: dict[str, dict] = {"train": {}, "valid": {}, "test": {}}
    with few_warnings(logger, maximum=10):
        for name, text in sorted(_read_texts(voice / TEXTS).items()):
            try:
                utts[_split(name)][name] = _read_utterance(voice, name, text)
            except (OSError, ValueError) as error:
                logger.warning("Left out %s: %s", name, error)
    if not all(utts.values()):
        numbers = ", ".join(str(len(part)) for part in utts.values())
        raise ValueError(
            f"{voice} holds too few utterances: train, valid and test would "
            f"get {numbers}."
        )
    write_corpus(folder, utts, corpus)
    return folder


def find_voice(source: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Find the folder with wav, lab and etc in the source. If the source is or
    contains a package, unpack it to ``folder``."""
    for voice in (source, source / VOICE, source / INSTALLED):
        if (voice / "wav").is_dir() or (voice / "lab").is_dir():
            _check_parts(voice)
            return voice
    package, voice = _find_package(source), folder / VOICE
    if not voice.is_dir():
        logger.info("Unpacking %s to %s", package, voice)
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            unpack(package, temporary)
            unpacked = pathlib.Path(temporary, INSTALLED)
            _check_parts(unpacked)
            replace_folder(unpacked, voice)
    return voice


def _find_package(source: pathlib.Path) -> pathlib.Path:
    if not source.exists():
        raise FileNotFoundError(
            f"There is neither a folder nor a package {source}. {HOW_TO_GET}."
        )
    if source.is_file():
        return source
    packages = sorted(source.glob("festvox-ru*.deb"))
    if not packages:
        raise FileNotFoundError(
            f"{source} is neither festvox-ru_*.deb, nor a folder that it is "
            f"in or was unpacked to (it holds {folder_contents(source)}). "
            f"{HOW_TO_GET}."
        )
    return packages[-1]


def _check_parts(voice: pathlib.Path) -> None:
    for part in ("wav", "lab", TEXTS):
        if not (voice / part).exists():
            raise FileNotFoundError(
                f"{voice} lacks {part}, which festvox-ru has: unpack the "
                f"package again; {HOW_TO_GET}."
            )


def _split(name: str) -> str:
    """Choose a split by a hash of the name, independent of other utterances."""
    tenth = int(digest([name.encode()]), 16) % 10
    return {0: "valid", 1: "test"}.get(tenth, "train")


# The files of the voice


def _read_texts(path: pathlib.Path) -> dict[str, str]:
    """Read lines like ``( ru_0001 "..." )``, without the + of stressed vowels."""
    texts = {}
    for line in path.read_text("utf-8").splitlines():
        match = re.match(r'\(\s*([\w-]+)\s+"(.*)"\s*\)\s*$', line)
        if match:
            texts[match[1]] = match[2].replace("+", "")
    return texts


def _read_utterance(voice: pathlib.Path, name: str, text: str) -> dict:
    length = check_audio(voice / f"wav/{name}.wav")
    phones = _read_labels(voice / f"lab/{name}.lab")
    if not phones or abs(phones[-1][1] - length) > TOLERANCE:
        raise ValueError(
            f"its recording lasts {length:.2f} s, its labels end elsewhere"
        )
    phones[-1][1] = min(phones[-1][1], length)
    return utterance(f"wav/{name}.wav", length, "nsh", "ru", text, phones)


def _read_labels(path: pathlib.Path) -> list[list]:
    """Read [start, end, phone] from lines of end time, color and phone."""
    _, _, body = path.read_text("utf-8").partition("#\n")
    phones, start = [], 0.0
    for line in body.splitlines():
        time, _, phone = line.split()
        end = float(time)
        if end <= start:
            raise ValueError(f"{path}: {line!r} ends before it starts.")
        name = SILENCE if phone == "pau" else phone
        phones.append([round(start, 4), round(end, 4), name])
        start = end
    return phones
