"""Audio in blocks is the audio; and what audio there is."""

import io

import pytest
import soundfile
import torch

from speechbrain_vq.dataio.audio import (
    AudioError,
    as_waveforms,
    audio_blocks,
    cell_source,
    check_audio,
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


@pytest.mark.parametrize("name, subtype", FORMATS)
@pytest.mark.parametrize("rate", [16000, 48000])
def test_blocks_are_the_whole_bit_for_bit(tmp_path, name, subtype, rate):
    path = write(tmp_path / name, rate, subtype=subtype)
    whole = read_audio(path, 16000)
    for seconds in (0.0, 0.05, 0.3, 60.0)[1:]:
        blocks = list(audio_blocks(path, 16000, seconds))
        assert torch.equal(torch.cat(blocks), whole)
    assert len(blocks) == 1


@pytest.mark.parametrize("rate", [8000, 11025, 22050, 44100, 12345])
@pytest.mark.parametrize("expected", [16000, 24000])
def test_resampled_blocks_are_the_whole(tmp_path, rate, expected):
    path = write(tmp_path / "a.flac", rate, 1.937)
    whole = read_audio(path, expected)
    blocks = list(audio_blocks(path, expected, 0.1))
    assert torch.equal(torch.cat(blocks), whole)


def test_the_file_of_bytes(tmp_path):
    path = write(tmp_path / "a.flac", 16000)
    data = io.BytesIO(path.read_bytes())
    blocks = torch.cat(list(audio_blocks(data, 16000)))
    assert torch.equal(blocks, read_audio(path, 16000))
    with pytest.raises(AudioError, match="row 3: cannot be read"):
        list(audio_blocks(cell_source({"bytes": b"none"}, "row 3"), 16000))


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
    with pytest.raises(FileNotFoundError, match="no audio files in"):
        find_audio([tmp_path / "deep" / "none" / ".."][:0])


@pytest.mark.parametrize("tag", [b"TAG" + bytes(125), b"APETAGEX" + bytes(99)])
def test_tags_are_no_second_recording(tmp_path, tag):
    path = write(tmp_path / "a.mp3", 16000)
    whole = read_audio(path, 16000)
    head = b"ID3\4\0\0" + bytes([0, 0, 1, 0]) + bytes(128)
    path.write_bytes(head + path.read_bytes() + tag)
    assert torch.equal(read_audio(path, 16000), whole)


def test_a_flac_of_unknown_length_is_read(tmp_path):
    path = write(tmp_path / "a.flac", 16000)
    whole = read_audio(path, 16000)
    header = bytearray(path.read_bytes())
    header[21] &= 0xF0
    header[22:26] = bytes(4)
    path.write_bytes(header)
    assert check_audio(path) == 2.0
    assert torch.equal(read_audio(path, 16000), whole)
    part = read_audio(path, 16000, duration=0.5)
    assert torch.equal(part, whole[:8000])


def test_audio_that_cannot_be_read_is_listed(tmp_path):
    (tmp_path / "talk.m4a").touch()
    (tmp_path / "folder.wav").mkdir()
    assert list(find_audio([tmp_path])) == [tmp_path / "talk.m4a"]


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
    for wavs in (expected.expand(2, 2, 3), expected[..., None]):
        with pytest.raises(ValueError, match=r"Waveforms are \[B, samples\]"):
            as_waveforms(wavs)
    for wavs in (integers.long(), expected.bool(), [[0.5]]):
        with pytest.raises(TypeError, match="Waveforms are"):
            as_waveforms(wavs)
