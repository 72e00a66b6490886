"""Data preparation: MiniSpeech, any folder laid out alike, any audio.

MiniSpeech is a corpus of English made offline with espeak-ng: 24 voices, exact
phone boundaries, the same bytes from the same seed. Whatever the source, what
comes out is a folder with SpeechBrain manifests (``train.json``,
``valid.json``, ``test.json``), a ZeroSpeech item file of the test set
(``phones.item``) where phones are known, and ``corpus.json``, written last,
which says what was made and where the audio lies (``data_root``).

>>> folder = prepare("data", "results/prepared")  # doctest: +SKIP
>>> root = data_root(folder)  # doctest: +SKIP
>>> train = DynamicItemDataset.from_json(  # doctest: +SKIP
...     folder / "train.json", replacements={"data_root": root}
... )

espeak-ng is GPL-3: it comes with the extra ``speechbrain-vq[demo]`` and is
loaded only by the processes that speak the corpus.

Authors
 * speechbrain_vq authors 2026
"""

import collections
import csv
import ctypes
import functools
import gzip
import hashlib
import importlib.util
import io
import itertools
import json
import logging
import math
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import soundfile as sf
from tqdm import tqdm

from speechbrain_vq.dataio.check import AudioError, check_audio

logger = logging.getLogger(__name__)

PathLike = str | os.PathLike
SPLITS = ("train", "valid", "test")
MANIFESTS = tuple(f"{split}.json" for split in SPLITS)
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")
FORMAT_VERSION = 1
SILENCE = "SIL"
SAMPLE_RATE = 16000

# espeak-ng variants, chosen far from each other in sound, and their words per
# minute. None has an echo: it would sound on through the closures of stops.
VOICES = {
    "m3": 160,
    "steph": 165,
    "david": 150,
    "anika": 160,
    "AnxiousAndy": 170,
    "grandma": 155,
    "kaukovalta": 165,
    "belinda": 160,
    "Jacky": 160,
    "Andrea": 170,
    "iven": 150,
    "f1": 165,
    "norbert": 160,
    "Nguyen": 165,
    "Gene2": 165,
    "shelby": 155,
    "klatt": 150,
    "Hugo": 165,
    "marcelo": 160,
    "edward": 155,
    "travis": 165,
    "antonio": 160,
    "ian": 150,
    "sandro": 170,
}
SHARES = {"train": 0.8, "valid": 0.1, "test": 0.1}

# Chosen so that together they hold every phone of American English.
WORDS = {
    "det": "the this that every some my your their our another one".split(),
    "adj": "old yellow quiet huge joyful young shiny thick rare cheap weird"
    " bright smooth loyal vague genuine royal cautious healthy purple wooden"
    " unusual fuzzy northern poor".split(),
    "noun": "church oyster measure vision judge teacher bird garage village"
    " mouth father king boy woman horse elephant island engine jungle sailor"
    " treasure kitchen author cousin feather monkey tailor butcher zebra"
    " window thing choir pilot cow".split(),
    "verb": "watched enjoyed measured touched followed painted chose thanked"
    " bought visited heard carried admired finished changed avoided"
    " recognized loathed pushed hugged found taught ignored washed".split(),
    "tail": "near the harbor|with great pleasure|before lunch|on Thursday"
    "|behind the old barn|without a sound|for the third time|at the beach"
    "|during the voyage|in July|under the bridge|again and again"
    "|as usual|beyond the valley".split("|"),
}
TEMPLATES = (
    "<det> <adj> <noun> <verb> <det> <noun> <tail>.",
    "<det> <noun> <verb> <det> <adj> <noun>.",
    "<tail>, <det> <noun> <verb> <det> <noun>.",
    "<det> <noun> and <det> <adj> <noun> <verb> <det> <noun> <tail>.",
    "who <verb> <det> <adj> <noun> <tail>?",
)

# Phones that espeak-ng announces at their burst, not at their closure.
STOPS = frozenset("p t k b d g tS dZ t# D T f h ? p# t2 k2".split())


def prepare(
    data_folder: PathLike,
    save_folder: PathLike,
    corpus: str = "auto",
    minutes: float = 30,
    seed: int = 1234,
    num_speakers: int = 24,
    languages: Iterable[str] | None = None,
    skip_prep: bool = False,
) -> pathlib.Path:
    """Prepares whatever data_folder holds; the recipe's one entry.

    Arguments
    ---------
    data_folder : path
        A folder with manifests (used as it is), a folder with ``utts.tsv``
        (see ``prepare_shared``), a folder with audio files (see
        ``prepare_audio_folder``), or an empty or absent one, in which
        MiniSpeech is made (see ``prepare_minispeech``).
    save_folder : path
        Where the manifests go when data_folder holds none.
    corpus : str
        "auto" looks at the folder; "manifests", "minispeech", "shared" and
        "audio" say what it must be.
    minutes : float
        Of MiniSpeech.
    seed : int
        Of MiniSpeech, or of the splits of an audio folder.
    num_speakers : int
        Of MiniSpeech.
    languages : iterable of str, optional
        Languages to keep of a folder with ``utts.tsv``; all if None.
    skip_prep : bool
        Whether to take the preparation as done.

    Returns
    -------
    folder : pathlib.Path
        The folder that holds the manifests.

    Raises
    ------
    ValueError
        If corpus is no known name.
    FileNotFoundError
        If data_folder holds nothing usable.

    Example
    -------
    >>> prepare("my_recordings", "prepared")  # doctest: +SKIP
    PosixPath('prepared')
    """
    data_folder = pathlib.Path(data_folder)
    found = _recognise(data_folder) if corpus == "auto" else corpus
    if found == "manifests":
        _require_manifests(data_folder)
        _warn_if_other_corpus(data_folder, minutes, seed, num_speakers)
        return data_folder
    if found == "minispeech":
        return prepare_minispeech(
            data_folder, minutes, seed, num_speakers, skip_prep
        )
    if found not in ("shared", "audio"):
        raise ValueError(
            f"corpus is {corpus!r}; it must be 'auto', 'manifests', "
            "'minispeech', 'shared' or 'audio'"
        )
    if skip_prep:
        return pathlib.Path(save_folder)
    if found == "shared":
        return prepare_shared(data_folder, save_folder, languages)
    return prepare_audio_folder(data_folder, save_folder, seed)


def prepare_minispeech(
    data_folder: PathLike,
    minutes: float = 30,
    seed: int = 1234,
    num_speakers: int = 24,
    skip_prep: bool = False,
    jobs: int | None = None,
) -> pathlib.Path:
    """Makes MiniSpeech, a synthetic English corpus with exact phone times.

    One voice in six is heard in the test set only; no sentence is in two
    splits, whatever the seed. Every voice says at least one sentence in each
    of its splits, so that very small corpora come out longer than asked.

    Arguments
    ---------
    data_folder : path
        Where ``audio/<speaker>/<utt>.flac`` (16 kHz, mono, 16 bits), the
        manifests (json and csv) and ``phones.item`` go. The folder may be
        moved afterwards.
    minutes : float
        Of speech, in all: 80 % train, 10 % valid, 10 % test.
    seed : int
        The same seed gives the same bytes.
    num_speakers : int
        From 2 to 24.
    skip_prep : bool
        Whether to take the preparation as done.
    jobs : int, optional
        Voices to synthesise at a time, one per core if None. The bytes do not
        depend on it.

    Returns
    -------
    data_folder : pathlib.Path
        The same folder.

    Raises
    ------
    ImportError
        If espeakng-loader is not installed.
    ValueError
        If minutes or num_speakers is out of range.
    FileExistsError
        If the folder holds data that this function did not make.

    Example
    -------
    >>> folder = prepare_minispeech("minispeech")  # doctest: +SKIP
    """
    folder = pathlib.Path(data_folder)
    if skip_prep:
        return folder
    corpus = _minispeech(minutes, seed, num_speakers)
    if _is_done(folder, corpus):
        return folder
    if importlib.util.find_spec("espeakng_loader") is None:
        raise ImportError(
            "MiniSpeech is spoken by espeak-ng: "
            'pip install "speechbrain-vq[demo]"'
        )
    _refuse_foreign(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _remove_partial(folder)
    # The audio of a killed run stays in a folder of another name.
    partial = pathlib.Path(tempfile.mkdtemp(prefix=".minispeech-", dir=folder))
    utts = _speak_all(corpus, partial / "audio", jobs)
    (folder / "corpus.json").unlink(missing_ok=True)
    shutil.rmtree(folder / "audio", ignore_errors=True)
    os.replace(partial / "audio", folder / "audio")
    for split in SPLITS:
        _write_csv(folder / f"{split}.csv", utts[split])
    _write_corpus(folder, utts, corpus)
    _remove_partial(folder)
    return folder


def prepare_shared(
    shared_folder: PathLike,
    save_folder: PathLike,
    languages: Iterable[str] | None = None,
) -> pathlib.Path:
    """Writes manifests for a folder of speech with tables of phones.

    Arguments
    ---------
    shared_folder : path
        Holds ``utts.tsv`` (with columns utt, speaker, lang, seconds, split,
        text), ``phones.tsv.gz`` (utt, start, end, phone; may be absent) and
        ``audio/<speaker>/<utt>.ogg``.
    save_folder : path
        Where the manifests go.
    languages : iterable of str, optional
        Languages to keep; all if None.

    Returns
    -------
    save_folder : pathlib.Path
        The folder of the manifests.

    Raises
    ------
    FileNotFoundError
        If there is no ``utts.tsv``, or no audio for it.
    ValueError
        If a language or a split is unknown, or a column is missing.

    Example
    -------
    >>> prepare_shared("corpus", "out", languages=["en"])  # doctest: +SKIP
    PosixPath('out')
    """
    source, folder = pathlib.Path(shared_folder), pathlib.Path(save_folder)
    if isinstance(languages, str):
        languages = [languages]
    tables = [source / "utts.tsv", source / "phones.tsv.gz"]
    if not tables[0].is_file():
        raise FileNotFoundError(f"{tables[0]} is wanted, there is none")
    corpus = {
        "corpus": "shared",
        "version": FORMAT_VERSION,
        "languages": sorted(set(languages)) if languages else None,
        "source": _digest(t.read_bytes() for t in tables if t.is_file()),
        "data_root": str(source.resolve()),
    }
    if _is_done(folder, corpus):
        return folder
    utts = _read_tables(source, *tables, corpus["languages"])
    _write_corpus(folder, utts, corpus)
    return folder


def prepare_audio_folder(
    audio_folder: PathLike,
    save_folder: PathLike,
    seed: int = 1234,
    valid_fraction: float = 0.05,
    test_fraction: float = 0.05,
) -> pathlib.Path:
    """Writes manifests for all the audio under a folder, without phones.

    The speaker is the name of a file's own folder. Files that are unreadable,
    empty or cut short are named in warnings and left out.

    Arguments
    ---------
    audio_folder : path
        Searched, with its subfolders, for wav, flac, ogg, opus and mp3 files
        of any sampling rate and number of channels.
    save_folder : path
        Where the manifests go.
    seed : int
        Of the splits.
    valid_fraction : float
        Of the files, rounded up.
    test_fraction : float
        Of the files, rounded up.

    Returns
    -------
    save_folder : pathlib.Path
        The folder of the manifests.

    Raises
    ------
    ValueError
        If a fraction is out of range, or no usable file is left (for train).

    Example
    -------
    >>> prepare_audio_folder("my_recordings", "out")  # doctest: +SKIP
    PosixPath('out')
    """
    source, folder = pathlib.Path(audio_folder), pathlib.Path(save_folder)
    if min(valid_fraction, test_fraction) < 0 or not (
        valid_fraction + test_fraction < 1
    ):
        raise ValueError(
            "valid_fraction and test_fraction must be at least 0 and their "
            f"sum below 1, got {valid_fraction} and {test_fraction}"
        )
    paths = sorted(_find_audio(source))
    corpus = {
        "corpus": "audio",
        "version": FORMAT_VERSION,
        "seed": seed,
        "fractions": [valid_fraction, test_fraction],
        "source": _digest(
            f"{p} {p.stat().st_size} {p.stat().st_mtime_ns}\n".encode()
            for p in paths
        ),
        "data_root": str(source.resolve()),
    }
    if _is_done(folder, corpus):
        return folder
    entries = _read_audio(source, paths)
    utts = _split(entries, seed, valid_fraction, test_fraction, source)
    _write_corpus(folder, utts, corpus)
    return folder


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
    root = _read_corpus(pathlib.Path(folder)).get("data_root", ".")
    return str(pathlib.Path(folder) / root)


# What is there already


def _read_corpus(folder: pathlib.Path) -> dict:
    """What corpus.json says, nothing if there is none."""
    path = folder / "corpus.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _has_manifests(folder: pathlib.Path) -> bool:
    return all((folder / name).is_file() for name in MANIFESTS)


def _is_done(folder: pathlib.Path, corpus: dict) -> bool:
    """Whether a finished preparation with these parameters is there."""
    return _read_corpus(folder) == corpus and _has_manifests(folder)


def _require_manifests(folder: pathlib.Path) -> None:
    if not _has_manifests(folder):
        raise FileNotFoundError(f"{folder} does not hold all of {MANIFESTS}")


def _is_interrupted(folder: pathlib.Path) -> bool:
    """Whether MiniSpeech was begun here and not finished."""
    partial = next(folder.glob(".minispeech-*"), None)
    return partial is not None and not _read_corpus(folder)


def _recognise(folder: pathlib.Path) -> str:
    """The kind of data in a folder, as prepare's corpus names it."""
    if folder.exists() and not folder.is_dir():
        raise FileNotFoundError(f"{folder} is a file, a folder is wanted")
    if _is_interrupted(folder):
        return "minispeech"
    if _has_manifests(folder):
        return "manifests"
    if (folder / "utts.tsv").is_file():
        return "shared"
    if next(_find_audio(folder), None) is not None:
        return "audio"
    names = sorted(path.name for path in folder.glob("*"))
    if not names:
        logger.warning("%s holds no data: MiniSpeech is made there", folder)
        return "minispeech"
    raise FileNotFoundError(
        f"{folder} holds {', '.join(names[:5])}{', ...' * (len(names) > 5)}; "
        f"wanted are the manifests {', '.join(MANIFESTS)}, or utts.tsv, or "
        f"audio files ({' '.join(AUDIO_SUFFIXES)}), or an empty folder in "
        "which to make MiniSpeech"
    )


def _warn_if_other_corpus(
    folder: pathlib.Path, minutes: float, seed: int, num_speakers: int
) -> None:
    """Says so when the MiniSpeech there is not the one asked for."""
    there = _read_corpus(folder)
    if there.get("corpus") == "minispeech" and there != _minispeech(
        minutes, seed, num_speakers
    ):
        logger.warning(
            "%s holds MiniSpeech made with %s: it is used as it is; "
            "corpus='minispeech' makes it anew",
            folder,
            {k: there.get(k) for k in ("minutes", "seed", "num_speakers")},
        )


def _refuse_foreign(folder: pathlib.Path) -> None:
    """Never deletes or mixes with what MiniSpeech did not write."""
    ours = _read_corpus(folder).get("corpus") == "minispeech"
    if ours or _is_interrupted(folder):
        return
    for name in ("audio", "corpus.json", "phones.item", *MANIFESTS):
        if (folder / name).exists():
            raise FileExistsError(
                f"{folder / name} was not made by MiniSpeech: "
                "give an empty folder"
            )


def _remove_partial(folder: pathlib.Path) -> None:
    for partial in folder.glob(".minispeech-*"):
        # A process of the killed run may still be writing there.
        shutil.rmtree(partial, ignore_errors=True)


def _digest(chunks: Iterable[bytes]) -> str:
    sha = hashlib.sha1()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()


# Writing


def _write_corpus(
    folder: pathlib.Path, utts: dict[str, dict], corpus: dict
) -> None:
    """Manifests, item file and, last, the mark that all of it is there."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "corpus.json").unlink(missing_ok=True)
    for split in SPLITS:
        _write_text(folder / f"{split}.json", _dump(utts[split]))
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
    """Writes all of a file or nothing."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, "utf-8", newline="\n")
    os.replace(temporary, path)


def _dump(utts: dict[str, dict]) -> str:
    """One utterance a line."""
    lines = (
        f"{json.dumps(utt_id)}: {json.dumps(utt, ensure_ascii=False)}"
        for utt_id, utt in utts.items()
    )
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _write_csv(path: pathlib.Path, utts: dict[str, dict]) -> None:
    """SpeechBrain's csv; its root is ``$data_root``."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator="\n")
    writer.writerow(["ID", "duration", "wav", "wav_format", "spk_id", "wrd"])
    for utt_id, utt in utts.items():
        wav = utt["wav"].replace("{data_root}", "$data_root")
        length, spk_id, words = utt["length"], utt["spk_id"], utt["words"]
        writer.writerow([utt_id, length, wav, "flac", spk_id, words])
    _write_text(path, table.getvalue())


def _item_file(utts: dict[str, dict]) -> str:
    """ZeroSpeech triphones: from the phone before to the phone after."""
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for utt_id, utt in utts.items():
        phones = utt["phones"]
        for before, this, after in zip(
            phones, phones[1:], phones[2:], strict=False
        ):
            names = [phone[2] for phone in (this, before, after)]
            if SILENCE not in names:
                lines.append(
                    f"{utt_id} {before[0]} {after[1]} {' '.join(names)} "
                    f"{utt['spk_id']}"
                )
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    """Keeps SpeechBrain's replacements off the braces of names and texts."""
    return text.replace("{", "{{").replace("}", "}}")


# MiniSpeech


def _minispeech(minutes: float, seed: int, num_speakers: int) -> dict:
    """The parameters of a MiniSpeech, checked."""
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


def _speak_all(
    corpus: dict, audio: pathlib.Path, jobs: int | None
) -> dict[str, dict]:
    """Every voice in a process of its own, some at a time."""
    speakers = list(VOICES)[: corpus["num_speakers"]]
    unseen = speakers[::-6]
    seconds = {s: 60 * corpus["minutes"] * SHARES[s] for s in SPLITS}
    tasks = []
    for speaker in speakers:
        splits = ["test"] if speaker in unseen else ["train", "valid"]
        count = len(unseen if speaker in unseen else speakers)
        count -= 0 if speaker in unseen else len(unseen)
        quotas = {split: seconds[split] / count for split in splits}
        tasks.append((corpus["seed"], speaker, quotas, str(audio / speaker)))
    utts = {split: {} for split in SPLITS}
    with ThreadPoolExecutor(jobs or min(os.cpu_count() or 1, 16)) as pool:
        voices = pool.map(_speak_apart, tasks)
        for voice in tqdm(voices, "MiniSpeech", len(tasks), unit="voice"):
            for split, entries in voice.items():
                utts[split].update(entries)
    return utts


def _speak_apart(task: tuple) -> dict[str, dict]:
    """One voice in a fresh process.

    espeak-ng carries state from one utterance to the next, even past its own
    termination: only a fresh process always gives the same samples.
    """
    process = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        # The voices share the cores already.
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    if process.returncode != 0:
        raise RuntimeError(
            f"espeak-ng failed for voice {task[1]}:\n{process.stderr}"
        )
    return json.loads(process.stdout)


def _speak_voice(
    seed: int, speaker: str, quotas: dict[str, float], folder: str
) -> dict[str, dict]:
    """Speaks new sentences with one voice until the quotas are full."""
    rng = random.Random(f"{seed} {speaker}")
    synthesise = _espeak(speaker)
    os.makedirs(folder)
    utts = {}
    for split, quota in quotas.items():
        utts[split], spoken = {}, 0.0
        for number, text in enumerate(_sentences(rng, split)):
            if number and spoken >= quota:
                break
            utt_id = f"{speaker}-{split}-{number:04d}"
            wave, phones = synthesise(text, VOICES[speaker], rng)
            path = os.path.join(folder, utt_id + ".flac")
            sf.write(path, wave, SAMPLE_RATE, subtype="PCM_16")
            spoken += len(wave) / SAMPLE_RATE
            utts[split][utt_id] = {
                "wav": f"{{data_root}}/audio/{speaker}/{utt_id}.flac",
                "length": len(wave) / SAMPLE_RATE,
                "spk_id": speaker,
                "lang": "en",
                "words": text,
                "phones": phones,
            }
    return utts


def _sentences(rng: random.Random, split: str) -> Iterator[str]:
    """Different sentences without end, of one split.

    A sentence's split is a property of its text: no sentence can be in two
    splits, whoever says it.
    """
    seen = set()
    while True:
        text = re.sub(
            r"<(\w+)>",
            lambda slot: rng.choice(WORDS[slot[1]]),
            rng.choice(TEMPLATES),
        )
        text = text[0].upper() + text[1:]
        share = zlib.crc32(text.encode()) % 10
        home = {0: "valid", 1: "test"}.get(share, "train")
        if home == split and text not in seen:
            seen.add(text)
            yield text


# espeak-ng


class _EventId(ctypes.Union):
    _fields_ = [
        ("number", ctypes.c_int),
        ("name", ctypes.c_char_p),
        ("string", ctypes.c_char * 8),
    ]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_CALLBACK = ctypes.CFUNCTYPE(
    ctypes.c_int,
    ctypes.POINTER(ctypes.c_short),
    ctypes.c_int,
    ctypes.POINTER(_Event),
)
_END_OF_LIST, _PHONEME = 0, 7  # types of events
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4  # parameters
_UP, _DOWN = 320, 441  # from espeak-ng's 22050 Hz to 16 kHz


def _open_espeak() -> ctypes.CDLL:
    """The library of espeakng-loader with its argument types declared."""
    import espeakng_loader

    library = ctypes.CDLL(espeakng_loader.get_library_path())
    c_int, c_char_p = ctypes.c_int, ctypes.c_char_p
    library.espeak_Initialize.argtypes = [c_int, c_int, c_char_p, c_int]
    library.espeak_SetSynthCallback.argtypes = [_CALLBACK]
    library.espeak_SetSynthCallback.restype = None
    library.espeak_SetVoiceByName.argtypes = [c_char_p]
    library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
    library.espeak_SetParameter.argtypes = [c_int, c_int, c_int]
    library.espeak_Synth.argtypes = [
        c_char_p,
        ctypes.c_size_t,
        ctypes.c_uint,
        c_int,
        ctypes.c_uint,
        ctypes.c_uint,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    with tempfile.TemporaryDirectory() as short:
        data = espeakng_loader.get_data_path()
        parent = os.path.dirname(data)
        if len(os.fsencode(data)) > 150:  # espeak's buffer has 160 bytes
            os.symlink(data, os.path.join(short, os.path.basename(data)))
            parent = short
        # Synchronous; phoneme events, and no exit() on errors.
        rate = library.espeak_Initialize(2, 0, os.fsencode(parent), 0x8001)
    if rate != 22050:
        raise RuntimeError(f"espeak-ng cannot start on {data} (code {rate})")
    # Breath and roughness would else be drawn from the time of day.
    library.espeak_ng_SetRandSeed(1)
    return library


def _espeak(speaker: str) -> Callable:
    """A function from a text to its 16 kHz wave and its phones."""
    library = _open_espeak()
    chunks, events = [], []

    @_CALLBACK
    def receive(samples, count, event_list):
        if count > 0:
            chunks.append(ctypes.string_at(samples, 2 * count))
        for event in itertools.takewhile(
            lambda event: event.type != _END_OF_LIST, _forever(event_list)
        ):
            if event.type == _PHONEME:
                events.append((event.sample, event.id.string.decode()))
        return 0

    library.espeak_SetSynthCallback(receive)
    if library.espeak_SetVoiceByName(f"en-us+{speaker}".encode()) != 0:
        raise RuntimeError(f"espeak-ng has no voice en-us+{speaker}")

    def synthesise(text, words_per_minute, rng):
        chunks.clear(), events.clear()
        rate = round(words_per_minute * rng.uniform(0.9, 1.1))
        # At espeak's own volume some voices clip.
        settings = {_RATE: rate, _VOLUME: 50, _RANGE: 50}
        settings[_PITCH] = rng.randint(44, 56)
        for parameter, value in settings.items():
            library.espeak_SetParameter(parameter, value, 0)
        raw = text.encode() + b"\0"
        if library.espeak_Synth(raw, len(raw), 0, 1, 0, 1, None, None) != 0:
            raise RuntimeError(f"espeak-ng cannot say {text!r}")
        native = np.frombuffer(b"".join(chunks), np.int16) / 32768
        wave = _resample(native) * 10 ** (rng.uniform(-9, 0) / 20)
        return np.clip(wave, -1, 1), _phones(events, wave)

    # The library keeps no reference to the callback.
    synthesise.receive = receive
    return synthesise


def _forever(pointer: ctypes.POINTER) -> Iterator:
    return (pointer[index] for index in itertools.count())


@functools.lru_cache
def _resampler(reach: int = 24) -> np.ndarray:
    """[_DOWN + 2 reach, _UP]: from a block of input to its block of output.

    A sinc cut off at 0.94 of the new Nyquist frequency, in a Kaiser window.
    """
    at = np.arange(_DOWN + 2 * reach)[:, None] - reach
    at = at - np.arange(_UP) * _DOWN / _UP
    cutoff = 0.94 * _UP / _DOWN
    inside = np.sqrt(np.maximum(0, 1 - (at / reach) ** 2))
    window = np.i0(8.0 * inside) / np.i0(8.0) * (np.abs(at) < reach)
    return cutoff * np.sinc(cutoff * at) * window


def _resample(wave: np.ndarray) -> np.ndarray:
    """From 22050 to 16000 Hz.

    Here rather than from a library, as importing one for every voice takes
    longer than all of its resampling.
    """
    bank = _resampler()
    reach = (len(bank) - _DOWN) // 2
    count = -(-len(wave) * _UP // _DOWN)
    padded = np.pad(wave, (reach, reach + _DOWN))
    blocks = np.lib.stride_tricks.sliding_window_view(padded, len(bank))
    return (blocks[::_DOWN] @ bank).reshape(-1)[:count]


def _phones(events: list, wave: np.ndarray) -> list:
    """[start, end, phone] over the whole utterance, in seconds.

    Arguments
    ---------
    events : list
        Of (sample at 22050 Hz, mnemonic), as espeak-ng sent them.
    wave : np.ndarray
        [samples] at 16 kHz.

    Returns
    -------
    phones : list
        Sorted, without gaps; pauses are "SIL", stress is left out.
    """
    starts, names = [0], [SILENCE]
    # Stable: events of the same sample stay in espeak-ng's order.
    for sample, name in sorted(events, key=lambda event: event[0]):
        start = min(round(sample * _UP / _DOWN), len(wave))
        # Less than 5 ms before the first phone are no pause.
        starts.append(start if start > 80 else 0)
        name = name.lstrip("',")
        names.append(SILENCE if name.startswith("_") else name)
    starts = _move_to_closures(starts, names, wave)
    phones = []
    for start, end, name in zip(
        starts, [*starts[1:], len(wave)], names, strict=False
    ):
        if end == start or not name:
            continue
        if phones and phones[-1][2] == name == SILENCE:
            phones[-1][1] = end
        else:
            phones.append([start, end, name])
    return [[a / SAMPLE_RATE, b / SAMPLE_RATE, name] for a, b, name in phones]


def _move_to_closures(
    starts: list[int], names: list[str], wave: np.ndarray
) -> list[int]:
    """Starts of the phones, those of stops moved from burst to closure."""
    block, longest, shortest = 64, 1920, 128  # 4, 120 and 8 ms
    kept = 160  # 10 ms: so that no phone before a closure vanishes
    quiet = 0.02 * np.percentile(np.abs(wave), 99)
    power = np.concatenate([[0.0], np.cumsum(wave**2)])
    starts = list(starts)
    for i in range(1, len(names)):
        if names[i] not in STOPS:
            continue
        before = starts[i - 1] + kept * (names[i - 1] != SILENCE)
        earliest = max(before, starts[i] - longest)
        start = starts[i]
        while (
            start - block >= earliest
            and power[start] - power[start - block] < block * quiet**2
        ):
            start -= block
        if starts[i] - start > shortest:
            starts[i] = start
    return starts


# Folders laid out like utts.tsv, phones.tsv.gz and audio


def _read_tables(
    source: pathlib.Path,
    utts_path: pathlib.Path,
    phones_path: pathlib.Path,
    languages: list[str] | None,
) -> dict[str, dict]:
    """The utterances of each split."""
    with open(utts_path, encoding="utf-8", newline="") as lines:
        rows = list(_tsv(lines, "utt speaker lang seconds split text"))
    known = {row["lang"] for row in rows}
    if not known.issuperset(languages or ()):
        raise ValueError(
            f"languages {languages}: {source} holds only {sorted(known)}"
        )
    phones = collections.defaultdict(list)
    if phones_path.is_file():
        with gzip.open(phones_path, "rt", encoding="utf-8") as lines:
            for row in _tsv(lines, "utt start end phone"):
                phones[row["utt"]].append(
                    [float(row["start"]), float(row["end"]), row["phone"]]
                )
    utts, absent = {split: {} for split in SPLITS}, 0
    for row in tqdm(rows, source.name, unit="utt"):
        if languages and row["lang"] not in languages:
            continue
        if row["split"] not in SPLITS:
            raise ValueError(
                f"{utts_path}: split {row['split']!r} of {row['utt']} is none "
                f"of {SPLITS}"
            )
        relative = f"audio/{row['speaker']}/{row['utt']}.ogg"
        if not (source / relative).is_file():
            logger.warning("%s is missing: left out", source / relative)
            absent += 1
            continue
        utts[row["split"]][row["utt"]] = {
            "wav": "{data_root}/" + _escape(relative),
            "length": float(row["seconds"]),
            "spk_id": _escape(row["speaker"]),
            "lang": row["lang"],
            "words": _escape(row["text"]),
            "phones": [
                [a, b, _escape(name)] for a, b, name in phones[row["utt"]]
            ],
        }
    if not any(utts.values()):
        raise FileNotFoundError(f"{source} has no audio for its utts.tsv")
    if absent:
        logger.warning("%d utterances were left out", absent)
    return utts


def _tsv(lines: Iterable[str], columns: str) -> Iterator[dict[str, str]]:
    """Rows of a table without quoting, which must have these columns."""
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    missing = set(columns.split()) - set(rows.fieldnames or ())
    if missing:
        raise ValueError(
            f"the table has no column {', '.join(sorted(missing))}"
        )
    return rows


# Bare folders of audio


def _find_audio(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in AUDIO_SUFFIXES and path.is_file()
    )


def _read_audio(
    source: pathlib.Path, paths: list[pathlib.Path]
) -> dict[str, dict]:
    """The utterances of the files that can be read to their end."""
    utts = {}
    for path in tqdm(paths, source.name, unit="file"):
        try:
            length = check_audio(path)
        except AudioError as error:
            logger.warning("Left out %s", error)
            continue
        relative = path.relative_to(source)
        utt_id = "-".join(relative.with_suffix("").parts)
        while utt_id in utts:
            utt_id += "_"
        utts[utt_id] = {
            "wav": "{data_root}/" + _escape(relative.as_posix()),
            "length": length,
            "spk_id": _escape(path.resolve().parent.name),
            "lang": "",
            "words": "",
            "phones": [],
        }
    if len(utts) < len(paths):
        logger.warning(
            "%s: %d of %d files were left out",
            source,
            len(paths) - len(utts),
            len(paths),
        )
    return utts


def _split(
    utts: dict[str, dict],
    seed: int,
    valid_fraction: float,
    test_fraction: float,
    source: pathlib.Path,
) -> dict[str, dict]:
    """Splits by a hash of the path, so that no order of files matters."""
    if not utts:
        raise ValueError(f"no readable audio file in {source}")
    order = sorted(
        utts, key=lambda u: _digest([f"{seed} {utts[u]['wav']}".encode()])
    )
    valid = math.ceil(valid_fraction * len(order))
    test = math.ceil(test_fraction * len(order))
    if valid + test >= len(order):
        raise ValueError(
            f"{source} holds {len(order)} readable audio files: none is left "
            f"to train on after {valid} for valid and {test} for test (their "
            "fractions may be 0)"
        )
    home = dict.fromkeys(order, "train")
    home.update(dict.fromkeys(order[:valid], "valid"))
    home.update(dict.fromkeys(order[valid : valid + test], "test"))
    return {
        split: {u: utt for u, utt in utts.items() if home[u] == split}
        for split in SPLITS
    }


if __name__ == "__main__":
    # One voice, for _speak_apart: task in, manifest entries out.
    json.dump(_speak_voice(*json.load(sys.stdin)), sys.stdout)
