"""Data preparation: MiniSpeech, folders with tables of phones, or any audio.

MiniSpeech is an English corpus synthesized offline with espeak-ng: 24 voices,
exact phone boundaries, and the same bytes from the same seed. From each of these
sources, manifests are written (see ``speechbrain_vq.dataio.manifests``).

espeak-ng is GPL-3. The extra ``speechbrain-vq[demo]`` installs it, and only the
processes that synthesize the corpus load it.
"""

import argparse
import collections
import csv
import gzip
import importlib.util
import logging
import math
import os
import pathlib
import re
import sys
from collections.abc import Iterable, Iterator

from speechbrain_vq.dataio.atomic import atomic_folder
from speechbrain_vq.dataio.audio import find_audio, usable_files
from speechbrain_vq.dataio.manifests import (
    FORMAT_VERSION,
    MANIFESTS,
    SPLITS,
    PathLike,
    data_root,
    digest,
    duration,
    first_names,
    folder_contents,
    has_manifests,
    is_done,
    missing_folder,
    read_corpus,
    utterance,
    write_corpus,
)
from speechbrain_vq.recipes.MiniSpeech.espeak import VOICES, speak_all

__all__ = [
    "data_root",
    "prepare",
    "prepare_audio_folder",
    "prepare_minispeech",
    "prepare_shared",
]

logger = logging.getLogger(__name__)

UTTS, PHONES = "utts.tsv", "phones.tsv.gz"
# Fraction of an audio folder's files for validation, and for testing.
HELD_OUT = 0.05
# Folders for parts of a corpus, such as dev-clean, are not speakers.
_SUBSET = re.compile(
    r"(train|valid|val|dev|eval|test)([^a-z].*|ation|ing|)$", re.I
)
# Speaker at the start of a file name, unless that is a year.
_PREFIX = re.compile(r"(?!(?:19|20)\d\d)([A-Za-z0-9]+)[_-]")


def prepare(
    data_folder: PathLike,
    save_folder: PathLike,
    minutes: float = 30,
    seed: int = 1234,
    num_speakers: int = 24,
    languages: Iterable[str] | None = None,
    make_minispeech: bool = False,
) -> pathlib.Path:
    """Prepare the data in data_folder, and return the folder of its manifests.

    Arguments
    ---------
    data_folder : path
        A folder with manifests (used unchanged), a folder with ``utts.tsv``
        (see ``prepare_shared``), or a folder with audio files (see
        ``prepare_audio_folder``).
    save_folder : path
        Folder for the manifests if data_folder has none.
    minutes : float
        Minutes of MiniSpeech.
    seed : int
        Random seed of MiniSpeech, or of the splits of an audio folder.
    num_speakers : int
        Number of voices in MiniSpeech.
    languages : iterable of str, optional
        Languages to keep if there is ``utts.tsv``; all if None.
    make_minispeech : bool
        Whether to generate MiniSpeech in a data_folder that is empty or does
        not exist (see ``prepare_minispeech``).

    Raises
    ------
    FileNotFoundError
        If data_folder does not exist or has no usable data.
    """
    data_folder = pathlib.Path(data_folder)
    kind = recognize(data_folder, make_minispeech)
    if kind == "manifests":
        _warn_if_other_corpus(data_folder, minutes, seed, num_speakers)
        return data_folder
    if kind == "minispeech":
        return prepare_minispeech(data_folder, minutes, seed, num_speakers)
    if kind == "shared":
        return prepare_shared(data_folder, save_folder, languages)
    return prepare_audio_folder(data_folder, save_folder, seed)


def prepare_minispeech(
    data_folder: PathLike,
    minutes: float = 30,
    seed: int = 1234,
    num_speakers: int = 24,
    jobs: int | None = None,
) -> pathlib.Path:
    """Generate MiniSpeech, a synthetic English corpus with exact phone times, and
    return its folder.

    Every sixth voice is only in the test set. With any seed, no sentence is in
    two splits. Every voice speaks at least one sentence in each of its splits,
    so a very small corpus is longer than ``minutes``.

    Arguments
    ---------
    data_folder : path
        Folder for ``audio/<speaker>/<utt>.flac`` (16 kHz, mono, 16 bits), the
        manifests and ``phones.item``. It may be moved afterwards.
    minutes : float
        Total minutes of speech: 80 % train, 10 % valid, 10 % test.
    seed : int
        Random seed, which determines the bytes of the corpus.
    num_speakers : int
        Number of voices, from 2 to 24.
    jobs : int, optional
        Number of voices to synthesize in parallel, one per core if None. The
        bytes do not depend on it.

    Raises
    ------
    ImportError
        If espeakng-loader is not installed.
    ValueError
        If minutes or num_speakers is out of range.
    FileExistsError
        If the folder contains data that this function did not generate.
    """
    folder = pathlib.Path(data_folder)
    corpus = _minispeech(minutes, seed, num_speakers)
    if is_done(folder, corpus):
        return folder
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ImportError(
            'MiniSpeech requires espeak-ng: pip install "speechbrain-vq[demo]"'
        )
    names = {path.name for path in _visible(folder)}
    if names and read_corpus(folder).get("corpus") != "minispeech":
        raise FileExistsError(
            f"{folder / min(names)} was not created by MiniSpeech: use an "
            "empty folder"
        )
    with atomic_folder(folder / "audio") as audio:
        utts = speak_all(audio, minutes, seed, num_speakers, jobs)
        (folder / "corpus.json").unlink(missing_ok=True)
    write_corpus(folder, utts, corpus)
    return folder


def prepare_shared(
    shared_folder: PathLike,
    save_folder: PathLike,
    languages: Iterable[str] | None = None,
) -> pathlib.Path:
    """Write manifests for a folder of speech with tables of phones, and return
    save_folder.

    The folder has ``utts.tsv`` (columns utt, speaker, lang, seconds, split,
    text), optionally ``phones.tsv.gz`` (utt, start, end, phone), and
    ``audio/<speaker>/<utt>.ogg``. ``languages`` are those to keep; None: all."""
    source, folder = pathlib.Path(shared_folder), pathlib.Path(save_folder)
    if isinstance(languages, str):
        languages = [languages]
    tables = [source / UTTS, source / PHONES]
    if not tables[0].is_file():
        raise FileNotFoundError(f"{tables[0]} is missing.")
    corpus = {
        "corpus": "shared",
        "version": FORMAT_VERSION,
        "languages": sorted(set(languages)) if languages else None,
        "source": digest(t.read_bytes() for t in tables if t.is_file()),
        "data_root": str(source.resolve()),
    }
    if is_done(folder, corpus):
        return folder
    utts = _read_tables(source, corpus["languages"])
    write_corpus(folder, utts, corpus)
    return folder


def prepare_audio_folder(
    audio_folder: PathLike,
    save_folder: PathLike,
    seed: int = 1234,
) -> pathlib.Path:
    """Write manifests without phones for all audio below a folder, and return
    save_folder.

    A twentieth of the files, rounded up, is for validation. With three or more
    speakers, some that together have at least a twentieth of the files are only
    in the test set; with fewer, a twentieth of the files is. Speakers are the
    subfolders, or else the file names up to the first ``_`` or ``-``. Files
    that cannot be read completely are skipped with a warning.

    Arguments
    ---------
    audio_folder : path
        Folder to search recursively for audio files in any format that
        libsndfile reads, with any sampling rate and number of channels.
    save_folder : path
        Folder for the manifests.
    seed : int
        Random seed of the splits.

    Raises
    ------
    ValueError
        If no usable file is left for training.
    """
    source, folder = pathlib.Path(audio_folder), pathlib.Path(save_folder)
    paths = _audio_files(source)
    corpus = {
        "corpus": "audio",
        "version": FORMAT_VERSION,
        "seed": seed,
        "fractions": [HELD_OUT, HELD_OUT],
        "speakers": "held out",
        "source": digest(
            os.fsencode(f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}\n")
            for p in paths
            if p.exists()
        ),
        "data_root": str(source.resolve()),
    }
    if is_done(folder, corpus, ignoring=("speakers_from",)):
        return folder
    other = sorted(_visible_files(source) - set(paths))
    if other:
        logger.info("Left out, as they are no audio: %s", first_names(other))
    entries, origin = _read_audio(source, paths)
    utts = _split(entries, seed, source)
    logger.info("%s", describe(utts, origin))
    write_corpus(folder, utts, {**corpus, "speakers_from": origin})
    return folder


def recognize(folder: pathlib.Path, make_minispeech: bool = False) -> str:
    """Return the kind of data in a folder: "manifests", "minispeech", "shared" or
    "audio". Raises FileNotFoundError if there is none."""
    if folder.exists() and not folder.is_dir():
        raise FileNotFoundError(f"{folder} is a file; pass a folder.")
    if make_minispeech and not _visible(folder):
        return "minispeech"
    if not folder.exists():
        raise FileNotFoundError(
            f"{missing_folder(folder)} Name a folder of recordings, or add "
            "--make_minispeech to generate a synthetic corpus there."
        )
    if has_manifests(folder):
        return "manifests"
    if (folder / UTTS).is_file():
        return "shared"
    if _audio_files(folder):
        return "audio"
    raise FileNotFoundError(
        f"{folder} holds {folder_contents(folder)}; "
        f"expected the manifests {', '.join(MANIFESTS)}, or utts.tsv, or "
        f"audio files (wav, flac, ogg, mp3 ...)"
    )


def _minispeech(minutes: float, seed: int, num_speakers: int) -> dict:
    """Check the parameters of MiniSpeech, and return its ``corpus.json``."""
    if not (minutes > 0 and math.isfinite(minutes)):
        raise ValueError(f"minutes must be above 0, got {minutes}")
    if not 2 <= num_speakers <= len(VOICES):
        raise ValueError(
            f"num_speakers must be from 2 (one is kept for test) to "
            f"{len(VOICES)}, got {num_speakers}"
        )
    return {
        "corpus": "minispeech",
        "version": FORMAT_VERSION,
        "minutes": float(minutes),
        "seed": int(seed),
        "num_speakers": int(num_speakers),
        "data_root": ".",
    }


def _warn_if_other_corpus(
    folder: pathlib.Path, minutes: float, seed: int, num_speakers: int
) -> None:
    """Warn if the folder holds MiniSpeech with other parameters."""
    corpus = read_corpus(folder)
    given = {"minutes": minutes, "seed": seed, "num_speakers": num_speakers}
    used = {key: corpus.get(key) for key in given}
    if corpus.get("corpus") == "minispeech" and used != given:
        logger.warning(
            "%s holds MiniSpeech created with %s; it is used unchanged",
            *(folder, used),
        )


def _visible(folder: pathlib.Path) -> list[pathlib.Path]:
    """List the files and folders in a folder, without hidden ones."""
    return [p for p in folder.glob("*") if not p.name.startswith(".")]


# Folders with utts.tsv, phones.tsv.gz and audio


def _read_tables(
    source: pathlib.Path, languages: list[str] | None
) -> dict[str, dict]:
    """Read the utterances of each split from the tables."""
    rows = list(_tsv(source / UTTS))
    if languages:
        rows = [row for row in rows if row["lang"] in languages]
    phones = collections.defaultdict(list)
    if (source / PHONES).is_file():
        for row in _tsv(source / PHONES):
            phones[row["utt"]].append(
                [float(row["start"]), float(row["end"]), row["phone"]]
            )
    names = [f"audio/{row['speaker']}/{row['utt']}.ogg" for row in rows]
    lengths = usable_files(source / name for name in names)
    utts = {split: {} for split in SPLITS}
    for row, relative in zip(rows, names, strict=True):
        if source / relative not in lengths:
            continue
        utts[row["split"]][row["utt"]] = utterance(
            relative,
            float(row["seconds"]),
            row["speaker"],
            row["lang"],
            row["text"],
            phones[row["utt"]],
        )
    if not any(utts.values()):
        raise FileNotFoundError(
            f"{source} has no audio for its utts.tsv"
            + (f" in {', '.join(languages)}" if languages else "")
        )
    return utts


def _tsv(path: pathlib.Path) -> Iterator[dict[str, str]]:
    """Read the rows of a table without quoting, which may be gzipped."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)


# Folders of audio


def _audio_files(folder: pathlib.Path) -> list[pathlib.Path]:
    if not folder.is_dir():
        return []
    try:
        return sorted(find_audio([folder]))
    except FileNotFoundError:
        return []


def _visible_files(folder: pathlib.Path) -> set[pathlib.Path]:
    return {
        path
        for path in folder.rglob("*")
        if path.is_file()
        and not any(
            name.startswith(".") for name in path.relative_to(folder).parts
        )
    }


def _read_audio(
    source: pathlib.Path, paths: list[pathlib.Path]
) -> tuple[dict[str, dict], str]:
    """Return the entries of completely readable files, and what was used as
    their speakers (see ``find_speakers``)."""
    usable = usable_files(paths)
    lengths = {path.relative_to(source): s for path, s in usable.items()}
    speakers, origin = find_speakers(list(lengths), source.resolve().name)
    utts = {}
    for path, length in lengths.items():
        utt_id = _as_text("-".join(path.with_suffix("").parts))
        while utt_id in utts:
            utt_id += "_"
        utts[utt_id] = utterance(
            path.as_posix(), length, _as_text(speakers[path])
        )
    return utts, origin


def _as_text(name: str) -> str:
    """Escape the bytes of a file name that are not valid UTF-8."""
    return os.fsencode(name).decode(errors="backslashreplace")


def find_speakers(
    paths: list[pathlib.Path], default: str
) -> tuple[dict[pathlib.Path, str], str]:
    """Infer the speaker of each recording from its path below the folder, or
    use ``default``. Also returns what was used as speakers, or "" if nothing.

    >>> paths = [pathlib.Path(f"{who}_{n}.wav") for who in "ab" for n in "12"]
    >>> find_speakers(paths, "me")[1]
    'beginnings of file names'
    """
    for depth in range(max((len(p.parts) for p in paths), default=0) - 1):
        folders = {
            path: path.parts[depth] if len(path.parts) > depth + 1 else default
            for path in paths
        }
        are_subsets = all(_SUBSET.match(name) for name in folders.values())
        if _are_speakers(folders) and not are_subsets:
            return folders, "subfolders"
    matches = {path: _PREFIX.match(path.name) for path in paths}
    if all(matches.values()):
        prefixes = {path: match[1] for path, match in matches.items()}
        if _are_speakers(prefixes):
            return prefixes, "beginnings of file names"
    return dict.fromkeys(paths, default), ""


def _are_speakers(names: dict[pathlib.Path, str]) -> bool:
    """Return whether there are several names, with an average of at least two
    files each."""
    return 1 < len(set(names.values())) <= len(names) / 2


def _split(
    utts: dict[str, dict], seed: int, source: pathlib.Path
) -> dict[str, dict]:
    """Split by a hash of the path, so that the order of files does not matter."""
    if not utts:
        raise ValueError(f"no readable audio file in {source}")

    def shuffled(names, key=str):
        return sorted(
            names, key=lambda n: digest([os.fsencode(f"{seed} {key(n)}")])
        )

    part = math.ceil(HELD_OUT * len(utts))
    order = shuffled(utts, lambda name: utts[name]["wav"])
    sizes = collections.Counter(utt["spk_id"] for utt in utts.values())
    unseen = _held_out(shuffled(sizes), sizes, part)
    test = [u for u in order if utts[u]["spk_id"] in unseen]
    seen = [u for u in order if utts[u]["spk_id"] not in unseen]
    if not unseen:
        test, seen = seen[part : 2 * part], seen[:part] + seen[2 * part :]
    # With a single file, the speaker encoder has no variance to normalize by.
    if len(seen) - part < 2:
        raise ValueError(
            f"{source} has too few readable audio files, {len(order)}: at least "
            f"2 are needed for training, besides {part} for validation and "
            f"{max(len(test), 1)} for the test. Add files, or cut long ones "
            "into pieces."
        )
    split_of = {
        **dict.fromkeys(seen, "train"),
        **dict.fromkeys(seen[:part], "valid"),
        **dict.fromkeys(test, "test"),
    }
    return {
        split: {u: utt for u, utt in utts.items() if split_of[u] == split}
        for split in SPLITS
    }


def _held_out(speakers: list[str], sizes: dict[str, int], part: int) -> set:
    """Choose test-only speakers with ``part`` to about twice as many files."""
    if len(speakers) < 3:
        return set()
    chosen = []
    for name in speakers:
        count = sum(sizes[s] for s in chosen)
        if count < part and count + sizes[name] <= 2 * part:
            chosen.append(name)
    # If every speaker has more files, choose the one with the fewest.
    return set(chosen or [min(speakers, key=lambda name: sizes[name])])


def describe(utts: dict[str, dict], origin: str) -> str:
    """Describe the recordings of a folder, their speakers and the split."""
    by_split = {
        split: sorted({utt["spk_id"] for utt in part.values()})
        for split, part in utts.items()
    }
    names = sorted(set().union(*by_split.values()))
    seconds = sum(u["length"] for p in utts.values() for u in p.values())
    text = f"{duration(seconds)} in {sum(map(len, utts.values()))} files"
    if not origin:
        return f"{text}, taken for one speaker."
    text += f" of {len(names)} speakers (the {origin}: {first_names(names)})"
    unseen = sorted(set(by_split["test"]) - set(by_split["train"]))
    if unseen:
        return f"{text}; test on unseen speakers: {first_names(unseen)}."
    return f"{text}; too few to hold one out, so the test has the same ones."


def main() -> None:
    """Generate MiniSpeech from the command line."""
    parser = argparse.ArgumentParser(
        description="Generate MiniSpeech, a synthetic corpus of English speech."
    )
    parser.add_argument("data_folder", help="Folder of the corpus.")
    about = "Length of the corpus in minutes (default: %(default)g)."
    parser.add_argument("--minutes", type=float, default=30.0, help=about)
    options = parser.parse_args()
    try:
        prepare_minispeech(options.data_folder, options.minutes)
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
