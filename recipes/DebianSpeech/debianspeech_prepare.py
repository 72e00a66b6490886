"""Data preparation: recorded speech in packages of Debian and Ubuntu, which any
user can fetch with ``apt-get download``.

About five hours by 18 voices: telephone prompts in English, Spanish, French,
Italian and Russian (``asterisk-core-sounds-*-g722``, wideband), a Russian reader
(``festvox-ru``), and names of things in a dozen languages, recorded at home
(``tuxpaint-stamps-default``). Writes the audio at 16 kHz and manifests in the
format of MiniSpeech. The voices in ``UNSEEN`` are only in the test set.
"""

import gzip
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
    write_json,
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
# Speakers only in the test set: Carlo is the only Italian voice; tux_es speaks
# Spanish, like Allison in the training set.
UNSEEN = frozenset(["Carlo", "tux_es"])
# Spelled letters, and recordings that are not speech.
NO_SPEECH = re.compile(r"(^|/)(silence|letters|phonetic)/|beep|tone")
SHORTEST = 0.5  # Seconds
# One-second phrases reveal little about a voice and its channel, so they are
# joined to at least this duration, in seconds.
JOINED = 5.0


def prepare(data_folder: PathLike, save_folder: PathLike) -> pathlib.Path:
    """Write audio and manifests of the speech in Debian packages, and return
    their folder.

    By a hash of their names, 2 % of the utterances are for validation and 4 %
    for testing. The test set also has all utterances of the voices in
    ``UNSEEN``. Silence, tones and spelled letters are excluded.

    Arguments
    ---------
    data_folder : path
        Folder with the packages in ``PACKAGES``, or with the files unpacked from
        them (``dpkg -x``). Or a folder with manifests of any corpus.
    save_folder : path
        Folder for the manifests and 400 MB of audio.

    Raises
    ------
    FileNotFoundError
        If one of the packages is missing.
    ImportError
        If PyAV, which decodes G.722, is not installed.
    ValueError
        If a package is damaged.
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
    """Choose a split by a hash of the name, independent of other utterances."""
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


def _files(package: pathlib.Path, folder: str) -> pathlib.Path:
    """Return the root of a package's files; a ``.deb`` is unpacked to a folder."""
    if package.is_dir():
        return package
    logger.info("Unpacking %s", package)
    unpack(package, folder)
    return pathlib.Path(folder)


def _read_texts(name: str, package: pathlib.Path) -> dict[tuple[str, str], str]:
    """Read the texts of prompts by language and path without suffix."""
    lang, texts = name[-2:], {}
    with tempfile.TemporaryDirectory() as temporary:
        root = _files(package, temporary) / f"usr/share/doc/{name}"
        path = root / f"core-sounds-{lang}.txt.gz"
        lines = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
    for line in lines.splitlines():
        path, colon, text = line.partition(":")
        if colon and not line.startswith(";"):
            texts[lang, path.strip()] = text.strip()
    return texts


def _audio(name: str, package: pathlib.Path, folder: pathlib.Path) -> dict:
    """Write the audio of a package as FLAC, unless already written. Returns the
    length in seconds, speaker and language of each file by path."""
    if not folder.is_dir():
        with (
            tempfile.TemporaryDirectory() as temporary,
            atomic_folder(folder) as partial,
            few_warnings(logger),
        ):
            if name == READER:
                recordings = _reader(package, temporary)
            elif name == STAMPS:
                recordings = _stamps(_files(package, temporary))
            else:
                root = _files(package, temporary)
                recordings = _prompts(root, name.split("-")[3])
            contents = {}
            for path, speaker, lang, samples in recordings:
                if len(samples) < SHORTEST * SAMPLE_RATE:
                    continue
                file = partial / f"{path}.flac"
                file.parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(file, samples, SAMPLE_RATE)
                length = round(len(samples) / SAMPLE_RATE, 4)
                contents[f"{path}.flac"] = length, speaker, lang
            path = partial / "contents.json"
            write_json(path, contents, indent=0, ensure_ascii=False)
    return read_json(folder / "contents.json")


# Path without suffix, speaker, language and samples of each recording.
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
            "The prompts are encoded as G.722, which requires PyAV: "
            "pip install av."
        ) from error
    # The format must be given, because the files have no header.
    with av.open(str(path), format="g722") as container:
        frames = [f.to_ndarray()[0] for f in container.decode(audio=0)]
    # The zero-length array is for one empty file.
    return np.concatenate([np.zeros(0, np.int16), *frames])


def _reader(package: pathlib.Path, temporary: str) -> Recordings:
    voice = festvoxru_prepare.find_voice(package, pathlib.Path(temporary))
    for path in sorted(voice.glob("wav/*.wav")):
        samples = read_audio(path, SAMPLE_RATE).numpy()
        yield path.stem, "nsh", "ru", samples


def _stamps(root: pathlib.Path) -> Recordings:
    """Yield phrases, joined to ``JOINED`` seconds within a language."""
    stamps, by_language = root / "usr/share/tuxpaint/stamps", {}
    for path in sorted(stamps.rglob("*_desc*.*")):
        # Some names have the suffix twice: NAME_desc_da.ogg.ogg.
        match = re.match(r"(.*)_desc_?(\w*)\.(ogg|wav)", path.name)
        if match:
            name = path.relative_to(stamps).with_name(match[1]).as_posix()
            entry = name.replace("/", "_"), path
            by_language.setdefault(match[2] or "en", []).append(entry)
    for lang, entries in sorted(by_language.items()):
        first, parts = "", []
        for name, path in [*entries, ("", None)]:
            size = sum(map(len, parts))
            if parts and (path is None or size >= JOINED * SAMPLE_RATE):
                samples = np.concatenate(parts)
                yield f"{lang}/{first}", f"tux_{lang}", lang, samples
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
