"""Properties of the corpora that minispeech_prepare makes and reads."""

import gzip
import hashlib
import logging
import math
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import soundfile as sf

from speechbrain_vq.dataio import manifests
from speechbrain_vq.recipes.MiniSpeech import espeak
from speechbrain_vq.recipes.MiniSpeech import minispeech_prepare as mini
from tests.recipe_tests.phone_corpora import read, utterances

ROOT = pathlib.Path(__file__).parents[2]
SCRIPT = ROOT / "recipes" / "MiniSpeech" / "minispeech_prepare.py"


SMALL = {"minutes": 0.1, "num_speakers": 2}


def tree(folder):
    """Digest of every file under a folder, by relative name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [path.relative_to(folder).as_posix() for path in files]
    sums = [hashlib.sha1(path.read_bytes()).hexdigest() for path in files]
    return dict(zip(names, sums, strict=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("small") / "corpus"
    return mini.prepare_minispeech(folder, **SMALL, jobs=1)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    """All the voices, a few sentences each."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("full") / "corpus"
    return mini.prepare_minispeech(folder, minutes=2)


def test_same_seed_same_bytes(small, tmp_path):
    # espeak-ng draws its noise from the time in seconds unless it is seeded.
    time.sleep(1.1)
    again = mini.prepare_minispeech(tmp_path / "again", **SMALL, jobs=3)
    assert tree(again) == tree(small)
    other = mini.prepare_minispeech(tmp_path / "other", **SMALL, seed=7)
    flac = {k: v for k, v in tree(small).items() if k.endswith(".flac")}
    assert not set(flac.values()) & set(tree(other).values())


@pytest.mark.parametrize("speaker", ["sandro", "grandma", "f1"])
def test_a_voice_depends_on_nothing_else(full, tmp_path, speaker):
    espeak._speak_apart((1234, speaker, {"test": 1}, str(tmp_path / speaker)))
    name = f"{speaker}/{speaker}-test-0000.flac"
    alone = (tmp_path / name).read_bytes()
    assert alone == (full / "audio" / name).read_bytes()


def test_splits(full):
    utts = read(full)
    texts = {s: {u["words"] for u in utts[s].values()} for s in utts}
    speakers = {s: {u["spk_id"] for u in utts[s].values()} for s in utts}
    assert not texts["test"] & (texts["train"] | texts["valid"])
    assert not texts["train"] & texts["valid"]
    assert speakers["train"] == speakers["valid"]
    assert not speakers["train"] & speakers["test"]
    assert len(speakers["train"] | speakers["test"]) == 24
    assert len(speakers["test"]) == 4


def test_seconds_audio_and_phones(full):
    utts, names = read(full), set()
    seconds = {s: sum(u["length"] for u in utts[s].values()) for s in utts}
    assert sum(seconds.values()) >= 120 and seconds["train"] >= 0.8 * 120
    for split in utts:
        for utt in utts[split].values():
            info = sf.info(utt["wav"].format(data_root=mini.data_root(full)))
            assert (info.samplerate, info.channels) == (16000, 1)
            assert info.subtype == "PCM_16"
            assert info.frames == round(utt["length"] * 16000)
            # Phones cover the utterance.
            starts, ends, phones = zip(*utt["phones"], strict=True)
            assert starts[0] == 0 and ends[-1] == utt["length"]
            assert ends[:-1] == starts[1:]
            assert all(a < b for a, b in zip(starts, ends, strict=True))
            names.update(phones)
    # The consonants of English; vowels have many espeak-ng names.
    expected = "p t k b d g tS dZ f v T D s z S Z h m n N l r w j SIL"
    assert names.issuperset(expected.split())
    assert not any(name.startswith(("'", ",", "_")) for name in names)


def stop_levels(folder):
    """dB of the first 30 ms of a stop after a vowel, against that vowel."""
    vowels = set("I V E a 3 aI u: eI oU 3: i: A: aU OI @2 i a#".split())
    levels = []
    for utt in read(folder)["train"].values():
        wave, _ = sf.read(utt["wav"].format(data_root=mini.data_root(folder)))
        for (a, b, vowel), (_, _, stop) in zip(
            utt["phones"], utt["phones"][1:], strict=False
        ):
            if vowel in vowels and stop in ("p", "t", "k", "tS"):
                a, b = round(a * 16000), round(b * 16000)
                closure = np.sqrt(np.mean(wave[b : b + 480] ** 2) + 1e-12)
                before = np.sqrt(np.mean(wave[a:b] ** 2))
                levels.append(20 * np.log10(closure / before))
    return np.array(levels)


def test_stops_begin_at_their_closure(full):
    levels = stop_levels(full)
    assert len(levels) > 30
    # Without the correction, 10 % of them are this low.
    assert np.mean(levels < -20) > 0.95


@pytest.mark.parametrize("frequency", [100, 1000, 5000, 6500, 9000])
def test_resampling_keeps_tones_and_does_not_alias(frequency):
    tone = np.sin(2 * np.pi * frequency * np.arange(22050) / 22050)
    expected = np.sin(2 * np.pi * frequency * np.arange(16000) / 16000)
    bound = 0.03
    if frequency > 8000:
        expected, bound = 0 * expected, 1e-3
    actual = espeak._resample(tone)
    assert len(actual) == 16000
    assert np.abs(actual - expected)[200:-200].max() < bound


def test_second_call_rewrites_nothing(small, tmp_path, caplog):
    before = {p: p.stat().st_mtime_ns for p in small.rglob("*")}
    mini.prepare_minispeech(small, **SMALL)
    # Nor one that would make another.
    assert mini.prepare(small, tmp_path, minutes=60) == small
    assert "used unchanged" in caplog.text
    assert {p: p.stat().st_mtime_ns for p in small.rglob("*")} == before


def test_other_parameters_remake_and_move(small, tmp_path):
    folder = mini.prepare_minispeech(tmp_path / "a", **SMALL, seed=5)
    moved = folder.rename(tmp_path / "b")
    assert mini.data_root(moved) == str(moved)
    mini.prepare_minispeech(moved, **SMALL)
    assert tree(moved) == tree(small)


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_killed_preparation_is_redone(small, tmp_path):
    folder = tmp_path / "corpus"
    code = (
        f"import sys; sys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        "from minispeech_prepare import prepare_minispeech\n"
        f"prepare_minispeech({str(folder)!r}, **{SMALL!r}, jobs=1)"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while not list(folder.rglob("*.flac")):
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not (folder / "corpus.json").exists()
    assert not (folder / "train.json").exists()
    options = {**SMALL, "make_minispeech": True}
    assert mini.prepare(folder, tmp_path / "save", **options) == folder
    shutil.rmtree(next(folder.glob(".audio.partial-*")))
    assert tree(folder) == tree(small)


@pytest.mark.parametrize("name", ["nothing/there", "."])
def test_made_only_where_it_is_asked_for(tmp_path, monkeypatch, name):
    monkeypatch.setattr(mini, "speak_all", lambda *args: 1 / 0)
    folder, save = tmp_path / "data" / name, tmp_path / "save"
    (tmp_path / "data").mkdir()
    with pytest.raises(FileNotFoundError):
        mini.prepare(folder, save, **SMALL)
    assert list(tmp_path.rglob("*")) == [tmp_path / "data"]
    with pytest.raises(ZeroDivisionError):
        mini.prepare(folder, save, **SMALL, make_minispeech=True)
    assert not save.exists()


@pytest.mark.parametrize(
    "name, value",
    [
        *(("minutes", value) for value in (0, -1, math.nan, math.inf)),
        *(("num_speakers", number) for number in (1, 25)),
    ],
)
def test_wrong_parameters(tmp_path, name, value):
    with pytest.raises(ValueError, match=name):
        mini.prepare_minispeech(tmp_path / "x", **{name: value})
    assert not (tmp_path / "x").exists()


def test_says_how_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    with pytest.raises(ImportError, match=r"speechbrain-vq\[demo\]"):
        mini.prepare_minispeech(tmp_path)


def test_never_deletes_foreign_data(tmp_path):
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio" / "mine.wav").write_bytes(b"dear")
    with pytest.raises(FileExistsError, match="empty folder"):
        mini.prepare_minispeech(tmp_path)
    assert (tmp_path / "audio" / "mine.wav").read_bytes() == b"dear"


def noise(seconds=0.5, rate=16000, channels=1):
    rng = np.random.default_rng(0)
    return rng.uniform(-0.3, 0.3, (round(seconds * rate), channels))


@pytest.fixture
def recordings(tmp_path):
    folder = tmp_path / "recordings"
    for speaker in ("ann", "bob {x}"):
        (folder / speaker).mkdir(parents=True)
        for i in range(4):
            sf.write(folder / speaker / f"{i}.wav", noise(), 16000)
    return folder


def test_audio_folder(recordings, tmp_path):
    out = mini.prepare_audio_folder(recordings, tmp_path / "out")
    utts = utterances(out)
    assert len(utts) == 8 and all(read(out).values())
    assert {u["spk_id"].format() for u in utts.values()} == {"ann", "bob {x}"}
    for utt in utts.values():
        assert utt["phones"] == [] and utt["length"] == 0.5
        assert os.path.isfile(utt["wav"].format(data_root=mini.data_root(out)))
    assert not (out / "phones.item").exists()
    before = tree(out)
    mini.prepare_audio_folder(recordings, tmp_path / "other", seed=1)
    assert tree(tmp_path / "other") != before
    sf.write(recordings / "ann" / "new.wav", noise(), 16000)
    assert len(utterances(mini.prepare_audio_folder(recordings, out))) == 9


@pytest.mark.parametrize(
    "names, speakers, origin",
    [
        ("ann/1 ann/2 bob/a/1 bob/b/2", "ann bob", "subfolders"),
        ("x/ann/1 x/ann/2 x/bob/1 x/bob/2", "ann bob", "subfolders"),
        (
            "train/ann/1 train/ann/2 dev-clean/bob/1 dev-clean/bob/2",
            "ann bob",
            "subfolders",
        ),
        ("p1_01 p1_02 p2_01 p2_02", "p1 p2", "beginnings of file names"),
        # Takes of one speaker, dates, a folder for each recording.
        ("rec_001 rec_002 rec_003", "me", ""),
        ("2024-05-01 2024-05-02 2025-01-01 2025-01-02", "me", ""),
        ("a/x b/x c/x", "me", ""),
    ],
)
def test_what_is_taken_for_a_speaker(names, speakers, origin):
    paths = [pathlib.Path(f"{name}.wav") for name in names.split()]
    of_path, from_ = mini.find_speakers(paths, "me")
    assert sorted(set(of_path.values())) == speakers.split() and from_ == origin
    assert list(of_path) == paths


@pytest.mark.parametrize("number", [1, 2, 3, 12])
def test_the_test_is_of_unseen_speakers(number, tmp_path, caplog):
    folder = tmp_path / "in"
    for speaker in range(number):
        (folder / f"s{speaker}").mkdir(parents=True)
        for i in range(6):
            sf.write(folder / f"s{speaker}" / f"{i}.wav", noise(), 16000)
    (folder / "notes.txt").touch()
    with caplog.at_level(logging.INFO):
        utts = read(mini.prepare_audio_folder(folder, tmp_path / "out"))
    by_split = {s: {u["spk_id"] for u in utts[s].values()} for s in utts}
    assert "no audio: notes.txt" in caplog.text
    assert by_split["valid"] <= by_split["train"]
    assert sum(map(len, utts.values())) == 6 * number
    if number < 3:
        assert by_split["test"] <= by_split["train"]
    else:
        assert not by_split["test"] & by_split["train"]
        assert len(by_split["test"]) == 1
        assert f"{number} speakers (the subfolders: s0, s1" in caplog.text
        unseen = ", ".join(by_split["test"])
        assert f"unseen speakers: {unseen}." in caplog.text


def test_audio_folder_keeps_odd_and_drops_broken(recordings, tmp_path, caplog):
    sf.write(recordings / "low.wav", noise(rate=8000), 8000)
    sf.write(recordings / "stereo.flac", noise(channels=2), 16000)
    sf.write(recordings / "low.ogg", noise(), 16000)
    # Of other kinds: tests/dataio/test_kinds.py
    broken = ["empty.wav", "nothing.flac", "text.mp3", "cut.opus"]
    sf.write(recordings / "empty.wav", noise(0), 16000)
    (recordings / "nothing.flac").touch()
    (recordings / "text.mp3").write_text("no sound")
    path = recordings / "cut.opus"
    sf.write(path, noise(3), 16000, format="OGG", subtype="OPUS")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with caplog.at_level(logging.WARNING):
        out = mini.prepare_audio_folder(recordings, tmp_path / "out")
    utts = utterances(out)
    assert set(utts) >= {"low", "stereo", "low_"} and len(utts) == 11
    assert utts["stereo"]["length"] == 0.5
    for name in broken:
        assert str(recordings / name) in caplog.text
    assert f"{len(broken)} of {len(broken) + 11} files" in caplog.text


def test_audio_folder_with_nothing_left(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.wav").touch()
    with pytest.raises(ValueError, match=str(tmp_path / "in")):
        mini.prepare_audio_folder(tmp_path / "in", tmp_path / "out")
    assert not (tmp_path / "out" / "train.json").exists()


@pytest.fixture
def shared(tmp_path):
    folder = tmp_path / "shared"
    utts = ["utt\tspeaker\tlang\tseconds\talign_loglik\tsplit\ttext"]
    phones = ["utt\tspeaker\tstart\tend\tphone\tword"]
    for i, split in enumerate(("train", "train", "valid", "test")):
        lang = "fr" if i == 1 else "en"
        utts.append(f'u{i}\ts{i}\t{lang}\t0.5\t-1\t{split}\tsay "{{a}}')
        for k, name in enumerate(("SIL", "B", "AA", "B")):
            start, end = k / 8, (k + 1) / 8
            phones.append(f"u{i}\ts{i}\t{start}\t{end}\t{name}\t0")
        (folder / "audio" / f"s{i}").mkdir(parents=True)
        sf.write(folder / "audio" / f"s{i}" / f"u{i}.ogg", noise(), 16000)
    (folder / "utts.tsv").write_text("\n".join(utts) + "\n", "utf-8")
    with gzip.open(folder / "phones.tsv.gz", "wt", encoding="utf-8") as out:
        out.write("\n".join(phones) + "\n")
    return folder


def test_shared(shared, tmp_path):
    out = mini.prepare(shared, tmp_path / "out")
    utts = read(out)
    assert list(map(list, utts.values())) == [["u0", "u1"], ["u2"], ["u3"]]
    utt = utts["test"]["u3"]
    assert utt["words"].format() == 'say "{a}'
    assert utt["phones"][1] == [0.125, 0.25, "B"]
    assert sf.info(utt["wav"].format(data_root=mini.data_root(out))).frames
    _, *items = (out / "phones.item").read_text().splitlines()
    assert items == ["u3 0.125 0.5 AA B B s3"]
    fr = mini.prepare_shared(shared, tmp_path / "fr", languages=["fr"])
    assert list(utterances(fr)) == ["u1"]
    with pytest.raises(FileNotFoundError, match="no audio .* in de"):
        mini.prepare_shared(shared, tmp_path / "de", languages=["de"])


def test_shared_without_a_file(shared, tmp_path, caplog):
    (shared / "audio" / "s0" / "u0.ogg").unlink()
    out = mini.prepare_shared(shared, tmp_path / "out")
    assert list(read(out)["train"]) == ["u1"]
    assert "u0.ogg: there is no such file" in caplog.text


def test_prepare_finds_out_what_is_there(recordings, tmp_path):
    # MiniSpeech is made of no recordings.
    out = mini.prepare(recordings, tmp_path / "out", make_minispeech=True)
    assert manifests.read_corpus(out)["corpus"] == "audio"
    assert mini.prepare(out, tmp_path / "unused") == out
    assert not (tmp_path / "unused").exists()
    odd = tmp_path / "odd"
    odd.mkdir()
    (odd / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match="notes.txt.*expected"):
        mini.prepare(odd, tmp_path / "unused")
