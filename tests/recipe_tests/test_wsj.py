"""WSJ is prepared from the discs of LDC, and what is wrong with them is said."""

import pytest

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import data_root
from speechbrain_vq.recipes.WSJ.wsj_prepare import clean, prepare
from tests.recipe_tests.phone_corpora import (
    LEXICON,
    PHONES,
    RATE,
    read,
    sphere,
    utterances,
    wav_bytes,
    write,
    wsj_files,
)


def merged(files):
    """wsj0 and wsj1 without the discs, as some sites have them."""
    return {"/".join(k.split("/")[2:]): v for k, v in files.items()}


def one_folder(files):
    """All discs side by side."""
    return {"/".join(k.split("/")[1:]): v for k, v in files.items()}


def by_part(files):
    """The discs in two folders that are called as what is on them."""
    return {
        k.replace("csr_1/", "wsj0/", 1).replace("csr_2_comp/", "WSJ1/", 1): v
        for k, v in files.items()
    }


def upper(files):
    return wsj_files(upper=True)


@pytest.mark.parametrize("layout", [dict, merged, one_folder, by_part, upper])
def test_all_layouts_are_read(layout, tmp_path, lexicon):
    source = write(tmp_path / "WSJ", layout(wsj_files()))
    folder = prepare(source, tmp_path / "out", lexicon)
    manifests = read(folder)
    sizes = {split: len(items) for split, items in manifests.items()}
    assert sizes == {"train": 16, "valid": 4, "test": 4}
    for items in manifests.values():
        for name, item in items.items():
            words = item["words"].split()
            # Neither [door_slam] nor the pause, and no stars.
            assert set(words) <= set(PHONES) and len(words) == 4
            assert item["phone_names"] == [
                phone for word in words for phone in PHONES[word]
            ]
            assert item["spk_id"] == name[:3]
            path = item["wav"].format(data_root=data_root(folder))
            audio = read_audio(path, RATE)
            # A phone lasts as long as the next one in the fixture.
            assert len(audio) == len(item["phone_names"]) * round(0.08 * RATE)
            assert item["length"] == pytest.approx(len(audio) / RATE)
            assert audio.abs().max() > 0.1


def test_sphere_files_may_be_called_sph(tmp_path, lexicon):
    files = wsj_files()
    other = {name.replace(".wv1", ".sph"): files[name] for name in files}
    # Of the lists, the names stay.
    other |= {name: files[name] for name in files if name.endswith(".ndx")}
    as_is, renamed = (
        read(prepare(write(tmp_path / n, f), tmp_path / f"{n}-out", lexicon))
        for n, f in (("wv1", files), ("sph", other))
    )
    for split, items in as_is.items():
        for item in items.values():
            item["wav"] = item["wav"].replace(".wv1", ".sph")
        assert renamed[split] == items


def test_wav_of_sph2pipe_is_read_beside_compressed_audio(tmp_path, lexicon):
    files = wsj_files()
    for name in [name for name in files if name.endswith(".wv1")]:
        path = tmp_path / "one.wv1"
        path.write_bytes(files[name])
        samples = (read_audio(path, RATE).numpy() * 2**15).astype("<i2")
        files[name] = sphere(samples, "pcm,embedded-shorten-v2.00")
        files[name.replace(".wv1", ".wav")] = wav_bytes(samples)
    source = write(tmp_path / "WSJ", files)
    assert len(read(prepare(source, tmp_path / "out", lexicon))["train"]) == 16
    for path in source.rglob("*.wav"):
        path.unlink()
    message = "no utterance of train is left.*shorten.*sph2pipe -p -f wav"
    with pytest.raises(ValueError, match=message):
        prepare(source, tmp_path / "out2", lexicon)
    assert not (tmp_path / "out2/train.json").exists()


def test_words_in_no_lexicon_cost_their_utterance(tmp_path, lexicon, caplog):
    source = write(tmp_path / "WSJ", wsj_files())
    lines = [x for x in LEXICON.splitlines() if not x.startswith("SEE")]
    lexicon.write_text("\n".join(lines))
    some = prepare(source, tmp_path / "out", lexicon)
    items = list(utterances(some).values())
    assert 0 < len(items) < 24
    assert not any("SEE" in item["words"].split() for item in items)
    assert f"{24 - len(items)} utterances are left out" in caplog.text
    assert "SEE (" in caplog.text
    # Another lexicon is another preparation, and g2p says what it lacks.
    given = source, tmp_path / "out", lexicon, "builtins:list"
    items = list(utterances(prepare(*given)).values())
    assert len(items) == 24
    see = next(i for i in items if i["words"].split()[0] == "SEE")
    assert see["phone_names"][:3] == ["S", "E", "E"]


@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({}, ValueError, "lexicon=FILE.*g2p=module:function"),
        ({"lexicon": "no.dict"}, FileNotFoundError, "no lexicon no.dict"),
        ({"g2p": "no_such:thing"}, ValueError, "no_such"),
    ],
)
def test_without_phones_nothing_starts(options, kind, message, tmp_path):
    source = write(tmp_path / "WSJ", wsj_files())
    with pytest.raises(kind, match=message):
        prepare(source, tmp_path / "out", **options)


@pytest.mark.parametrize(
    "text, words",
    [
        ("THE MR. SMITH'S <YES> *NO*", "THE MR. SMITH'S YES NO"),
        ('\\"DOUBLE-QUOTE HI !THERE', '"DOUBLE-QUOTE HI THERE'),
        ("LO:NG :COLON [loud_breath] -- ~", "LONG :COLON"),
        (". A . B .PERIOD", "A B .PERIOD"),
    ],
)
def test_marks_of_the_transcribers_are_not_words(text, words):
    assert clean(text) == words
