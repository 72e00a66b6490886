"""VCTK is prepared in both of its layouts, and what is wrong is said."""

import logging

import pytest
from ruamel.yaml import YAML

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import data_root
from speechbrain_vq.recipe_files import recipe_path
from speechbrain_vq.recipes.VCTK.vctk_prepare import _normalize, prepare
from tests.recipe_tests import vctk_corpus
from tests.recipe_tests.phone_corpora import read, utterances, write
from tests.recipe_tests.vctk_corpus import RATE, SPEAKERS, sentence

OPTIONS = {"unseen_speakers": 2, "valid_fraction": 0.2, "test_fraction": 0.3}


@pytest.fixture
def corpus(tmp_path):
    return write(tmp_path / "VCTK-Corpus-0.92", vctk_corpus.vctk_092())


def test_what_is_in_the_manifests(corpus, tmp_path):
    folder = prepare(corpus, tmp_path / "out", **OPTIONS)
    for items in read(folder).values():
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


def test_sentences_and_speakers_of_the_splits(corpus, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        folder = prepare(corpus, tmp_path / "out", **OPTIONS)
    manifests = read(folder)
    sentences, speakers = {}, {}
    for split, items in manifests.items():
        words = {_normalize(item["words"]) for item in items.values()}
        sentences[split] = words - {""}
        speakers[split] = {item["spk_id"] for item in items.values()}
    assert not sentences["train"] & sentences["valid"]
    assert not (sentences["train"] | sentences["valid"]) & sentences["test"]
    unseen = set(SPEAKERS) - speakers["train"]
    assert len(unseen) == 2 and speakers["valid"] <= speakers["train"]
    assert unseen <= speakers["test"]
    line = next(m for m in caplog.messages if m.startswith("In test only"))
    assert all(speaker in line for speaker in unseen)
    # All is somewhere but what the message counts.
    number = sum(len(items) for items in manifests.values())
    assert f"{12 * len(SPEAKERS) - number} of their" in line
    again, other = (
        read(prepare(corpus, tmp_path / str(seed), seed=seed, **OPTIONS))
        for seed in (1234, 2)
    )
    assert again == manifests != other


def test_both_versions_and_the_folder_they_are_in(tmp_path, corpus):
    old = write(tmp_path / "old", vctk_corpus.vctk_080())
    names = {}
    for source, kind in ((old, "wav"), (corpus.parent, "flac")):
        folder = prepare(source, tmp_path / f"out-{kind}", **OPTIONS)
        items = utterances(folder).values()
        assert all(item["wav"].endswith(kind) for item in items)
        names[kind] = {item["spk_id"]: item["gender"] for item in items}
    assert names["flac"] == names["wav"] | {"p280": "F", "s5": "F"}
    assert names["wav"]["p280"] == "" and names["wav"]["p225"] == "F"


def test_the_other_microphone(corpus, tmp_path):
    folder = prepare(corpus, tmp_path / "out", mic="mic2", **OPTIONS)
    items = utterances(folder).values()
    assert {item["spk_id"] for item in items} == set(SPEAKERS) - {"p280"}
    assert all(item["wav"].endswith("_mic2.flac") for item in items)


def test_one_sentence_written_in_several_ways():
    said = "It’s “Stella” - don’t ask.", "IT'S Stella,  don't ask"
    assert _normalize(said[0]) == _normalize(said[1]) == "it s stella don t ask"


def test_the_yamls_differ_in_the_voice_alone():
    for kind in ("table", "ecapa"):
        path = recipe_path(f"VCTK/voice-conversion/hparams/{kind}.yaml")
        changes = YAML().load(path.read_text("utf-8"))["recipe"]
        output = changes.pop("output_folder").value
        assert output == f"results/{kind}/<preset>/<seed>"
        # Of no recording, there are no moments to give back.
        assert changes.pop("restore_moments") is False
        assert all("speaker" in key for key in changes)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mic": "mic3"}, "no files such as p225/p225_001_mic3.flac"),
        ({"unseen_speakers": 7}, "none is left for train"),
        ({"valid_fraction": 0}, "none is left for valid"),
    ],
)
def test_options_that_leave_nothing(options, message, corpus, tmp_path):
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        prepare(corpus, tmp_path / "out", **{**OPTIONS, **options})
