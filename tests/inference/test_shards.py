"""Parquet shards in one process: of files and data sets, each once, and on from
the shards that are complete."""

import io
import sys

import datasets
import pyarrow.parquet as pq
import pytest
import soundfile
import torch

from speechbrain_vq.inference import read_tokens, tokenize_to
from speechbrain_vq.inference.shards import Shard, write_shard
from tests.commands import cli

SECONDS = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.2)


def wav(seconds):
    file, noise = io.BytesIO(), torch.randn(round(16000 * seconds)) / 10
    soundfile.write(file, noise, 16000, format="WAV")
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Eight files of sound, and three of none."""
    folder = tmp_path / "speech"
    (folder / "deep").mkdir(parents=True)
    for number, seconds in enumerate(SECONDS):
        (folder / f"deep/{number}.wav").write_bytes(wav(seconds))
    (folder / "text.wav").write_text("not audio")
    (folder / "short.wav").write_bytes(wav(0.001))
    (folder / "no\udce9text.wav").write_bytes(wav(0.5))
    return folder


@pytest.fixture
def rows(tmp_path):
    """Rows of a data set: with audio inside, in a file, too short, and none."""
    (tmp_path / "alone.wav").write_bytes(wav(0.5))
    cells = [
        {"bytes": wav(0.9), "path": "a.wav"},
        {"bytes": wav(0.4), "path": None},
        {"bytes": None, "path": str(tmp_path / "alone.wav")},
        {"bytes": wav(0.001), "path": "short.wav"},
        None,
        {"bytes": b"RIFFno", "path": "bad.wav"},
        {"bytes": wav(1.4), "path": "b.wav"},
    ]
    data = {"audio": cells, "text": list("abcdefg"), "num_samples": [7] * 7}
    data["codebook_size"] = [9] * 7
    dataset = datasets.Dataset.from_dict(data)
    return dataset.cast_column("audio", datasets.Audio())


def load(output, tmp_path):
    """Rows of a folder of shards, as `datasets` loads them."""
    return datasets.load_dataset(
        "parquet", data_dir=str(output), split="train", cache_dir=tmp_path / "c"
    )


def by_path(rows):
    found = [dict(sorted(row.items())) for row in rows]
    paths = {row["path"]: row for row in found}
    assert len(paths) == len(found)
    return paths


@pytest.mark.parametrize("batch_seconds", [1.0, 2.5, 60.0])
def test_shards_have_the_rows_of_a_token_file(
    tokenizer, folder, tmp_path, batch_seconds
):
    options = {"batch_seconds": batch_seconds}
    for name, format in (("a.jsonl", "jsonl"), ("a", "parquet")):
        given = tmp_path / name, [folder], tokenizer, format
        done = tokenize_to(*given, **options)
        assert done.done == 8 + (format == "jsonl")
        assert len(done.bad) == 3 - (format == "jsonl")
    assert "not UTF-8, as data sets" in str(done.bad)
    lines = by_path(read_tokens(tmp_path / "a.jsonl"))
    del lines[str(folder / "no\udce9text.wav")]
    for line in lines.values():
        # All shards have the columns of older ones, to be loaded together.
        assert line.pop("codebook_size") == tokenizer.codebook_size
    assert by_path(load(tmp_path / "a", tmp_path)) == lines
    assert not list((tmp_path / "a").glob(".*"))


@pytest.mark.parametrize("finished", [0, 1, 3])
def test_a_run_goes_on_after_its_shards(tokenizer, folder, tmp_path, finished):
    whole, output = tmp_path / "whole", tmp_path / "some"
    options = ("parquet", False, 2.0)
    tokenize_to(whole, [folder], tokenizer, *options)
    # Killed after some shards, while a worker was writing another.
    late = output / ".tokenize-of-a-killed-run"
    late.mkdir(parents=True)
    (late / "partial").write_bytes(b"half")
    names = [path.name for path in sorted(whole.iterdir())]
    assert len(names) > 3
    for name in names[:finished]:
        (output / name).write_bytes((whole / name).read_bytes())
    before = {p: p.stat().st_mtime_ns for p in output.glob("*.parquet")}
    done = tokenize_to(output, [folder], tokenizer, *options)
    assert done.done == 8 and len(done.bad) == 3
    assert by_path(load(output, tmp_path)) == by_path(load(whole, tmp_path))
    after = {p: p.stat().st_mtime_ns for p in output.glob("*.parquet")}
    assert before.items() <= after.items()
    # Nothing is left but the bad ones, which are tried again.
    (folder / "text.wav").write_bytes(wav(0.5))
    again = tokenize_to(output, [folder], tokenizer, *options)
    assert again.done == 9 and len(again.bad) == 2
    assert len(load(output, tmp_path)) == 9


def test_a_worker_that_has_outlived_its_run_writes_nothing(
    tokenizer, folder, tmp_path
):
    target, scratch = tmp_path / "files-0.parquet", tmp_path / "scratch"
    scratch.mkdir()
    shard = Shard(target, scratch, {str(folder / "deep/0.wav"): 0.5}, 60.0)
    forward = tokenizer.mods.features.register_forward_pre_hook(
        # The next run begins while it computes.
        lambda *_: [path.unlink() for path in scratch.iterdir()]
        and scratch.rmdir()
    )
    with pytest.raises(FileNotFoundError):
        write_shard(tokenizer, shard)
    forward.remove()
    assert not target.exists()
    scratch.mkdir()
    assert write_shard(tokenizer, shard) == (1, {})
    # Done twice, it is written once.
    before = target.stat()
    assert write_shard(tokenizer, shard) == (1, {})
    after = target.stat()
    assert after.st_ino == before.st_ino
    assert after.st_mtime_ns == before.st_mtime_ns


@pytest.mark.parametrize("kind", ["file", "folder", "saved", "splits"])
def test_rows_of_a_data_set_keep_their_columns(tokenizer, rows, tmp_path, kind):
    place = tmp_path / "data"
    if kind in ("file", "folder"):
        place.mkdir()
        place = place / "x.parquet" if kind == "file" else place
        path = place if kind == "file" else place / "x.parquet"
        table = rows.cast_column("audio", datasets.Audio(decode=False))
        pq.write_table(table.data.table, path, row_group_size=3)
    elif kind == "saved":
        rows.save_to_disk(place)
    else:
        datasets.DatasetDict(train=rows).save_to_disk(place)
    output = tmp_path / "out"
    done = tokenize_to(output, [place], tokenizer, "parquet")
    found = load(output, tmp_path)
    assert found["text"][:] == ["a", "b", "c", "g"]
    assert done.done == 4 and len(done.bad) == 3
    assert {name.rpartition("#")[2] for name in done.bad} == set("345")
    assert "audio" not in found.features
    assert found["path"][0] == "a.wav" and found["path"][1].endswith("#1")
    # A column of the same name is that of the tokens.
    assert found["num_samples"][:] == [14400, 6400, 8000, 22400]
    assert found["codebook_size"][:] == [9] * 4
    plain = rows.cast_column("audio", datasets.Audio(decode=False))
    wanted = dict(zip(rows["text"][:], plain["audio"][:], strict=True))
    for row in found:
        cell = wanted[row["text"]]
        source = io.BytesIO(cell["bytes"]) if cell["bytes"] else cell["path"]
        assert row["tokens"] == tokenizer.encode_file(source).tolist()
    # Again: nothing is done, and the reasons are told.
    before = {p: p.stat().st_mtime_ns for p in output.iterdir()}
    assert tokenize_to(output, [place], tokenizer, "parquet") == done
    assert before == {p: p.stat().st_mtime_ns for p in output.iterdir()}
    with pytest.raises(ValueError, match="Name a folder as output, and --for"):
        tokenize_to(tmp_path / "a.jsonl", [place], tokenizer)


def test_bad_inputs_and_outputs_are_told(tokenizer, folder, rows, tmp_path):
    with pytest.raises(FileExistsError, match="has other files, such as"):
        tokenize_to(folder, [folder], tokenizer, "parquet", overwrite=True)
    assert (folder / "deep").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    rows.remove_columns("audio").to_parquet(foreign / "a.parquet")
    with pytest.raises(FileExistsError, match="is not a shard"):
        tokenize_to(foreign, [folder], tokenizer, "parquet", overwrite=True)
    output = tmp_path / "out"
    with pytest.raises(ValueError, match="no column 'audio'; it has text, num"):
        tokenize_to(output, [foreign], tokenizer, "parquet")
    tokenize_to(output, [folder], tokenizer, "parquet")
    tokenizer.mods.encoder.last.bias += 0.1
    # What is wrong is told before anything is removed.
    with pytest.raises(ValueError, match="no column 'audio'"):
        tokenize_to(output, [foreign], tokenizer, "parquet", overwrite=True)
    assert len(load(output, tmp_path)) == 8
    done = tokenize_to(output, [folder], tokenizer, "parquet", overwrite=True)
    assert done.done == 8
    assert set(load(output, tmp_path)["fingerprint"]) == {tokenizer.fingerprint}


def test_a_damaged_data_set_takes_no_other_with_it(tokenizer, rows, tmp_path):
    folder, output = tmp_path / "sets", tmp_path / "out"
    folder.mkdir()
    for name in "abc":
        rows.to_parquet(folder / f"{name}.parquet")
    whole = (folder / "b.parquet").read_bytes()
    (folder / "b.parquet").write_bytes(whole[:999])
    # The footer is whole, but not the pages.
    (folder / "c.parquet").write_bytes(whole[:4] + bytes(99) + whole[103:])
    done = tokenize_to(output, [folder], tokenizer, "parquet")
    whole_one = [folder / "a.parquet"]
    alone = tokenize_to(tmp_path / "one", whole_one, tokenizer, "parquet")
    assert done.done == alone.done > 0
    reasons = [why for path, why in done.bad.items() if "a.parquet" not in path]
    assert len(reasons) == 2 and all("cannot be read" in w for w in reasons)
    # Mended, they are done by the same command.
    for name in "bc":
        (folder / f"{name}.parquet").write_bytes(whole)
    again = tokenize_to(output, [folder], tokenizer, "parquet")
    assert again.done == 3 * alone.done


def test_without_ray_the_way_out_is_named(model, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    (tmp_path / "test.json").write_text("{}")
    message = "Error: The engine needs Ray: pip install 'speechbrain-vq[ray]'"
    for arguments in (
        ("tokenize", folder, "--model", model, "--out", tmp_path / "a"),
        ("evaluate", model, f"--manifest={tmp_path}/test.json"),
    ):
        done = cli(*arguments, "--engine=ray", code=1)
        assert done.output.strip().splitlines()[-1] == message
