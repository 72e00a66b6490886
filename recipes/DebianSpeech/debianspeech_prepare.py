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
        "packages": [path.name for path in packages],
        "data_root": "audio",
    }
    if is_done(folder, corpus):
        return folder
    utts: dict[str, dict] = {"train": {}, "valid": {}, "test": {}}
    with (
        atomic_folder(folder / "audio") as audio,
        tempfile.TemporaryDirectory(dir=folder) as temporary,
        few_warnings(logger),
    ):
        root = pathlib.Path(temporary) if packages else source
        for package in packages:
            logger.info("Unpacking %s", package)
            unpack(package, root)
        texts = _read_texts(root)
        for name, recordings in _recordings(root):
            part = _write(recordings, texts, audio / name)
            for path, utt in sorted(part.items()):
                key = f"{utt['spk_id']}-{utt['lang']}-{path}"
                key = key.removesuffix(".flac")
                utts[_split(key, utt["spk_id"])][key] = utt
    write_corpus(folder, utts, corpus)
    return folder


def _split(name: str, speaker: str) -> str:
    """Choose a split by a hash of the name, independent of other utterances."""
    if speaker in UNSEEN:
        return "test"
    percent = int(digest([name.encode()]), 16) % 100
    return "valid" if percent < 2 else "test" if percent < 6 else "train"


def _find_packages(source: pathlib.Path) -> list[pathlib.Path]:
    """Find the packages in a folder; none if they are unpacked there."""
    if (source / "usr/share/doc" / READER).is_dir():
        return []
    files = {name: sorted(source.glob(f"{name}_*.deb")) for name in PACKAGES}
    missing = [name for name in files if not files[name]]
    if missing:
        raise FileNotFoundError(
            f"{source} lacks {', '.join(missing)} (it holds "
            f"{folder_contents(source)}). {how_to_get(*missing)}."
        )
    return [found[-1] for found in files.values()]


def _read_texts(root: pathlib.Path) -> dict[tuple[str, str], str]:
    """Read the texts of prompts by language and path without suffix."""
    texts = {}
    for name in TEXTS:
        lang = name[-2:]
        path = root / f"usr/share/doc/{name}/core-sounds-{lang}.txt.gz"
        lines = gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        for line in lines.splitlines():
            path, colon, text = line.partition(":")
            if colon and not line.startswith(";"):
                texts[lang, path.strip()] = text.strip()
    return texts


# Path without suffix, speaker, language and samples of each recording.
Recordings = Iterator[tuple[str, str, str, np.ndarray]]


def _recordings(root: pathlib.Path) -> Iterator[tuple[str, Recordings]]:
    """Yield the name of each package of speech, and its recordings."""
    for name, lang in zip(PROMPTS, LANGUAGES, strict=True):
        yield name, _prompts(root, lang)
    yield READER, _reader(root)
    yield STAMPS, _stamps(root)


def _write(recordings: Recordings, texts: dict, folder: pathlib.Path) -> dict:
    """Write recordings of speech as FLAC; return their utterances by path."""
    utts = {}
    for path, speaker, lang, samples in recordings:
        words = texts.get((lang, path), "")
        # Texts such as [music] are no speech.
        is_speech = not words.startswith(("[", "(", "<"))
        if not is_speech or len(samples) < SHORTEST * SAMPLE_RATE:
            continue
        file = folder / f"{path}.flac"
        file.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(file, samples, SAMPLE_RATE)
        utts[f"{path}.flac"] = utterance(
            f"{folder.name}/{path}.flac",
            round(len(samples) / SAMPLE_RATE, 4),
            speaker,
            lang,
            re.sub(r"\[.*?\]|\(.*?\)|<.*?>", "", words).strip(),
        )
    return utts


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


def _reader(root: pathlib.Path) -> Recordings:
    voice = festvoxru_prepare.find_voice(root, root)
    for path in sorted(voice.glob("wav/*.wav")):
        samples = read_audio(path, SAMPLE_RATE).numpy()
        yield path.stem, "nsh", "ru", samples


def _stamps(root: pathlib.Path) -> Recordings:
    """Yield phrases, joined to ``JOINED`` seconds within a language."""
    stamps, by_language = root / "usr/share/tuxpaint/stamps", {}
    for path in sorted(stamps.rglob("*_desc*.*")):
        match = re.fullmatch(r"(.*)_desc_?(\w*)\.(ogg|wav)", path.name)
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
