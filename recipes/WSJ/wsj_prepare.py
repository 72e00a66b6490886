"""Data preparation: the Wall Street Journal corpus in LDC's layout.

CSR-I (WSJ0, LDC93S6A) and CSR-II (WSJ1, LDC94S13A). By the lists on the discs,
train_si284 is for training, dev93 (h1_p0) for validation, and eval92 (si_et_20)
for testing. The corpus has no phones: a lexicon provides them.
"""

import logging
import os
import pathlib
import re

from speechbrain_vq.dataio.audio import usable_files
from speechbrain_vq.dataio.manifests import (
    FORMAT_VERSION,
    PathLike,
    digest,
    is_done,
    missing_folder,
    utterance,
    write_corpus,
)
from speechbrain_vq.recipes.common.lexicon import Pronouncer

logger = logging.getLogger(__name__)

# Lists of utterances of each split, and the number of utterances in them.
LISTS = {
    "train": (
        "wsj0/doc/indices/train/tr_s_wv1.ndx",
        "wsj1/doc/indices/si_tr_s.ndx",
    ),
    "valid": ("wsj1/doc/indices/h1_p0.ndx",),
    "test": ("wsj0/doc/indices/test/nvp/si_et_20.ndx",),
}
DISC = re.compile(r"\d+[-_]\d+\.\d+")
# Utterances that are listed, but not on any disc.
NOT_THERE = "wsj0/si_tr_s/401/"
# In order of preference: a .wav is the output of sph2pipe.
AUDIO = (".wav", ".sph", ".wv1")
SUFFIXES = {*AUDIO, ".dot", ".ndx"}
LAYOUT = (
    "Expected are the discs (folders such as 11-1.1, 11-13.1, 13-1.1, 13-34.1, "
    "in one folder or in two such as csr_1 and csr_2_comp), or all of them "
    "merged to wsj0 and wsj1. LDC has them as LDC93S6A and LDC94S13A."
)
CONVERT = (
    "If the audio is compressed with shorten, write readable copies next to it: "
    r"`find DATA \( -iname '*.wv1' -o -iname '*.sph' \) "
    """-exec sh -c 'sph2pipe -p -f wav "$1" "${1%.*}.wav"' _ {} \\;`"""
)


def prepare(
    data_folder: PathLike,
    save_folder: PathLike,
    lexicon: PathLike | None = None,
    g2p: str | None = None,
) -> pathlib.Path:
    """Write manifests for the Wall Street Journal corpus, and return their folder.

    Arguments
    ---------
    data_folder : path
        Folder with the discs, or with wsj0 and wsj1, in upper or lower case.
    save_folder : path
        Folder for the manifests.
    lexicon : path, optional
        A file in the format of CMUdict.
    g2p : str, optional
        ``module:function`` for words not in the lexicon. By default, utterances
        with such words are skipped, with a warning that counts them.

    Raises
    ------
    FileNotFoundError
        If a list is missing, or all audio of a list.
    ValueError
        If there is neither a lexicon nor a g2p, or a split has no utterances.
    """
    source, folder = pathlib.Path(data_folder), pathlib.Path(save_folder)
    pronouncer = Pronouncer(lexicon, g2p)
    files = _find_files(source)
    listed = {split: _listed(source, files, split) for split in LISTS}
    corpus = {
        "corpus": "wsj",
        "version": FORMAT_VERSION,
        "source": digest(
            f"{key} {path.stat().st_size}\n".encode()
            for key, path in sorted(files.items())
        ),
        **pronouncer.about,
        "data_root": str(source.resolve()),
    }
    if is_done(folder, corpus):
        return folder
    texts = _read_texts(files)
    utts = {
        split: _read_split(source, files, split, keys, texts, pronouncer)
        for split, keys in listed.items()
    }
    pronouncer.log_unknown("WSJ")
    write_corpus(folder, utts, corpus)
    return folder


def _find_files(source: pathlib.Path) -> dict[str, pathlib.Path]:
    """Map lower-case paths that start at wsj0 or wsj1 to files on all discs."""
    if not source.is_dir():
        raise FileNotFoundError(f"{missing_folder(source)} {LAYOUT}")
    files: dict[str, pathlib.Path] = {}
    for parent, _, names in sorted(os.walk(source, followlinks=True)):
        # Parents of the discs may have any name, so start at the last disc.
        relative = pathlib.Path(parent).relative_to(source)
        parts = [part.lower() for part in relative.parts]
        discs = [i for i, part in enumerate(parts) if DISC.fullmatch(part)]
        parts = parts[discs[-1] :] if discs else parts
        # Use the first match, as lists are also in wsj1/doc/indices/wsj1.
        starts = [i for i, part in enumerate(parts) if part in ("wsj0", "wsj1")]
        for name in names if starts else ():
            if pathlib.PurePath(name.lower()).suffix in SUFFIXES:
                key = "/".join([*parts[starts[0] :], name.lower()])
                files.setdefault(key, pathlib.Path(parent, name))
    if not files:
        raise FileNotFoundError(f"{source} has no files of WSJ. {LAYOUT}")
    return files


def _listed(
    source: pathlib.Path, files: dict[str, pathlib.Path], split: str
) -> list[str]:
    """Return the paths, without suffix, of the audio in the lists of a split."""
    keys = set()
    for name in LISTS[split]:
        if name not in files:
            raise FileNotFoundError(
                f"{source} lacks {name}, the list of {split}. {LAYOUT}"
            )
        for line in files[name].read_text("latin-1").splitlines():
            # 13_11_1: /wsj1/si_tr_s/4a8/4a8c0201.wv1, or without the suffix
            match = re.fullmatch(r"\w+\s*:\s*/?(\S+)\s*", line)
            if match and not line.startswith(";"):
                keys.add(match[1].lower().removesuffix(".wv1"))
    return sorted(key for key in keys if not key.startswith(NOT_THERE))


def _read_texts(files: dict[str, pathlib.Path]) -> dict[str, str]:
    """Read the texts of utterances by name, from lines ``TEXT (name)``."""
    texts = {}
    for key in sorted(files):
        if key.endswith(".dot"):
            for line in files[key].read_text("latin-1").splitlines():
                match = re.fullmatch(r"(.*)\((\w+)\)\s*", line)
                if match:
                    texts[match[2].lower()] = clean(match[1])
    return texts


def clean(text: str) -> str:
    """Return the words, in capitals, of a detailed transcript (``.dot``) without
    the name at its end.

    Noises, pauses, and marks of emphasis, lengthening and slips are removed.
    Spoken punctuation, such as ``,COMMA``, is kept.

    >>> clean("[door_slam] THE *FEDERAL* RE:SERVE . !SAID ,COMMA <YES> ~")
    'THE FEDERAL RESERVE SAID ,COMMA YES'
    """
    text = re.sub(r"\[[^]]*\]", " ", text.upper())
    text = re.sub(r"[\\*<>~!]", "", text)
    # A colon inside a word marks a lengthened sound; :COLON starts with one.
    text = re.sub(r"(?<=\w):", "", text)
    return " ".join(w for w in text.split() if re.search(r"\w", w))


def _read_split(source, files, split, keys, texts, pronouncer):
    """Read the usable utterances of a split that have a transcript."""
    paths, missing = {}, []
    for key in keys:
        name = key.rpartition("/")[2]
        candidates = (files.get(f"{key}{suffix}") for suffix in AUDIO)
        path = next(filter(None, candidates), None)
        if path is None or name not in texts:
            missing.append(key)
        else:
            paths[name] = path
    if not paths:
        raise FileNotFoundError(
            f"{source} holds neither audio nor transcript ({', '.join(AUDIO)} "
            f"and .dot) of any utterance of {split}. {LAYOUT}"
        )
    if missing:
        logger.warning(
            "%s: audio or transcript of %d of %d utterances is missing, for "
            "example of %s",
            *(split, len(missing), len(keys), missing[0]),
        )
    utts, lengths = {}, usable_files(paths.values())
    for name, path in paths.items():
        phones = pronouncer(texts[name]) if path in lengths else None
        if phones:
            relative = path.relative_to(source).as_posix()
            about = name[:3], "en", texts[name]
            utts[name] = utterance(relative, lengths[path], *about)
            utts[name]["phone_names"] = phones
    if not utts:
        raise ValueError(
            f"{source}: no utterance of {split} is left. {CONVERT}"
        )
    return utts
