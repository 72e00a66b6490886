"""festvox-ru is prepared from the package or what was unpacked of it, and what
is wrong with either is said."""

import re

import pytest
import soundfile

from speechbrain_vq.dataio.manifests import SPLITS, data_root
from speechbrain_vq.recipes.FestvoxRu.festvoxru_prepare import prepare
from tests.recipe_tests.phone_corpora import (
    RATE,
    VOICE,
    festvoxru_files,
    make_deb,
    read,
    utterances,
    write,
)

PACKAGE = "festvox-ru_0.5+dfsg-6_all.deb"


def test_the_package_and_what_was_unpacked_of_it_give_the_same(tmp_path):
    files, phones_of = festvoxru_files()
    make_deb(tmp_path / PACKAGE, files)
    packed = prepare(tmp_path / PACKAGE, tmp_path / "packed")
    # Given by the folder it is in, and compressed otherwise.
    (tmp_path / "other").mkdir()
    make_deb(tmp_path / "other" / PACKAGE, files, "data.tar.gz", "w:gz")
    other = prepare(tmp_path / "other", tmp_path / "gz")
    root = write(tmp_path / "root", files)
    unpacked = prepare(root, tmp_path / "unpacked")
    voice = prepare(root / VOICE, tmp_path / "voice")
    manifests = read(packed)
    assert manifests == read(other) == read(unpacked) == read(voice)
    # Every utterance once, whatever its split.
    names = [name for split in SPLITS for name in manifests[split]]
    assert sorted(names) == sorted(phones_of)
    assert len(manifests["train"]) > 3 * len(manifests["test"])
    for folder in (packed, other, unpacked, voice):
        for name, item in manifests["test"].items():
            path = item["wav"].format(data_root=data_root(folder))
            assert soundfile.info(path).samplerate == RATE
            starts, ends, names = zip(*item["phones"], strict=True)
            assert list(names) == ["SIL", *phones_of[name][1:-1], "SIL"]
            assert starts == (0.0, *ends[:-1])
            assert ends[-1] == pytest.approx(item["length"])
            assert "Волос" in item["words"]
    # Nothing is unpacked from a folder.
    assert not list(voice.rglob("*.wav"))


def test_a_split_does_not_depend_on_the_other_utterances(tmp_path):
    files, phones_of = festvoxru_files()
    few = {k: v for k, v in files.items() if "ru_0001." not in k or "mcep" in k}
    texts = few[f"{VOICE}/etc/txt.done.data"].splitlines(keepends=True)
    few[f"{VOICE}/etc/txt.done.data"] = b"".join(texts[1:])
    all_of_them = read(prepare(write(tmp_path / "a", files), tmp_path / "b"))
    rest = read(prepare(write(tmp_path / "c", few), tmp_path / "d"))
    for split in SPLITS:
        assert set(rest[split]) == set(all_of_them[split]) - {"ru_0001"}


def cut_short(data):
    return data[: len(data) // 2]


def zeros(data):
    middle = len(data) // 2
    return data[:middle] + bytes(100) + data[middle + 100 :]


def other(data):
    return b"<html>Not found</html>"


@pytest.mark.parametrize("harm", [cut_short, zeros, other])
def test_a_damaged_package_is_named_with_where_to_get_it(harm, tmp_path):
    package = make_deb(tmp_path / PACKAGE, festvoxru_files()[0])
    package.write_bytes(harm(package.read_bytes()))
    with pytest.raises(ValueError, match=f"{PACKAGE[:10]}.*apt-get download"):
        prepare(package, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_another_package_under_its_name_is_reported(tmp_path):
    make_deb(tmp_path / PACKAGE, {"usr/share/doc/other": b""})
    with pytest.raises(FileNotFoundError, match="apt-get download festvox-ru"):
        prepare(tmp_path / PACKAGE, tmp_path / "out")


@pytest.mark.parametrize(
    "text, message",
    [
        (b"#\n", "lasts 0.64 s, its labels end elsewhere"),
        (b"#\n0.1 a\n", "not enough values"),
        (b"#\nsoon 125 a\n", "could not convert"),
        (b"#\n0.2 125 a\n0.1 125 o\n", "ends before it starts"),
        (b"#\n9.5 125 a\n", "lasts 0.64 s, its labels end elsewhere"),
    ],
)
def test_damaged_labels_cost_their_utterance(text, message, tmp_path, caplog):
    files, phones_of = festvoxru_files()
    files[f"{VOICE}/lab/ru_0007.lab"] = text
    # Those without audio or labels are left out as well.
    del files[f"{VOICE}/wav/ru_0004.wav"], files[f"{VOICE}/lab/ru_0005.lab"]
    folder = prepare(write(tmp_path / "root", files), tmp_path / "out")
    lost = {"ru_0004", "ru_0005", "ru_0007"}
    assert set(utterances(folder)) == set(phones_of) - lost
    assert all(f"Left out {name}" in caplog.text for name in lost)
    assert re.search(f"Left out ru_0007: .*{message}", caplog.text)
