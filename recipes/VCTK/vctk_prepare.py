"""Data preparation: VCTK, versions 0.92 and 0.80, without copying audio."""

import logging
import math
import pathlib
import re

from speechbrain_vq.dataio.audio import usable_files
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

logger = logging.getLogger(__name__)

TEXTS, INFO = "txt", "speaker-info.txt"
# Audio folder and file suffix of each version.
VERSIONS = {
    "0.92": ("wav48_silence_trimmed", "_{mic}.flac"),
    "0.80": ("wav48", ".wav"),
}
NAMES = ("VCTK-Corpus-0.92", "VCTK-Corpus")
SPEAKER = re.compile(r"[ps]\d+")
HOW_TO_GET = (
    "VCTK-Corpus-0.92.zip is at https://datashare.ed.ac.uk/handle/10283/3443; "
    "unpack all of it into one folder"
)


def prepare(
    data_folder: PathLike,
    save_folder: PathLike,
    mic: str = "mic1",
    seed: int = 1234,
    unseen_speakers: int = 5,
    valid_fraction: float = 0.02,
    test_fraction: float = 0.05,
) -> pathlib.Path:
    """Write manifests for VCTK, and return their folder.

    No sentence is in two splits, even with different readers. Every speaker is
    in the training set, except for a few who are only in the test set; their
    recordings of training and validation sentences are skipped. p315 has no
    texts: its recordings are split by name, with empty words, and may contain
    sentences that other speakers read in another split.

    Arguments
    ---------
    data_folder : path
        The folder of version 0.92, with ``wav48_silence_trimmed``, ``txt`` and
        ``speaker-info.txt``, or of 0.80, with ``wav48``; or its parent. A folder
        with manifests is used unchanged.
    save_folder : path
        Folder for the manifests.
    mic : str
        Microphone of version 0.92, ``mic1`` or ``mic2``. Utterances without
        ``mic2``, such as those of p280, are skipped.
    seed : int
        Random seed of the splits and of the unseen speakers.
    unseen_speakers : int
        Number of speakers who are only in the test set.
    valid_fraction, test_fraction : float
        Fraction of the sentences in each split, rounded up.

    Raises
    ------
    FileNotFoundError
        If a part of the corpus is missing.
    ValueError
        If a split would be empty.
    """
    source, folder = pathlib.Path(data_folder), pathlib.Path(save_folder)
    if given_manifests(source, folder):
        return source
    root, version = _find_root(source)
    audio = root / VERSIONS[version][0]
    end = VERSIONS[version][1].format(mic=mic)
    recordings = {
        path.name.removesuffix(end): path
        for speaker in sorted(audio.iterdir())
        if SPEAKER.fullmatch(speaker.name) and speaker.is_dir()
        for path in sorted(speaker.glob(f"{speaker.name}_*{end}"))
    }
    _check_parts(root, audio, end, recordings)
    corpus = {
        "corpus": "vctk",
        "version": FORMAT_VERSION,
        "vctk": version,
        "mic": mic if version == "0.92" else None,
        "seed": seed,
        "unseen_speakers": unseen_speakers,
        "fractions": [valid_fraction, test_fraction],
        "source": digest(
            [
                (root / INFO).read_bytes(),
                *sizes(recordings.values()),
                *sizes(sorted((root / TEXTS).glob("*/*.txt"))),
            ]
        ),
        "data_root": str(root.resolve()),
    }
    if is_done(folder, corpus):
        return folder
    utts = _read(root, recordings)
    splits = _split(utts, seed, unseen_speakers, valid_fraction, test_fraction)
    for split, part in splits.items():
        if not part:
            raise ValueError(
                f"{root} holds {len(utts)} readable utterances: none is left "
                f"for {split}. {HOW_TO_GET}."
            )
    write_corpus(folder, splits, corpus)
    return folder


def _find_root(source: pathlib.Path) -> tuple[pathlib.Path, str]:
    """Find the folder of the corpus, and its version."""
    for root in (source, *(source / name for name in NAMES)):
        for version, (audio, _) in VERSIONS.items():
            if (root / audio).is_dir():
                return root, version
    folders = " or ".join(audio for audio, _ in VERSIONS.values())
    if not source.is_dir():
        raise FileNotFoundError(f"{missing_folder(source)} {HOW_TO_GET}.")
    raise FileNotFoundError(
        f"{source} holds {folder_contents(source)}; expected VCTK, "
        f"a folder with {folders}, or one with manifests (train.json, "
        f"valid.json, test.json). {HOW_TO_GET}. For recordings of your own: "
        f"`speechbrain-vq train {source} --recipe=voices`."
    )


def _check_parts(root, audio, end, recordings) -> None:
    if not recordings:
        raise FileNotFoundError(
            f"{audio} has no files such as p225/p225_001{end}; it holds "
            f"{folder_contents(audio, '*/*', maximum=3)}. {HOW_TO_GET}."
        )
    for part in (TEXTS, INFO):
        if not (root / part).exists():
            raise FileNotFoundError(
                f"{root} lacks {part}, which VCTK has. {HOW_TO_GET}."
            )


def _genders(path: pathlib.Path) -> dict[str, str]:
    """Read genders from ``ID AGE GENDER ...``; ids lack the p in version 0.80."""
    genders = {}
    for line in path.read_text("utf-8", errors="replace").splitlines()[1:]:
        speaker, *fields = line.split() or [""]
        # The age may be missing.
        gender = {"F", "M"} & set(fields[:2])
        if gender:
            speaker = f"p{speaker}" if speaker.isdigit() else speaker
            genders[speaker] = gender.pop()
    return genders


def _read(
    root: pathlib.Path, recordings: dict[str, pathlib.Path]
) -> dict[str, dict]:
    """Read the usable utterances."""
    genders, utts = _genders(root / INFO), {}
    lengths = usable_files(recordings.values())
    for name, path in recordings.items():
        if path not in lengths:
            continue
        speaker = path.parent.name
        text = root / TEXTS / speaker / f"{name}.txt"
        words = ""
        if text.is_file():
            words = " ".join(text.read_text("utf-8", errors="replace").split())
        relative = path.relative_to(root).as_posix()
        utts[name] = utterance(relative, lengths[path], speaker, "en", words)
        utts[name]["gender"] = genders.get(speaker, "")
    return utts


def _split(
    utts: dict[str, dict],
    seed: int,
    unseen_speakers: int,
    valid_fraction: float,
    test_fraction: float,
) -> dict[str, dict]:
    """Split by hashes of the sentences and of the speakers' names."""

    def order(names):
        return sorted(names, key=lambda n: digest([f"{seed} {n}".encode()]))

    speakers = order({utt["spk_id"] for utt in utts.values()})
    unseen = set(speakers[:unseen_speakers])
    sentence = {n: _normalize(utt["words"]) or n for n, utt in utts.items()}
    sentences = order(set(sentence.values()))
    valid = math.ceil(valid_fraction * len(sentences))
    test = valid + math.ceil(test_fraction * len(sentences))
    split_of = {
        **dict.fromkeys(sentences[:valid], "valid"),
        **dict.fromkeys(sentences[valid:test], "test"),
        **dict.fromkeys(sentences[test:], "train"),
    }
    splits: dict[str, dict] = {"train": {}, "valid": {}, "test": {}}
    for name, utt in utts.items():
        split = split_of[sentence[name]]
        if split == "test" or utt["spk_id"] not in unseen:
            splits[split][name] = utt
    left_out = len(utts) - sum(map(len, splits.values()))
    logger.info(
        "In test only: %s; %d of their utterances are left out, because others "
        "read the sentence in train or valid",
        ", ".join(sorted(unseen)) or "nobody",
        left_out,
    )
    return splits


def _normalize(words: str) -> str:
    """Normalize a text to lower case without punctuation."""
    return " ".join(re.findall(r"[a-z]+", words.lower()))
