"""Manifests and corpus.json are read in any corpus; folders are listed."""

import codecs
import json

import pytest

from speechbrain_vq.dataio.items import read_items
from speechbrain_vq.dataio.manifests import (
    ManifestError,
    data_root,
    folder_contents,
    read_corpus,
    read_manifest,
)


def test_a_byte_order_mark_is_ignored(tmp_path):
    entry = {"wav": "{data_root}/a.wav", "spk_id": 3}
    contents = {"test": {"a": entry}, "corpus": {"data_root": "audio"}}
    for name, content in contents.items():
        text = codecs.BOM_UTF8 + json.dumps(content).encode()
        (tmp_path / f"{name}.json").write_bytes(text)
    (tmp_path / "phones.item").write_bytes(
        codecs.BOM_UTF8 + b"#file onset offset\na 0.0 0.1 b c d s\n"
    )
    assert read_corpus(tmp_path) == {"data_root": "audio"}
    assert data_root(tmp_path) == str(tmp_path / "audio")
    entry = read_manifest(tmp_path / "test.json")["a"]
    assert entry["wav"] == f"{tmp_path}/audio/a.wav" and entry["spk_id"] == "3"
    (item,) = read_items(tmp_path / "phones.item")
    assert item.phone == "b"


def test_the_first_names_of_a_folder_are_listed(tmp_path):
    assert folder_contents(tmp_path) == "nothing"
    for name in "edcba":
        (tmp_path / name).touch()
    assert folder_contents(tmp_path) == "a, b, c, d, e"
    (tmp_path / "f").touch()
    assert folder_contents(tmp_path) == "a, b, c, d, e, ..."
    assert folder_contents(tmp_path, "[b-e]", maximum=3) == "b, c, d, ..."


GOOD = {
    "a": {
        "wav": "{data_root}/a.wav",
        "length": 2.5,
        "spk_id": "ann",
        "phones": [[0, 0.5, "a"], [0.5, 1, "b"]],
    },
    "b": {"wav": "b.wav", "length": 1, "spk_id": 7, "words": "x {{y}}"},
}


def changed(**fields):
    return json.dumps({**GOOD, "b": {**GOOD["b"], **fields}})


@pytest.mark.parametrize(
    "content, message",
    [
        (json.dumps(GOOD)[:-20], "not a valid manifest"),
        ("", "not a valid manifest"),
        (b'{"\xe9": 1}', "in UTF-8"),
        ("{}", "it has no items"),
        ("[1, 2]", "a manifest must be an object of items by name, not a list"),
        (9999 * "[", "not a valid manifest"),
        ('{"a": {"wav": "x"}, "a": {"wav": "y"}}', "'a' is defined more than"),
        ('{"b": "b.wav"}', "item 'b': an item must be an object with fields"),
        ('{"b": {"length": 1}}', "item 'b': \"wav\" is missing; it must be"),
        (changed(wav=""), "\"wav\" is ''; it must be the path of an audio"),
        (changed(length=None), '"length" is None; it must be a number of sec'),
        (changed(length="1 s"), "\"length\" is '1 s'; it must be a number"),
        (changed(length=-1), '"length" is -1; .* a number of seconds above 0'),
        (changed(length=float("nan")), '"length" is nan'),
        (changed(words=[1]), '"words" is .1.; it must be a text'),
        (changed(spk_id=float("nan")), '"spk_id" is nan; it must be a name'),
        (changed(spk_id=[1]), '"spk_id" is .1.; it must be a name'),
        (changed(lang=["en"]), "\"lang\" is .'en'.; it must be a name"),
        (changed(phones="a b"), "\"phones\" is 'a b'; .* a list of .start, e"),
        (changed(phones=[["a", 0, 1]]), "phone 1 is .'a', 0, 1.; .* .start, e"),
        (changed(phones=[[0, 1]]), "phone 1 is .0, 1.; it must be .start, en"),
        (changed(phones=[[-1, 0, "a"]]), "phone 1 is .-1, 0, 'a'."),
        (changed(phones=[[1, 0, "a"]]), "phone 1 is .1, 0, 'a'."),
        (changed(phones=[[0, float("inf"), "a"]]), "phone 1 is .0, inf"),
        (
            changed(phones=[[0.2, 0.3, "a"], [0, 0.2, "b"]]),
            "phone 2 .'b'. is from 0 to 0.2 s, .* Sort the phones by time",
        ),
        (changed(phones=[[0, 3, "a"], [1, 2, "b"]]), "Sort the phones"),
    ],
)
def test_what_is_wrong_is_named_with_what_is_expected(
    tmp_path, content, message
):
    path = tmp_path / "train.json"
    content = content if isinstance(content, bytes) else content.encode()
    path.write_bytes(content)
    with pytest.raises(ManifestError, match=message) as error:
        read_manifest(path, needed=["length"])
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_other_labels_of_one_recording_are_counted(tmp_path, caplog):
    items = {name: {"wav": "a.wav", "spk_id": "ann"} for name in "abc"}
    items["c"]["spk_id"] = "bob"
    path = tmp_path / "train.json"
    path.write_text(json.dumps(items))
    assert len(read_manifest(path)) == 3
    (message,) = caplog.messages
    assert "1 of 3 items have other labels" in message
    assert message.endswith("same file: c")
    # Parts of a recording have their own, but are not cut out of it.
    items["c"]["start"] = 1.5
    path.write_text(json.dumps(items))
    read_manifest(path)
    _, message = caplog.messages
    assert "1 of 3 items have a start, which is not read" in message


@pytest.mark.parametrize(
    "text, message",
    [
        ("ID,wav\na,x.wav\n", '"length" is missing'),
        ("ID,duration,wav\na,x,x.wav\n", "item 'a': duration is 'x'"),
        ("ID,duration,wav\na,1,x\na,1,y\n", "'a' is defined more than once"),
        ("name,duration,wav\na,1,x.wav\n", "must have an ID"),
        ("ID,duration,wav\na,1,x.wav,y\n", "must have an ID"),
        ('ID,duration,wav\na,1,"x', "not a valid manifest"),
        ("ID,wav,wav\na,a.wav,b.wav\n", "'wav' is defined more than once"),
        ("ID,wav\n,a.wav\n", "must have an ID"),
        ("ID;wav\na;a.wav\n", "must have an ID"),
    ],
)
def test_of_csv_likewise(tmp_path, text, message):
    path = tmp_path / "train.csv"
    path.write_text(text)
    with pytest.raises(ManifestError, match=message):
        read_manifest(path, needed=["length"])


def test_json_and_csv_are_the_same(tmp_path):
    (tmp_path / "a.csv").write_text(
        "ID, duration, wav, spk_id\na, 2.5, $data_root/a.wav, ann\n"
        "b, 1, b.wav, 7\n",
        encoding="utf-8-sig",
    )
    (tmp_path / "a.json").write_text(json.dumps(GOOD))
    ours = read_manifest(tmp_path / "a.json")
    for name, item in read_manifest(tmp_path / "a.csv").items():
        # Paths are relative to the manifest.
        assert item["wav"] == f"{tmp_path}/{name}.wav"
        assert all(ours[name][key] == item[key] for key in {*item} - {"phones"})
    assert ours["b"]["words"] == "x {y}"


def test_braces_roots_and_speakers(tmp_path):
    entries = {
        "u": {"wav": "{data_root}/{{1}}.wav", "phones": [[0, 1, "{{"]]},
        "v": {"wav": "v.wav", "spk_id": 0, "gender": 1, "lang": 2},
        "w": {"wav": "w.wav", "spk_id": None, "gender": ""},
    }
    (tmp_path / "test.json").write_text(json.dumps(entries))
    (tmp_path / "corpus.json").write_text('{"data_root": "sub"}')
    for root, expected in ((None, f"{tmp_path}/sub"), ("/data", "/data")):
        items = read_manifest(tmp_path / "test.json", root)
        assert items["u"]["wav"] == f"{expected}/{{1}}.wav"
        assert items["u"]["phones"] == [[0, 1, "{"]]
    names = [items["v"][key] for key in ("spk_id", "gender", "lang")]
    assert names == ["0", "1", "2"]
    assert not items["w"]["spk_id"] and not items["w"]["gender"]


def test_labels_that_end_after_the_audio_are_counted(tmp_path, caplog):
    path = tmp_path / "train.json"
    path.write_text(changed(phones=[[0, 1.5, "a"]]))
    read_manifest(path)
    (record,) = caplog.records
    assert (
        "1 of 2 items have phones that end after the audio: b" in record.message
    )


def test_a_broken_corpus_json_is_named(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(GOOD))
    for content in ("[]", "{", '{"data_root": 5}'):
        (tmp_path / "corpus.json").write_text(content)
        with pytest.raises(ManifestError, match="corpus.json"):
            read_manifest(tmp_path / "train.json")
