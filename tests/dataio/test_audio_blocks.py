"""Audio in blocks is the audio; and what audio there is."""

import io

import pytest
import soundfile
import torch

from speechbrain_vq.dataio.audio import (
    as_waveforms,
    audio_blocks,
    find_audio,
    read_audio,
)

FORMATS = [
    ("a.wav", None),
    ("a.flac", None),
    ("a.ogg", "VORBIS"),
    ("a.opus", "OPUS"),
    ("a.mp3", None),
]


def write(path, rate, seconds=2.0, subtype=None):
    samples = torch.randn(round(rate * seconds), 2).cumsum(0)
    samples = samples / samples.abs().max()
    kind = "OGG" if path.suffix == ".opus" else None
    soundfile.write(path, samples, rate, subtype=subtype, format=kind)
    return path


@pytest.mark.parametrize(
    "name, subtype, rate",
    [
        *((*kind, rate) for kind in FORMATS for rate in (16000, 48000)),
        *(
            ("a.flac", None, rate)
            for rate in (8000, 11025, 12345, 22050, 44100)
        ),
    ],
)
def test_blocks_are_the_whole_bit_for_bit(tmp_path, name, subtype, rate):
    path = write(tmp_path / name, rate, 1.937, subtype)
    for expected in (16000, 24000):
        whole = read_audio(path, expected)
        for seconds in (0.05, 0.3, 60.0):
            blocks = list(audio_blocks(path, expected, seconds))
            assert torch.equal(torch.cat(blocks), whole)
        assert len(blocks) == 1
    # The file of bytes.
    blocks = audio_blocks(io.BytesIO(path.read_bytes()), expected)
    assert torch.equal(torch.cat(list(blocks)), whole)


def test_an_error_of_the_reader_of_blocks_stays_its_own(tmp_path):
    path = write(tmp_path / "a.wav", 16000)
    with pytest.raises(RuntimeError, match="mine"):
        for _ in audio_blocks(path, 16000, 0.1):
            raise RuntimeError("mine")


def test_folders_are_searched(tmp_path):
    (tmp_path / "deep" / "er").mkdir(parents=True)
    (tmp_path / ".hidden").mkdir()
    for name in ("b.WAV", "a.flac", "deep/er/c.opus", "notes.txt", "b.x"):
        (tmp_path / name).touch()
    (tmp_path / ".hidden" / "d.wav").touch()
    paths = find_audio([tmp_path, tmp_path / "b.WAV", tmp_path / "b.x"])
    names = [str(name) for name in paths.values()]
    assert names == ["a.flac", "b.WAV", "deep/er/c.opus", "b.x"]
    # What cannot be read is listed, and no folder.
    (tmp_path / "other/folder.wav").mkdir(parents=True)
    (tmp_path / "other/talk.m4a").touch()
    assert [*find_audio(str(tmp_path / "b.x"))] == [tmp_path / "b.x"]
    assert list(find_audio([tmp_path / "other"])) == [
        tmp_path / "other/talk.m4a"
    ]
    with pytest.raises(FileNotFoundError, match="no audio files in"):
        find_audio([])


def test_waveforms_of_any_shape_and_scale():
    expected = torch.tensor([[0.5, -0.25, 0.0]])
    integers = (expected[0] * 2**15).to(torch.int16)
    for wavs in (
        expected[0],
        expected,
        expected[:, None],
        expected.double(),
        expected.numpy(),
        integers,
        integers.numpy(),
    ):
        assert torch.equal(as_waveforms(wavs), expected)
    for wavs in (expected.expand(2, 2, 3), expected[..., None], expected[:0]):
        with pytest.raises(ValueError, match=r"Waveforms are \[B, samples\]"):
            as_waveforms(wavs)
    for wavs in (integers.long(), expected.bool(), [[0.5]]):
        with pytest.raises(TypeError, match="Waveforms are"):
            as_waveforms(wavs)
