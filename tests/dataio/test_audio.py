"""Audio of all kinds is read, or named with the reason."""

import json
import logging
import pathlib

import numpy as np
import pytest
import soundfile
import torch

from speechbrain_vq.dataio import dataset
from speechbrain_vq.dataio.audio import (
    AudioError,
    audio_blocks,
    find_audio,
    read_audio,
    usable_files,
)
from speechbrain_vq.dataio.dataset import random_start, read_dataset
from tests.dataio.test_kinds import unknown_length

RATE = 16000


def tone(rate, seconds=1.0, hertz=440.0):
    return np.sin(2 * np.pi * hertz * np.arange(int(rate * seconds)) / rate) / 2


@pytest.fixture
def files(tmp_path):
    """Good and bad files by name."""
    soundfile.write(tmp_path / "good.wav", tone(RATE), RATE)
    soundfile.write(tmp_path / "slow.flac", tone(8000), 8000)
    stereo = np.stack([tone(RATE), np.zeros(RATE)], axis=1)
    soundfile.write(tmp_path / "stereo.wav", stereo, RATE)
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "whole.flac", tone(RATE), RATE)
    whole = (tmp_path / "whole.flac").read_bytes()
    (tmp_path / "cut.flac").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "stream.flac").write_bytes(unknown_length(whole))
    return tmp_path


def test_other_rates_are_resampled(files):
    wav = read_audio(files / "slow.flac", RATE)
    assert len(wav) == RATE
    spectrum = torch.fft.rfft(wav).abs()
    assert int(spectrum.argmax()) == 440
    assert spectrum[441:].max() < 0.02 * spectrum.max()


@pytest.mark.parametrize(
    "name", ["good.wav", "whole.flac", "stream.flac", "stereo.wav"]
)
def test_a_piece_is_that_piece_of_the_whole(files, name):
    whole = read_audio(files / name, RATE)
    if name == "stereo.wav":
        # Channels are averaged.
        mono = read_audio(files / "good.wav", RATE)
        torch.testing.assert_close(whole, mono / 2)
    piece = read_audio(files / name, RATE, start=0.25, duration=0.5)
    assert torch.equal(piece, whole[RATE // 4 : 3 * RATE // 4])
    rest = read_audio(files / name, RATE, start=0.75, duration=9.0)
    assert torch.equal(rest, whole[3 * RATE // 4 :])


def test_a_dataset_goes_on_without_bad_files_and_tells(files, caplog):
    names = ["good.wav", "text.wav", "none.wav", "slow.flac", "cut.flac"]
    manifest = {n: {"wav": str(files / n), "length": 1} for n in names}
    (files / "m.json").write_text(json.dumps(manifest))
    with caplog.at_level(logging.WARNING):
        read = read_dataset(files, "m")
    assert sorted(read.data) == ["good.wav", "slow.flac"] and len(read) == 2
    for name in ("text.wav", "none.wav", "cut.flac"):
        assert name in caplog.text
    assert "3 of 5 files were left out: 2 cannot be read, 1 no" in caplog.text
    (files / "m.json").write_text(json.dumps({"a": manifest["none.wav"]}))
    with pytest.raises(ValueError, match="None of the 1 audio files"):
        read_dataset(files, "m")


def test_wrong_lengths_are_corrected_and_counted(files, caplog):
    items = {n: {"wav": "good.wav", "length": n / 4} for n in (3, 4, 9)}
    (files / "m.json").write_text(json.dumps(items))
    items = read_dataset(files, "m").data.values()
    assert [item["length"] for item in items] == [1.0] * 3
    (record,) = caplog.records
    assert "2 of 3 items differ from those" in record.getMessage()
    assert "9, 1.00 s instead of 2.25 s" in record.getMessage()


def test_only_audio_that_we_did_not_prepare_is_decoded_anew(files):
    path = files / "train.json"
    items = {n: {"wav": n, "length": 1} for n in ("good.wav", "flip.flac")}
    path.write_text(json.dumps(items))
    whole = bytearray((files / "whole.flac").read_bytes())
    whole[len(whole) // 2] ^= 1
    (files / "flip.flac").write_bytes(whole)
    assert list(read_dataset(files, "train").data) == ["good.wav"]
    (files / "corpus.json").write_text("{}")
    assert list(read_dataset(files, "train").data) == ["good.wav"]
    (files / "corpus.json").write_text('{"corpus": "audio"}')
    assert len(read_dataset(files, "train").data) == 2


def test_random_pieces_depend_on_name_and_epoch_alone():
    starts = [random_start(f"u{i}", 1, 5.0, 2.0) for i in range(500)]
    assert starts == [random_start(f"u{i}", 1, 5.0, 2.0) for i in range(500)]
    assert starts != [random_start(f"u{i}", 2, 5.0, 2.0) for i in range(500)]
    assert min(starts) >= 0 and max(starts) <= 3
    assert np.mean(starts) == pytest.approx(1.5, abs=0.15)
    assert random_start("u", 1, 1.0, 2.0) == 0


@pytest.mark.parametrize(
    "right, expected",
    [
        (lambda left: -left, "the channels have opposite polarity"),
        (lambda left: 0 * left, "1 of 2 channels are silent"),
        (lambda left: left / 2, None),
        (lambda left: np.roll(left, 1000), None),
    ],
)
def test_channels_that_cancel_or_are_silent_are_reported(
    right, expected, tmp_path, caplog
):
    left = np.random.default_rng(0).normal(size=RATE) / 10
    path = tmp_path / "stereo.wav"
    soundfile.write(path, np.stack([left, right(left)], 1), RATE)
    for _ in range(2):
        read_audio(path, RATE)
    if expected is None:
        assert not caplog.records
    else:
        # Of a file that is read again and again once.
        (record,) = caplog.records
        assert expected in record.message and "stereo.wav" in record.message


def test_many_warnings_of_a_kind_are_few_and_counted(tmp_path, caplog):
    left = np.random.default_rng(0).normal(size=800) / 10
    paths = [tmp_path / f"{number}.wav" for number in range(60)]
    for number, path in enumerate(paths):
        channels = [left, -left if number % 2 else 0 * left]
        soundfile.write(path, np.stack(channels, 1), RATE)
    for path in paths[:20]:
        path.write_bytes(b"RIFF")
    with caplog.at_level(logging.DEBUG, "speechbrain_vq"):
        usable_files(paths)
    shown = [r for r in caplog.records if r.levelno == logging.WARNING]
    # Ten of each of three kinds, a line for the others, and the summary.
    assert len(shown) == 3 * 11 + 1
    assert caplog.text.count(" 10 more warnings of this kind") == 3
    assert "20 of 60 files were left out" in shown[-1].message
    # None is lost for those who want to see all.
    for path in paths:
        assert str(path) in caplog.text
    caplog.clear()
    usable_files(paths[:10])
    assert len(caplog.records) == 11


def test_a_file_lost_in_training_is_silence_and_the_tenth_ends_it(
    tmp_path, caplog
):
    wav = torch.rand(8000).numpy()
    paths = [str(tmp_path / f"{i}.wav") for i in range(12)]
    for path in paths:
        soundfile.write(path, wav, 8000)
    read = dataset.TrainingReader(16000)
    assert torch.equal(read(paths[0], 1.0), read_audio(paths[0], 16000))
    for path in paths:
        pathlib.Path(path).write_bytes(b"RIFF")
    for _ in range(2):
        for path in paths[:9]:
            assert torch.equal(read(path, 1.0, 0.25, 3.0), torch.zeros(12000))
    assert caplog.text.count("replaced by silence") == 9
    with pytest.raises(AudioError, match="9.wav"):
        read(paths[9], 1.0)


def test_an_error_of_the_reader_of_blocks_stays_its_own(files):
    with pytest.raises(RuntimeError, match="mine"):
        for _ in audio_blocks(files / "good.wav", RATE, 0.1):
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
    (path,) = find_audio([tmp_path / "other"])
    assert path == tmp_path / "other/talk.m4a"
    with pytest.raises(FileNotFoundError, match="no audio files in"):
        find_audio([])
