"""Audio of every kind is read right, or named in one line; none hangs, floods
the terminal, or takes others with it."""

import io
import os

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_vq.dataio.audio import (
    AudioError,
    audio_blocks,
    cell_source,
    check_audio,
    check_files,
    count_reasons,
    find_audio,
    read_audio,
)
from speechbrain_vq.dataio.mp3 import _frame_size

RATE = 16000


def sound(rate=RATE, seconds=2.0):
    """Half loud and half quiet, so that a variable bit rate varies."""
    time = np.arange(round(rate * seconds)) / rate
    noise = np.random.default_rng(0).normal(size=len(time)) / 20
    wave = np.sin(2 * np.pi * 300 * time) * np.sin(2 * np.pi * 2 * time)
    return (0.3 * wave + noise) * np.where(time < seconds / 2, 1, 0.01)


def written(path, samples=None, rate=RATE, **options):
    samples = sound(rate) if samples is None else samples
    soundfile.write(path, samples, rate, **options)
    return path.read_bytes()


def headless(path):
    """An mp3 without the header of the encoder."""
    mp3 = written(path, None, 48000)
    return mp3[_frame_size(mp3[:4]) :]


# What is read, by name: bytes, made of a path to write other kinds to.
GOOD = {
    **{
        f"{kind}.wav": lambda path, kind=kind: written(path, subtype=kind)
        for kind in "PCM_U8 PCM_16 PCM_24 PCM_32 FLOAT DOUBLE ULAW ALAW "
        "IMA_ADPCM MS_ADPCM GSM610 NMS_ADPCM_32".split()
    },
    **{
        f"{rate}.flac": lambda path, rate=rate: written(path, None, rate)
        for rate in (8000, 11025, 12345, 22050, 44100, 48000, 96000, 192000)
    },
    **{
        f"a.{ending}": lambda path: written(path)
        for ending in ("mp3", "ogg", "aiff", "au", "w64", "rf64", "caf")
    },
    "a.sph": lambda path: written(path, format="NIST"),
    "a.opus": lambda path: written(path, format="OGG", subtype="OPUS"),
    "stereo.flac": lambda path: written(path, np.stack([sound()] * 2, 1)),
    "vbr.mp3": lambda path: written(path, None, 48000),
    "vbr without its header.mp3": headless,
    "tags.mp3": lambda path: (
        b"ID3\4\0\0\0\0\1\0" + bytes(128) + written(path) + b"TAG" + bytes(125)
    ),
    "other tags.mp3": lambda path: written(path) + b"APETAGEX" + bytes(99),
    "clipped.wav": lambda path: written(path, np.clip(50 * sound(), -1, 1)),
    "of unknown length.flac": lambda path: unknown_length(written(path)),
    "streamed.wav": lambda path: patched(written(path), 40, b"\xff" * 4),
    "followed by zeros.flac": lambda path: written(path) + bytes(99),
}


def patched(content, position, new):
    content = bytearray(content)
    content[position : position + len(new)] = new
    return bytes(content)


def unknown_length(flac):
    return patched(flac, 21, bytes([flac[21] & 0xF0, 0, 0, 0, 0]))


def flipped(content, *positions):
    for position in positions:
        content = patched(content, position, bytes([content[position] ^ 0x10]))
    return content


def rate_of(rate, path):
    return patched(written(path), 24, rate.to_bytes(4, "little"))


def odd(value, kind="FLOAT"):
    def write(path):
        samples = sound()
        samples[5000] = value
        return written(path, samples, subtype=kind)

    return write


def flood(path):
    """Frames that cannot be decoded, of each of which libmpg123 complains."""
    content = headless(path)
    position = number = 0
    while size := _frame_size(content[position : position + 4]):
        if number % 2:
            content = patched(content, position + 6, b"\xff" * 6)
        position, number = position + size, number + 1
    return content


# What is not, with a part of the reason.
BAD = {
    "nothing.wav": (lambda path: b"", "cannot be read"),
    "text.wav": (lambda path: b"not audio", "cannot be read"),
    "header.wav": (lambda path: b"RIFF", "cannot be read"),
    "empty.wav": (lambda path: written(path, sound()[:0]), "no sound"),
    "cut.wav": (lambda path: written(path)[:9999], "cut short"),
    "cut.flac": (lambda path: written(path)[:9999], "cannot be read"),
    "cut.ogg": (lambda path: written(path)[:9999], "cut short"),
    "cut.mp3": (lambda path: written(path)[:5000], "cut short"),
    "flipped.flac": (lambda path: flipped(written(path), 20000), "cannot"),
    "flood.mp3": (flood, "amplitudes beyond"),
    "damaged.mp3": (
        lambda path: patched(written(path, None, 48000), 9000, bytes(999)),
        "damaged",
    ),
    **{
        f"cut.{kind}": (lambda path: written(path)[:9999], "cut short, ")
        for kind in ("aiff", "au", "w64", "rf64", "svx")
    },
    "cut.caf": (lambda path: written(path)[:9999], "cannot be read"),
    **{
        f"joined.{kind}": (lambda path: 2 * written(path), "end to end")
        for kind in ("ogg", "mp3")
    },
    "recorder stopped.wav": (
        lambda path: patched(written(path), 40, bytes(4)),
        "states an end after 44 bytes, and 64000 more follow",
    ),
    "header too short.wav": (
        lambda path: patched(written(path), 40, b"\0\1\0\0"),
        "an end after 300 bytes, and 63744 more",
    ),
    "both sizes too short.wav": (
        lambda path: patched(
            patched(written(path), 40, b"\0\1\0\0"), 4, b"\x24\1\0\0"
        ),
        "an end after 300 bytes, and 63744 more",
    ),
    "header too short.aiff": (
        lambda path: patched(written(path), 42, b"\0\0\1\0"),
        "an end after 302 bytes, and 63752 more",
    ),
    "samples.raw": (lambda path: bytes(999), "Convert it"),
    "nan.wav": (odd(np.nan), "contains NaN"),
    "inf.wav": (odd(-np.inf), "contains NaN or infinity"),
    "huge.wav": (odd(-1e30), "amplitudes beyond 1, up to 1e"),
    "integers.wav": (
        lambda path: written(path, 32768 * sound(), subtype="FLOAT"),
        "amplitudes",
    ),
    "too slow.wav": (lambda path: rate_of(7, path), "rate of 7 Hz"),
    "too fast.wav": (lambda path: rate_of(2**29, path), "rate of 536870912"),
    "talk.m4a": (lambda path: b"\0\0\0 ftypM4A " + bytes(99), "Convert it"),
    "talk.aac": (lambda path: b"\xff\xf1" + bytes(99), "Convert it"),
}


@pytest.fixture
def make(tmp_path):
    def make(name, content):
        path = tmp_path / name
        content = content(tmp_path / f"other{path.suffix}")
        path.write_bytes(content)
        return path

    return make


@pytest.mark.parametrize("name", GOOD)
def test_kinds_that_are_read(make, name, capfd):
    path = make(name, GOOD[name])
    wav = read_audio(path, RATE).numpy()
    # Encoders of blocks of samples fill the last one.
    assert 2 - 1e-3 <= check_audio(path) < 2.15
    assert len(wav) == pytest.approx(check_audio(path) * RATE, abs=1)
    if "vbr" not in name and not path.stem.isdecimal():
        latest, original = 1300 if path.suffix == ".mp3" else 1, sound()[:28000]
        likeness = max(
            np.corrcoef(wav[late : 28000 + late], original)[0, 1]
            for late in range(latest)
        )
        assert likeness > (0.8 if name == "clipped.wav" else 0.9)
    # Of its second half too, which is quiet.
    power = np.square(wav[20000:30000]).mean() / np.square(wav[:12000]).mean()
    assert 1e-5 < power < (1 if name == "clipped.wav" else 1e-2)
    # Blocks are the whole bit for bit, also of a file of bytes.
    for rate in (RATE, 24000):
        whole = read_audio(path, rate)
        for seconds in (0.05, 0.3, 60.0):
            blocks = list(audio_blocks(path, rate, seconds))
            assert torch.equal(torch.cat(blocks), whole)
        assert len(blocks) == 1
        blocks = audio_blocks(io.BytesIO(path.read_bytes()), rate)
        assert torch.equal(torch.cat(list(blocks)), whole)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("name", BAD)
def test_kinds_that_are_named(make, name, capfd):
    content, reason = BAD[name]
    path = make(name, content)
    for read in (check_audio, lambda path: read_audio(path, RATE)):
        with pytest.raises(AudioError) as error:
            read(path)
        message = str(error.value)
        assert message.startswith(f"{path}: ") and reason in message
        assert "\n" not in message
    cell = cell_source({"bytes": path.read_bytes()}, "row 3")
    with pytest.raises(AudioError, match="row 3: "):
        list(audio_blocks(cell, RATE))
    assert not capfd.readouterr().err


def test_a_folder_of_all_kinds_is_read_but_for_the_bad(make, tmp_path):
    (tmp_path / "in").mkdir()
    for name, content in GOOD.items():
        make(f"in/{name}", content)
    for name, (content, _) in BAD.items():
        make(f"in/{name}", content)
    (tmp_path / "in/dangling.wav").symlink_to("nowhere")
    # Folders behind links count, once each.
    (tmp_path / "in/sub").mkdir()
    (tmp_path / "in/sub/back").symlink_to("..")
    (tmp_path / "elsewhere").mkdir()
    make("elsewhere/linked.wav", GOOD["PCM_16.wav"])
    (tmp_path / "in/sub/link").symlink_to(tmp_path / "elsewhere")
    if os.name == "posix":
        plain = os.fsencode(tmp_path / "in/PCM_16.wav")
        os.rename(plain, plain.replace(b"PCM_16", b"\xe9"))
    lengths, errors = check_files(find_audio([tmp_path / "in"]))
    assert len(lengths) == len(GOOD) + 1
    assert tmp_path / "in/sub/link/linked.wav" in lengths
    assert {path.name for path in errors} == {*BAD, "dangling.wav"}
    counts = count_reasons(errors)
    assert "2 holds several recordings end to end" in counts
    assert "1 no such file" in counts and "/" not in counts


def test_of_one_sample_and_of_hours(tmp_path):
    written(tmp_path / "one.wav", sound()[:1])
    assert check_audio(tmp_path / "one.wav") == 1 / RATE
    with soundfile.SoundFile(tmp_path / "long.flac", "w", 8000, 1) as file:
        for _ in range(120):
            file.write(np.zeros(8000 * 60))
    assert check_audio(tmp_path / "long.flac") == 7200
    assert check_audio(tmp_path / "long.flac", decode=False) == 7200
