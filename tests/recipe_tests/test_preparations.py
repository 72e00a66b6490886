"""What the preparations of all corpora of speech have in common."""

from pathlib import Path
from typing import NamedTuple

import pytest

from speechbrain_vq.recipes.FestvoxRu import festvoxru_prepare
from speechbrain_vq.recipes.LibriSpeech import librispeech_prepare
from speechbrain_vq.recipes.VCTK import vctk_prepare
from speechbrain_vq.recipes.WSJ import wsj_prepare
from tests.recipe_tests.phone_corpora import (
    VOICE,
    festvoxru_files,
    librispeech_files,
    read,
    utterances,
    write,
    wsj_files,
)
from tests.recipe_tests.vctk_corpus import vctk_092


class Corpus(NamedTuple):
    """The files of a corpus, its preparation, and how the names of its audio
    and of its labels end."""

    files: callable
    module: object
    options: dict
    audio: str
    labels: str

    def prepare(self, source, folder):
        return self.module.prepare(source, folder, **self.options)


CORPORA = {
    "FestvoxRu": Corpus(
        lambda: festvoxru_files()[0], festvoxru_prepare, {}, ".wav", ".lab"
    ),
    "LibriSpeech": Corpus(
        *(librispeech_files, librispeech_prepare, {"phones": False}),
        *(".flac", ".trans.txt"),
    ),
    "VCTK": Corpus(
        vctk_092,
        vctk_prepare,
        {"unseen_speakers": 0, "valid_fraction": 0.2, "test_fraction": 0.3},
        "_mic1.flac",
        "p225_001.txt",
    ),
    "WSJ": Corpus(
        wsj_files, wsj_prepare, {"g2p": "builtins:list"}, ".wv1", ".dot"
    ),
}
every_corpus = pytest.mark.parametrize("corpus", CORPORA.values(), ids=CORPORA)


@every_corpus
def test_it_is_done_once_and_anew_where_the_corpus_changed(corpus, tmp_path):
    source = write(tmp_path / "in", corpus.files())
    folder = corpus.prepare(source, tmp_path / "out")
    manifests, manifest = read(folder), folder / "train.json"
    manifest.write_text("{}")
    corpus.prepare(source, folder)
    assert manifest.read_text() == "{}"
    # Killed before its end: the file that is written last is not there.
    (folder / "corpus.json").unlink()
    corpus.prepare(source, folder)
    assert read(folder) == manifests
    for ending in (corpus.audio, corpus.labels):
        manifest.write_text("{}")
        with open(next(source.rglob(f"*{ending}")), "ab") as file:
            file.write(b"\n")
        corpus.prepare(source, folder)
        assert manifest.read_text() != "{}"


@every_corpus
def test_damaged_audio_is_named_and_left_out(corpus, tmp_path, caplog):
    files = corpus.files()
    whole = corpus.prepare(write(tmp_path / "whole", files), tmp_path / "all")
    cut, empty, *_ = (name for name in files if name.endswith(corpus.audio))
    files[cut], files[empty] = files[cut][:2000], b""
    some = corpus.prepare(write(tmp_path / "bad", files), tmp_path / "some")
    names = {Path(name).name for name in (cut, empty)}
    lost = utterances(whole).keys() - utterances(some).keys()
    assert {f"{name}{corpus.audio}" for name in lost} == names
    assert all(name in caplog.text for name in names)


@pytest.mark.parametrize(
    "name, old, new, message",
    [
        # `new` is what takes the place of `old` in names; None: they go.
        ("FestvoxRu", f"{VOICE}/lab", None, "lacks lab.*apt-get download"),
        ("FestvoxRu", f"{VOICE}/wav", None, "lacks wav"),
        ("FestvoxRu", "txt.done.data", None, "lacks etc/txt.done.data"),
        ("FestvoxRu", "usr/", "other/", "apt-get download festvox-ru"),
        ("LibriSpeech", "dev-clean", None, "lacks dev-clean.*openslr.org/12"),
        ("LibriSpeech", "trans.txt", "txt", "no SPEAKER/CHAPTER/.*trans.txt"),
        ("LibriSpeech", "LibriSpeech/", "Libri/", "holds Libri; expected fold"),
        ("VCTK", "txt/", "text/", "lacks txt, which VCTK.*datashare.ed.ac.uk"),
        ("VCTK", "speaker-info", "speakers", "lacks speaker-info.txt"),
        ("VCTK", "_silence_trimmed/", "/", "no files such as p225/p225_001.w"),
        ("VCTK", "_mic1.flac", ".flac", "no files .*p225/p225_001_mic1.fl"),
        ("VCTK", "wav48_silence_trimmed", "audio", "holds .*; expected VCTK"),
        ("WSJ", "h1_p0.ndx", None, "the list of valid.*LDC93S6A"),
        ("WSJ", "440c0000.dot", None, "neither audio nor transcript.*test"),
        ("WSJ", ".wv1", None, "neither audio nor transcript.*train"),
        ("WSJ", "wsj", "timit", "no files of WSJ.*LDC93S6A"),
    ],
)
def test_what_is_missing_is_named_and_where(name, old, new, message, tmp_path):
    files = CORPORA[name].files()
    some = {
        path.replace(old, new or ""): data
        for path, data in files.items()
        if new is not None or old not in path
    }
    source = write(tmp_path / "in", some)
    with pytest.raises(FileNotFoundError, match=message):
        CORPORA[name].prepare(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@every_corpus
def test_a_folder_that_is_not_there_is_named(corpus, tmp_path):
    with pytest.raises(FileNotFoundError, match="neither|no folder") as error:
        corpus.prepare(tmp_path / "nowhere", tmp_path / "out")
    assert "nowhere" in str(error.value) and "holds" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["FestvoxRu", "LibriSpeech", "VCTK"])
def test_manifests_are_used_as_they_are(name, tmp_path):
    """Whichever recipe they are given to."""
    vctk = CORPORA["VCTK"]
    source = write(tmp_path / "in", vctk.files())
    folder = vctk.prepare(source, tmp_path / "out")
    assert CORPORA[name].prepare(folder, tmp_path / "unused") == folder
    assert not (tmp_path / "unused").exists()
