"""VCTK is prepared in both of its layouts, and what is wrong is said."""

import logging
import pathlib

import pytest
from ruamel.yaml import YAML

import speechbrain_vq.recipes.FestvoxRu.festvoxru_prepare as festvoxru
import speechbrain_vq.recipes.LibriSpeech.librispeech_prepare as librispeech
import speechbrain_vq.recipes.VCTK.vctk_prepare as vctk
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import data_root
from speechbrain_vq.recipes.VCTK.vctk_prepare import _normalize, prepare
from tests.recipe_tests.phone_corpora import read, write
from tests.recipe_tests.vctk_corpus import (
    RATE,
    SPEAKERS,
    sentence,
    vctk_080,
    vctk_092,
)

OPTIONS = {"unseen_speakers": 2, "valid_fraction": 0.2, "test_fraction": 0.3}


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "VCTK-Corpus-0.92", vctk_092())


def test_what_is_in_the_manifests(corpus, tmp_path, caplog):
    folder = prepare(corpus, tmp_path / "out", **OPTIONS)
    manifests = read(folder)
    for items in manifests.values():
        for name, item in items.items():
            speaker, number = name.split("_")
            index = int(number) - 1
            assert item["spk_id"] == speaker and item["lang"] == "en"
            about = SPEAKERS[speaker][1]
            assert item["gender"] == ("F" if " F " in about else "M")
            said = "" if speaker == "p315" else sentence(speaker, index)
            assert item["words"] == said
            wav = item["wav"].format(data_root=data_root(folder))
            assert wav.endswith(f"{name}_mic1.flac")
            audio = read_audio(wav, RATE)
            assert item["length"] == pytest.approx(len(audio) / RATE)
    assert "Without texts are some of p315" in caplog.text


def test_sentences_and_speakers_of_the_splits(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        folder = prepare(corpus, tmp_path / "out", **OPTIONS)
    manifests = read(folder)
    sentences = {
        split: {_normalize(i["words"]) for i in items.values()} - {""}
        for split, items in manifests.items()
    }
    speakers = {
        split: {i["spk_id"] for i in items.values()}
        for split, items in manifests.items()
    }
    assert not sentences["train"] & sentences["valid"]
    assert not (sentences["train"] | sentences["valid"]) & sentences["test"]
    unseen = set(SPEAKERS) - speakers["train"]
    assert len(unseen) == 2
    assert speakers["valid"] <= speakers["train"]
    assert unseen <= speakers["test"]
    line = next(m for m in caplog.messages if m.startswith("In test only"))
    assert all(speaker in line for speaker in unseen)
    # All is somewhere but what the message counts.
    number = sum(len(items) for items in manifests.values())
    assert f"{12 * len(SPEAKERS) - number} of their" in line


def test_the_same_seed_gives_the_same_splits(corpus, tmp_path):
    one, two, other = (
        read(prepare(corpus, tmp_path / name, seed=seed, **OPTIONS))
        for name, seed in (("1", 1), ("2", 1), ("3", 2))
    )
    assert one == two != other


def test_both_versions_and_the_folder_they_are_in(tmp_path, corpus):
    old = write(tmp_path / "old", vctk_080())
    names = {}
    for source, kind in ((old, "wav"), (corpus.parent, "flac")):
        folder = prepare(source, tmp_path / f"out-{kind}", **OPTIONS)
        items = {
            k: v for part in read(folder).values() for k, v in part.items()
        }
        assert all(v["wav"].endswith(kind) for v in items.values())
        names[kind] = {v["spk_id"]: v["gender"] for v in items.values()}
    assert names["flac"] == names["wav"] | {"p280": "F", "s5": "F"}
    assert names["wav"]["p280"] == "" and names["wav"]["p225"] == "F"


def test_the_other_microphone(corpus, tmp_path):
    folder = prepare(corpus, tmp_path / "out", mic="mic2", **OPTIONS)
    items = {k: v for part in read(folder).values() for k, v in part.items()}
    assert {v["spk_id"] for v in items.values()} == set(SPEAKERS) - {"p280"}
    assert all(v["wav"].endswith("_mic2.flac") for v in items.values())
    with pytest.raises(ValueError, match="mic is 'mic1' or 'mic2', not 'mic3'"):
        prepare(corpus, tmp_path / "out", mic="mic3")


def test_it_is_done_once_and_anew_where_the_corpus_changes(corpus, tmp_path):
    folder = prepare(corpus, tmp_path / "out", **OPTIONS)
    before = (folder / "train.json").stat().st_mtime_ns
    prepare(corpus, folder, **OPTIONS)
    assert (folder / "train.json").stat().st_mtime_ns == before
    # Killed before the last file.
    (folder / "corpus.json").unlink()
    prepare(corpus, folder, **OPTIONS)
    assert (folder / "train.json").stat().st_mtime_ns != before
    old = read(folder)
    (corpus / "txt/p225/p225_001.txt").write_text("Another sentence.")
    prepare(corpus, folder, **OPTIONS)
    assert read(folder) != old


def test_one_sentence_written_in_several_ways():
    said = "It’s “Stella” - don’t ask.", "IT'S Stella,  don't ask"
    assert _normalize(said[0]) == _normalize(said[1]) == "it s stella don t ask"


def test_the_yamls_differ_in_the_voice_alone():
    folder = pathlib.Path(__file__).parents[2] / "recipes/VCTK"
    for kind in ("table", "ecapa"):
        path = folder / f"voice-conversion/hparams/{kind}.yaml"
        changes = YAML().load(path.read_text("utf-8"))["recipe"]
        output = changes.pop("output_folder").value
        assert output == f"results/{kind}/<preset>/<seed>"
        # Of no recording, there are no moments to give back.
        assert changes.pop("give_back") is False
        assert all("speaker" in key for key in changes)


def test_damaged_audio_is_named_and_left_out(corpus, tmp_path, caplog):
    audio = corpus / "wav48_silence_trimmed/p225"
    broken = audio / "p225_003_mic1.flac"
    broken.write_bytes(broken.read_bytes()[:2000])
    (audio / "p225_004_mic1.flac").write_bytes(b"")
    folder = prepare(
        corpus, tmp_path / "out", **OPTIONS | {"unseen_speakers": 0}
    )
    names = {name for part in read(folder).values() for name in part}
    assert len(names) == 12 * len(SPEAKERS) - 2
    assert "p225_003_mic1.flac" in caplog.text
    assert ": 2 cannot be read" in caplog.text


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("txt/", "text/", "lacks txt, which VCTK has.*datashare.ed.ac.uk"),
        ("speaker-info", "speakers", "lacks speaker-info.txt"),
        ("_silence_trimmed/", "/", "has no files such as p225/p225_001.wav"),
        ("_mic1.flac", ".flac", "has no files such as p225/p225_001_mic1.fl"),
        ("wav48_silence_trimmed", "audio", "holds .*; expected VCTK"),
    ],
)
def test_what_is_missing_is_named(old, new, message, tmp_path):
    files = {k.replace(old, new): v for k, v in vctk_092(2).items()}
    source = write(tmp_path / "data", files)
    with pytest.raises(FileNotFoundError, match=message):
        prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_no_folder_and_too_few_speakers(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        prepare(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ValueError, match="there are 7 speakers, and one at"):
        prepare(corpus, tmp_path / "out", unseen_speakers=7)


@pytest.mark.parametrize("module", [vctk, festvoxru, librispeech])
def test_manifests_are_used_as_they_are(corpus, tmp_path, module):
    """Whichever recipe they are given to."""
    folder = prepare(corpus, tmp_path / "out", **OPTIONS)
    assert module.prepare(folder, tmp_path / "unused") == folder
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("valid, test", [(0, 0.1), (0.1, 0), (0.5, 0.5)])
def test_fractions_that_leave_nothing(valid, test, corpus, tmp_path):
    with pytest.raises(ValueError, match=f"above 0, .*got {valid} and {test}"):
        prepare(
            corpus,
            tmp_path / "out",
            valid_fraction=valid,
            test_fraction=test,
        )
