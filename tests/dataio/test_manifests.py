"""Manifests and corpus.json are read in any corpus; folders are listed."""

import codecs
import json

from speechbrain_vq.dataio.manifests import (
    data_root,
    folder_contents,
    read_corpus,
    read_items,
    read_manifest,
)


def test_a_byte_order_mark_is_ignored(tmp_path):
    entry = {"wav": "{data_root}/a.wav", "spk_id": 3}
    for name, content in (
        ("test.json", {"a": entry}),
        ("corpus.json", {"data_root": "audio"}),
    ):
        text = json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8-sig")
    (tmp_path / "phones.item").write_bytes(
        codecs.BOM_UTF8 + b"#file onset offset\na 0.0 0.1 b c d s\n"
    )
    assert read_corpus(tmp_path) == {"data_root": "audio"}
    assert data_root(tmp_path) == str(tmp_path / "audio")
    found = read_manifest(tmp_path / "test.json")["a"]
    assert found["wav"] == f"{tmp_path}/audio/a.wav"
    assert found["spk_id"] == "3"
    assert [item.phone for item in read_items(tmp_path / "phones.item")] == [
        "b"
    ]


def test_the_first_names_of_a_folder_are_listed(tmp_path):
    assert folder_contents(tmp_path) == "nothing"
    for name in "edcba":
        (tmp_path / name).touch()
    assert folder_contents(tmp_path) == "a, b, c, d, e"
    (tmp_path / "f").touch()
    assert folder_contents(tmp_path) == "a, b, c, d, e, ..."
    assert folder_contents(tmp_path, "[b-e]", most=3) == "b, c, d, ..."
