"""Data preparation: recorded speech that Debian and Ubuntu carry, in packages
that ``apt-get download`` fetches, as any user.

Telephone prompts in English, Spanish, French, Italian and Russian
(``asterisk-core-sounds-*-g722``, wideband), a Russian reader (``festvox-ru``)
and names of things in a dozen languages, spoken at home
(``tuxpaint-stamps-default``): some five hours by about 18 voices. What comes
out is a folder with the audio at 16 kHz and SpeechBrain manifests of train,
valid and test, in the form of those of MiniSpeech. The voices of ``UNSEEN``
are all in the test.
"""

import gzip
import itertools
import json
import logging
import pathlib
import re
import tempfile
from collections.abc import Iterator

import numpy as np
import soundfile

from speechbrain_vq.dataio.atomic import atomic_folder
from speechbrain_vq.dataio.audio import AudioError, read_audio
from speechbrain_vq.dataio.logs import few_warnings
from speechbrain_vq.dataio.manifests import (
    FORMAT_VERSION,
    PathLike,
    digest,
    folder_contents,
    given_manifests,
    is_done,
    read_json,
    utterance,
    write_corpus,
)
from speechbrain_vq.recipes.common.debian import how_to_get, unpack
from speechbrain_vq.recipes.FestvoxRu import festvoxru_prepare

logger = logging.getLogger(__name__)

SAMPLE_RATE = 16000
LANGUAGES = ("en", "es", "fr", "it", "ru")
PROMPTS = tuple(f"asterisk-core-sounds-{lang}-g722" for lang in LANGUAGES)
TEXTS = tuple(f"asterisk-core-sounds-{lang}" for lang in LANGUAGES)
READER = "festvox-ru"
STAMPS = "tuxpaint-stamps-default"
PACKAGES = (*PROMPTS, *TEXTS, READER, STAMPS)
# In the test alone: Carlo speaks Italian, which no other voice does, and
# tux_es Spanish, as Allison does.
UNSEEN = frozenset(["Carlo", "tux_es"])
# Letters one by one, and what is no speech.
NO_SPEECH = re.compile(r"(^|/)(silence|letters|phonetic)/|beep|tone")
SHORTEST = 0.5  # Seconds
# Single phrases of a second tell little of a voice and its channel: they are
# joined until they last as long, in seconds.
JOINED = 5.0
WANTED = {
    **{
        name: re.compile(r"\./(usr/share/asterisk/sounds/.+\.g722)")
        for name in PROMPTS
    },
    **{
        name: re.compile(r"\./(usr/share/doc/.+/core-sounds-\w\w\.txt\.gz)")
        for name in TEXTS
    },
    STAMPS: re.compile(
        r"\./(usr/share/tuxpaint/stamps/.+_desc(_\w+)?\.(ogg|wav))"
    ),
}


def prepare(data_folder: PathLike, save_folder: PathLike) -> pathlib.Path:
    """Write audio and manifests of the speech in Debian's packages, and return
    their folder.

    Of a hundred utterances, by a hash of their names, two are for validation
    and four for the test, which also has all utterances of the voices in
    ``UNSEEN``. Silence, tones and letters are left out.

    Arguments
    ---------
    data_folder : path
        The folder that holds the packages of ``PACKAGES``, or what they were
        unpacked to (``dpkg -x``). Or a folder with manifests of any corpus.
    save_folder : path
        Folder of the manifests and the audio, 400 MB.
    """
    source, folder = pathlib.Path(data_folder), pathlib.Path(save_folder)
    if given_manifests(source, folder):
        return source
    packages = _find_packages(source)
    corpus = {
        "corpus": "DebianSpeech",
        "version": FORMAT_VERSION,
        "packages": [path.name for path in packages.values()],
        "data_root": "audio",
    }
    if is_done(folder, corpus):
        return folder
    texts = {}
    for name in TEXTS:
        texts.update(_read_texts(name, packages[name]))
    utts: dict[str, dict] = {"train": {}, "valid": {}, "test": {}}
    for name in (*PROMPTS, READER, STAMPS):
        audio = _audio(name, packages[name], folder / "audio" / name)
        for path, (length, speaker, lang) in sorted(audio.items()):
            key = f"{speaker}-{lang}-{path.removesuffix('.flac')}"
            words = texts.get((lang, path.removesuffix(".flac")), "")
            if not re.match(r"[\[(<]", words):
                utts[_split(key, speaker)][key] = utterance(
                    f"{name}/{path}",
                    length,
                    speaker,
                    lang,
                    re.sub(r"\[.*?\]|\(.*?\)|<.*?>", "", words).strip(),
                )
    write_corpus(folder, utts, corpus)
    return folder


def _split(name: str, speaker: str) -> str:
    """By a hash: what other utterances there are makes no difference."""
    if speaker in UNSEEN:
        return "test"
    percent = int(digest([name.encode()]), 16) % 100
    return "valid" if percent < 2 else "test" if percent < 6 else "train"


def _find_packages(source: pathlib.Path) -> dict[str, pathlib.Path]:
    """Find the file of each package, or the folder it was unpacked to."""
    packages = {}
    for name in PACKAGES:
        files = sorted(source.glob(f"{name}_*.deb"))
        unpacked = source / "usr/share/doc" / name
        if files or unpacked.is_dir():
            packages[name] = files[-1] if files else source
    missing = [name for name in PACKAGES if name not in packages]
    if missing:
        raise FileNotFoundError(
            f"{source} lacks {', '.join(missing)} (it holds "
            f"{folder_contents(source)}). {how_to_get(*missing)}."
        )
    return packages


def _files(name: str, place: pathlib.Path, folder: str) -> pathlib.Path:
    """Return the root of the files of a package, unpacked where it is not."""
    if place.is_dir():
        return place
    logger.info("Unpacking %s", place)
    unpack(place, WANTED[name], pathlib.Path(folder))
    return pathlib.Path(folder)


def _read_texts(name: str, place: pathlib.Path) -> dict[tuple[str, str], str]:
    """Read from (language, path without ending) to the text of a prompt."""
    lang, texts = name[-2:], {}
    with tempfile.TemporaryDirectory() as temporary:
        root = _files(name, place, temporary) / f"usr/share/doc/{name}"
        path = root / f"core-sounds-{lang}.txt.gz"
        lines = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    for line in lines.splitlines():
        path, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            texts[lang, path.strip()] = text.strip()
    return texts


def _audio(name: str, place: pathlib.Path, folder: pathlib.Path) -> dict:
    """Write the audio of a package as FLAC, once, and return from each path
    to its length, speaker and language."""
    if not folder.is_dir():
        with (
            tempfile.TemporaryDirectory() as temporary,
            atomic_folder(folder) as partial,
            few_warnings(logger),
        ):
            if name == READER:
                recordings = _reader(place, temporary)
            elif name == STAMPS:
                recordings = _stamps(_files(name, place, temporary))
            else:
                recordings = _prompts(
                    _files(name, place, temporary), name.split("-")[3]
                )
            contents = {}
            for path, speaker, lang, samples in recordings:
                if len(samples) < SHORTEST * SAMPLE_RATE:
                    continue
                file = partial / f"{path}.flac"
                file.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(file, samples, SAMPLE_RATE)
                length = round(len(samples) / SAMPLE_RATE, 4)
                contents[f"{path}.flac"] = length, speaker, lang
            text = json.dumps(contents, indent=0, ensure_ascii=False)
            (partial / "contents.json").write_text(text, encoding="utf-8")
    return read_json(folder / "contents.json")


# Each yields path, speaker, language and samples of a recording.
Recordings = Iterator[tuple[str, str, str, np.ndarray]]


def _prompts(root: pathlib.Path, lang: str) -> Recordings:
    sounds = root / "usr/share/asterisk/sounds"
    for folder in sorted(sounds.glob(f"{lang}_*_*")):
        speaker = folder.name.rpartition("_")[2]
        for path in sorted(folder.rglob("*.g722")):
            name = path.relative_to(folder).with_suffix("").as_posix()
            if not NO_SPEECH.search(name):
                yield name, speaker, lang, _read_g722(path)


def _read_g722(path: pathlib.Path) -> np.ndarray:
    try:
        import av
    except ImportError as error:
        raise ImportError(
            "The prompts are coded in G.722, which PyAV decodes: "
            "pip install av."
        ) from error
    # The files have no header.
    with av.open(str(path), format="g722") as container:
        frames = [f.to_ndarray()[0] for f in container.decode(audio=0)]
    # One of the files is empty.
    return np.concatenate([np.zeros(0, np.int16), *frames])


def _reader(place: pathlib.Path, temporary: str) -> Recordings:
    folder = pathlib.Path(temporary)
    voice = festvoxru_prepare.find_voice(place, folder)
    for path in sorted(voice.glob("wav/*.wav")):
        samples = read_audio(path, SAMPLE_RATE).numpy()
        yield path.stem, "nsh", "ru", samples


def _stamps(root: pathlib.Path) -> Recordings:
    """Phrases, joined where they are of one language and one folder."""
    stamps, by_language = root / "usr/share/tuxpaint/stamps", {}
    for path in sorted(stamps.rglob("*_desc*.*")):
        # Some are named twice, NAME_desc_da.ogg.ogg.
        match = re.match(r"(.*)_desc_?(\w*)\.(ogg|wav)", path.name)
        if match:
            place = path.relative_to(stamps).with_name(match[1]).as_posix()
            entry = (match[2] or "en", place.replace("/", "_"), path)
            by_language.setdefault(entry[0], []).append(entry)
    for lang, entries in sorted(by_language.items()):
        first, parts = "", []
        for _, name, path in itertools.chain(entries, [(lang, "", None)]):
            size = sum(map(len, parts))
            if parts and (path is None or size >= JOINED * SAMPLE_RATE):
                yield (
                    f"{lang}/{first}",
                    f"tux_{lang}",
                    lang,
                    np.concatenate(parts),
                )
                parts = []
            if path is None:
                continue
            try:
                samples = read_audio(path, SAMPLE_RATE).numpy()
            except AudioError as error:
                logger.warning("Left out %s", error)
                continue
            first = first if parts else name
            parts.append(samples)


if __name__ == "__main__":
    print(*PACKAGES)
