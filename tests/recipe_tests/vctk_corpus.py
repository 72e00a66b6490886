"""A small VCTK in the layouts of its two versions."""

import functools
import io
import pathlib

import numpy as np
import soundfile

from tests.recipe_tests.phone_corpora import write

RATE = 48000
# Pitch and how it is noted. Of p315 there are no texts, of p280 is no mic2.
SPEAKERS = {
    "p225": (210, "23  F    English    Southern  England"),
    "p226": (110, "22  M    English    Surrey"),
    "p280": (200, "25  F    Unknown    France (mic2 files unavailable)"),
    "p315": (
        120,
        "18  M    American    New England (All of the txt files unavailable)",
    ),
    "p362": (220, "29  F    American"),
    "p376": (100, "22  M    Indian"),
    "s5": (190, "  F   British"),
}
SENTENCES = [
    "Please call Stella.",
    "Ask her to bring these things.",
    "Six spoons of fresh snow peas, five thick slabs of blue cheese.",
    "We also need a small plastic snake.",
]


def speech(pitch, index, rate=RATE, seconds=0.4):
    """Harmonics under an envelope that the sentence has."""
    time = np.arange(round(seconds * rate)) / rate
    vowel = 500 + 250 * np.sin(2 * np.pi * (index % 5 + 1) * time)
    sound = sum(
        np.sin(2 * np.pi * pitch * n * time)
        * np.exp(-(((pitch * n - vowel) / 400) ** 2))
        for n in range(1, 20)
    )
    noise = np.random.default_rng(index).normal(size=len(time))
    return (4000 * sound + 20 * noise).astype("<i2")


@functools.cache
def sound(pitch, index, kind="FLAC"):
    file = io.BytesIO()
    soundfile.write(file, speech(pitch, index), RATE, format=kind)
    return file.getvalue()


def sentence(speaker, index):
    """The first ones are read by all."""
    if index < len(SENTENCES):
        said = SENTENCES[index]  # Some write them otherwise.
        return said.upper() if speaker == "p226" else said
    return f"{speaker} in number {'x' * index} of the papers."


def vctk_092(number=12):
    """The files of VCTK-Corpus-0.92.zip by path."""
    info = "ID  AGE  GENDER  ACCENTS  REGION COMMENTS \n"
    files = {"license_text": "Attribution", "update.txt": "0.92"}
    audio = "wav48_silence_trimmed"
    for speaker, (pitch, about) in SPEAKERS.items():
        info += f"{speaker}  {about} \n"
        for index in range(number):
            name = f"{speaker}_{index + 1:03d}"
            data = sound(pitch, index)
            files[f"{audio}/{speaker}/{name}_mic1.flac"] = data
            if speaker != "p280":
                files[f"{audio}/{speaker}/{name}_mic2.flac"] = data
            if speaker != "p315":
                text = f"{sentence(speaker, index)}\n"
                files[f"txt/{speaker}/{name}.txt"] = text
    return files | {"speaker-info.txt": info, f"{audio}/log.txt": "trimmed"}


def vctk_080(number=12):
    """Those of VCTK-Corpus.tar.gz: other ids in speaker-info.txt."""
    info = "ID  AGE  GENDER  ACCENTS  REGION \n"
    files = {"COPYING": "ODC-By", "NOTE": "", "README": "VCTK"}
    for speaker, (pitch, about) in SPEAKERS.items():
        if speaker == "s5":
            continue
        # It does not list p280.
        if speaker != "p280":
            info += f"{speaker[1:]}  {about.partition('(')[0]}\n"
        for index in range(number):
            name = f"{speaker}_{index + 1:03d}"
            data = sound(pitch, index, "WAV")
            files[f"VCTK-Corpus/wav48/{speaker}/{name}.wav"] = data
            if speaker != "p315":
                text = f"{sentence(speaker, index)}\n"
                files[f"VCTK-Corpus/txt/{speaker}/{name}.txt"] = text
    return files | {"VCTK-Corpus/speaker-info.txt": info}


def make_vctk(folder: pathlib.Path) -> None:
    """Version 0.92; beside it a small pretrained speaker encoder."""
    from tests.lobes.encoders import ECAPA, write_encoder

    write(folder / "VCTK-Corpus-0.92", vctk_092())
    write_encoder(folder / "encoder", ECAPA)
