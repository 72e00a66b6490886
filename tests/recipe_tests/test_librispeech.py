"""LibriSpeech is prepared from its folders or through `datasets`, and what is
wrong with either is said."""

import pytest
import torch

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import SPLITS, data_root
from speechbrain_vq.recipes.LibriSpeech.librispeech_prepare import (
    HUB_NAME,
    ON_THE_HUB,
    prepare,
)
from tests.recipe_tests.phone_corpora import (
    PHONES,
    RATE,
    librispeech_files,
    librispeech_parts,
    read,
    say,
    wav_bytes,
    write,
)
from tests.recipe_tests.processes import finish, run


def copy_of_the_hub(folder, pieces=1):
    """Parquet files with the audio's bytes, and the card that names them."""
    import pandas

    card = "---\nconfigs:\n- config_name: clean\n  data_files:\n"
    for part, utterances in librispeech_parts().items():
        split = ON_THE_HUB[part][1]
        rows = []
        for name, words in utterances:
            speaker, chapter, _ = name.split("-")
            row = {"id": name, "file": f"{name}.flac", "text": " ".join(words)}
            audio = wav_bytes(say(words), "FLAC")
            row["audio"] = {"bytes": audio, "path": row["file"]}
            row |= {"speaker_id": int(speaker), "chapter_id": int(chapter)}
            rows.append(row)
        home = folder / f"clean/{split}"
        home.mkdir(parents=True)
        for piece in range(pieces):
            size = len(rows) // pieces
            some = rows[piece * size : (piece + 1) * size]
            pandas.DataFrame(some).to_parquet(home / f"{piece:04d}.parquet")
        card += f"  - split: {split}\n    path: clean/{split}/*.parquet\n"
    (folder / "README.md").write_text(f"{card}---\n")
    return folder


def test_folders_and_datasets_give_the_same(tmp_path, lexicon):
    source = write(tmp_path / "data", librispeech_files())
    outer = prepare(source, tmp_path / "outer", lexicon)
    inner = prepare(source / "LibriSpeech", tmp_path / "inner", lexicon)
    hub = copy_of_the_hub(tmp_path / "librispeech_asr")
    loaded = prepare(hub, tmp_path / "loaded", lexicon)
    manifests = read(outer)
    assert manifests == read(inner)
    others = read(loaded)
    for split, part in zip(SPLITS, librispeech_parts().items(), strict=True):
        words_of = dict(part[1])
        assert set(manifests[split]) == set(others[split]) == set(words_of)
        for name, item in manifests[split].items():
            other = others[split][name]
            assert item["phone_names"] == other["phone_names"]
            assert item["phone_names"] == [
                phone for word in words_of[name] for phone in PHONES[word]
            ]
            assert item["spk_id"] == name.split("-")[0]
            audio, same = (
                read_audio(i["wav"].format(data_root=data_root(f)), RATE)
                for i, f in ((item, outer), (other, loaded))
            )
            assert audio.equal(same)
            assert item["length"] == pytest.approx(len(audio) / RATE)


def units(source, folder):
    """All of it, without phones."""
    return prepare(source, folder, phones=False)


def test_units_need_no_lexicon(tmp_path):
    source = write(tmp_path / "data", librispeech_files())
    hub = copy_of_the_hub(tmp_path / "librispeech_asr")
    forms = [read(units(x, tmp_path / f"of-{x.name}")) for x in (source, hub)]
    assert [len(part) for part in forms[0].values()] == [12, 4, 4]
    for split in SPLITS:
        assert forms[0][split].keys() == forms[1][split].keys()
        for item in forms[0][split].values():
            assert "phone_names" not in item and item["words"]
    with pytest.raises(ValueError, match="lexicon"):
        prepare(source, tmp_path / "phones")


@pytest.mark.parametrize("kind", ["folders", "hub"])
def test_the_first_hours_and_no_more(kind, tmp_path):
    if kind == "folders":
        source = write(tmp_path / "data", librispeech_files())
    else:
        source = copy_of_the_hub(tmp_path / "librispeech_asr")
    whole = read(units(source, tmp_path / "whole"))["train"]
    seconds = [item["length"] for item in whole.values()]
    hours = (sum(seconds[:5]) - 0.01) / 3600
    folder = prepare(source, tmp_path / "some", phones=False, hours=hours)
    manifests = read(folder)
    assert list(manifests["train"]) == list(whole)[:5]
    assert len(manifests["test"]) == 4
    if kind == "hub":
        assert len(list(folder.glob("audio/train-clean-100/*"))) == 5
    for name in ("hours", "valid_hours"):
        for wrong in (0, "abc"):
            with pytest.raises(ValueError, match=f"above 0, got '?{wrong}"):
                prepare(source, folder, phones=False, **{name: wrong})


def test_what_has_come_is_not_fetched_again(tmp_path):
    hub = copy_of_the_hub(tmp_path / "librispeech_asr", pieces=4)
    whole = read(units(hub, tmp_path / "whole"))
    lengths = [item["length"] for item in whole["train"].values()]
    hours = (sum(lengths[:7]) - 0.01) / 3600
    folder = tmp_path / "out"
    prepare(hub, folder, phones=False, hours=hours)
    notes = folder / "audio/train-clean-100.jsonl"
    assert len(notes.read_text().splitlines()) == 8
    # Killed in the middle of a line, and of a file.
    with open(notes, "a") as file:
        file.write('{"id": "100-2')
    # Two pieces are done with: if they were read again, it would be seen.
    import pandas

    for piece in sorted(hub.glob("clean/train.100/*"))[:2]:
        rows = pandas.read_parquet(piece)
        rows["audio"] = [{"bytes": b"other", "path": "x"}] * len(rows)
        rows.to_parquet(piece)
    units(hub, folder)
    assert read(folder) == whole and len(notes.read_text().splitlines()) == 13
    for path in hub.rglob("*.parquet"):
        path.write_bytes(b"")
    units(hub, folder)  # Finds it done
    # Of another source nothing is taken.
    other = copy_of_the_hub(tmp_path / "other")
    units(other, folder)
    assert str(other) in notes.read_text().splitlines()[0]
    assert read(folder) == whole


def test_an_utterance_whose_name_is_a_path_is_reported(tmp_path):
    import pandas

    hub = copy_of_the_hub(tmp_path / "hub")
    piece = next(hub.glob("clean/train.100/*"))
    rows = pandas.read_parquet(piece)
    rows["id"] = "../../../escaped"
    rows.to_parquet(piece)
    with pytest.raises(ValueError, match="is not a file name"):
        units(hub, tmp_path / "deep/out")
    assert not list(tmp_path.rglob("escaped*"))


def test_parts_may_be_chosen(tmp_path):
    files = librispeech_files().items()
    files = {k.replace("dev-clean", "dev-other"): v for k, v in files}
    source = write(tmp_path / "data", files)

    def prepared(train, valid):
        parts = {"train": train, "valid": valid}
        folder = prepare(source, tmp_path / "out", phones=False, **parts)
        return read(folder), (folder / "corpus.json").read_text()

    manifests, _ = prepared(["train-clean-100"], ["dev-other"])
    assert [len(items) for items in manifests.values()] == [12, 4, 4]
    with pytest.raises(ValueError, match="'test-clean' must be in one split"):
        prepared(["train-clean-100", "test-clean"], ["dev-other"])
    with pytest.raises(
        ValueError, match="no part 'dev-clear', only .*dev-clean"
    ):
        prepared(["train-clean-100"], ["dev-clear"])


@pytest.mark.parametrize(
    "name, message",
    [
        ("data/LibriSpeech", "no folder.*takes them from"),
        # Here a folder has the name of the data set's owner.
        (HUB_NAME, "cannot be loaded"),
    ],
)
def test_a_folder_that_is_not_there_is_named(
    name, message, tmp_path, no_waiting, monkeypatch
):
    (tmp_path / "openslr").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        units(name, tmp_path / "out")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_reads_a_stream(tmp_path):
    hub = copy_of_the_hub(tmp_path / "librispeech_asr", pieces=4)
    options = {"data_folder": hub, "output_folder": "out", "stream": True}
    options |= {"manifest_folder": "manifests", "stream_epoch": 10}
    options |= {"number_of_steps": 20, "num_workers": 1}
    recipe = "LibriSpeech/unit-discovery"
    refused = run(tmp_path, recipe, **options)
    assert refused.returncode == 1 and "requires --hours" in refused.stderr
    finish(tmp_path, recipe, hours=0.0005, **options)
    # Some of the twelve are on disk, and all were read.
    assert len(list((tmp_path / "manifests").rglob("audio/train*/*"))) == 4
    (state,) = (tmp_path / "out/save").rglob("stream.ckpt")
    (state,) = torch.load(state)["states"]
    # The round to begin next: the last of them was begun.
    assert state["round"] == -(-20 * 4 // 12)
