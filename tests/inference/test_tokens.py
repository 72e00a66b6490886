"""Many files to tokens: all of them, each once, whatever happens on the way."""

import json
import multiprocessing
import os
import pathlib

import datasets
import numpy as np
import pytest
import soundfile
import torch

from speechbrain_vq import ResidualVectorQuantizer, VectorQuantizer
from speechbrain_vq.dataio.waveforms import write_waveform
from speechbrain_vq.inference import (
    reconstruct_files,
    tokenize_dataset,
    tokenize_files,
    tokenize_to,
)
from speechbrain_vq.inference.token_files import read_tokens, tokens_to_npz
from tests.commands import cli

SECONDS = {"a.wav": 0.5, "b.flac": 2.2, "deep/c.wav": 1.1, "d.wav": 0.7}


@pytest.fixture
def folder(tmp_path):
    """Four files of sound, and three of other kinds of trouble."""
    folder = tmp_path / "speech"
    (folder / "deep").mkdir(parents=True)
    for number, (name, seconds) in enumerate(SECONDS.items()):
        rate = (8000, 16000, 22050, 16000)[number]
        samples = torch.randn(round(seconds * rate), 1 + number % 2) / 10
        soundfile.write(folder / name, samples, rate)
    (folder / "text.wav").write_text("not audio")
    soundfile.write(folder / "short.wav", torch.randn(50) / 10, 16000)
    nan = torch.full((16000,), torch.nan)
    soundfile.write(folder / "nan.wav", nan, 16000, subtype="FLOAT")
    return folder


def check(lines, folder, tokenizer):
    """Check that the lines are the tokens of the four files, once each."""
    lines = list(lines)
    wanted = {str(folder / name): name for name in SECONDS}
    assert sorted(line["path"] for line in lines) == sorted(wanted)
    for line in lines:
        assert line["tokens"] == tokenizer.encode_file(line["path"]).tolist()
        seconds = SECONDS[wanted[line["path"]]]
        assert abs(line["num_samples"] - seconds * 16000) <= 1
        assert line["token_rate"] == 50 and line["sample_rate"] == 16000
        assert line["fingerprint"] == tokenizer.fingerprint
        assert line["codebook_size"] == tokenizer.codebook_size


@pytest.mark.parametrize("batch_seconds", [1.0, 2.5, 60.0])
def test_each_file_as_if_alone(build, folder, tmp_path, batch_seconds):
    tokenizer = build(VectorQuantizer(8, 32, num_codebooks=2))
    output, options = tmp_path / "a.jsonl", {"batch_seconds": batch_seconds}
    result = tokenize_to(output, [folder], tokenizer, **options)
    check(read_tokens(output), folder, tokenizer)
    assert result.done == 4
    reasons = {path.split("/")[-1]: why for path, why in result.bad.items()}
    assert reasons.keys() == {"text.wav", "short.wav", "nan.wav"}
    assert "text.wav: cannot be read" in reasons["text.wav"]
    assert "short.wav: shorter than one frame: 50 of" in reasons["short.wav"]
    assert "nan.wav: " in reasons["nan.wav"] and "NaN" in reasons["nan.wav"]


@pytest.mark.skipif(os.name != "posix", reason="names are text")
def test_a_name_that_is_no_text_ends_no_output(tokenizer, folder, tmp_path):
    names = [b"plain.wav", b"caf\xe9.wav"]
    paths = [os.fsdecode(os.path.join(os.fsencode(tmp_path), n)) for n in names]
    for path in paths:
        pathlib.Path(path).write_bytes((folder / "a.wav").read_bytes())
    for name in ("tokens.jsonl", "tokens.npz"):
        assert tokenize_to(tmp_path / name, paths, tokenizer).done == 2
        rows = list(read_tokens(tmp_path / name))
        assert sorted(row["path"] for row in rows) == sorted(paths)
        assert rows[0]["tokens"] == rows[1]["tokens"]
    # What Arrow cannot hold is named, and takes nothing else with it.
    result = tokenize_to(tmp_path / "tokens", paths, tokenizer)
    assert result.done == 1 and "is not UTF-8" in result.bad[paths[1]]
    assert datasets.load_from_disk(tmp_path / "tokens")["path"] == paths[:1]
    made = reconstruct_files(paths, tokenizer, tmp_path / "out")
    assert made.done == 2 and not made.bad
    assert names[1] in os.listdir(os.fsencode(tmp_path / "out"))
    assert reconstruct_files(paths, tokenizer, tmp_path / "out").existing == 2


def test_a_run_killed_anywhere_goes_on(tokenizer, folder, tmp_path):
    output = tmp_path / "tokens.jsonl"
    partial = tmp_path / "tokens.partial.jsonl"
    tokenize_to(output, [folder], tokenizer)
    whole = output.read_text().splitlines(keepends=True)
    path_ends = whole[0].index('", "tokens')
    cuts = [(0, n) for n in (0, 1, 9, *range(path_ends, path_ends + 12), -1)]
    for lines, cut in [*cuts, (1, 0), (2, 40), (3, -1)]:
        output.unlink()
        partial.write_text("".join(whole[:lines]) + whole[lines][:cut])
        result = tokenize_to(output, [folder], tokenizer)
        assert result.done == 4 and result.existing == lines
        assert output.read_text().splitlines(True)[:lines] == whole[:lines]
        check(read_tokens(output), folder, tokenizer)
    # Of what is there nothing is encoded.
    encoded = []
    tokenizer.mods.features.register_forward_pre_hook(
        lambda module, inputs: encoded.append(len(inputs[0]))
    )
    sound = [folder / name for name in SECONDS]
    result = tokenize_files(sound, tokenizer, output)
    assert result.done == result.existing == 4
    assert not encoded and not partial.exists()


def test_a_token_file_is_extended(tokenizer, folder, tmp_path):
    output = tmp_path / "tokens.jsonl"
    one, *others = (folder / name for name in SECONDS)
    tokenize_files([one], tokenizer, output)
    # Older versions did not write the codebook size.
    (line,) = read_tokens(output)
    del line["codebook_size"]
    first = json.dumps(line) + "\n"
    output.write_text(first)
    assert tokenize_files(others, tokenizer, output).done == 3
    assert output.read_text().startswith(first)
    earlier, *lines = read_tokens(output)
    check([lines[0] | earlier, *lines], folder, tokenizer)
    # A run that was killed while it copied the lines of the output.
    whole = output.read_text()
    (tmp_path / "tokens.partial.jsonl").write_text(first + '{"pa')
    assert tokenize_files(others, tokenizer, output).done == 3
    assert sorted(output.read_text()) == sorted(whole)


def test_tokens_of_audio_that_has_changed_are_reported(
    tokenizer, folder, tmp_path, caplog
):
    path, output = tmp_path / "a.wav", tmp_path / "tokens.jsonl"
    path.write_bytes((folder / "a.wav").read_bytes())
    os.utime(path, (1, 1))
    for changed in (False, True):
        for _ in range(2):
            assert tokenize_files([path], tokenizer, output).done == 1
        assert ("have changed since" in caplog.text) == changed
        os.utime(path, (2**31, 2**31))


@pytest.mark.parametrize("name", ["t.jsonl", "t.npz", "t"])
def test_the_old_output_stays_until_the_new_is_complete(
    tokenizer, folder, tmp_path, name
):
    output = tmp_path / name

    def files():
        paths = [output, *output.rglob("*")]
        return {p: p.read_bytes() for p in paths if p.is_file()}

    def overwrite(*paths):
        return tokenize_to(output, paths, tokenizer, overwrite=True).done

    assert overwrite(folder / "a.wav", folder / "d.wav") == 2
    before = files()
    assert overwrite(folder / "text.wav") == 0
    assert files() == before

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = tokenizer.mods.features.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        overwrite(folder)
    assert files() == before
    hook.remove()
    assert overwrite(folder / "b.flac") == 1
    after = files()
    assert after != before and len(after) == len(before)
    assert not any(b"a.wav" in content for content in after.values())


@pytest.mark.parametrize("format", ["jsonl", "npz"])
def test_no_recording_is_overwritten(tokenizer, folder, tmp_path, format):
    before, link = (folder / "a.wav").read_bytes(), tmp_path / "link"
    link.symlink_to(folder / "a.wav")
    for output in (folder / "a.wav", link):
        for overwrite in (False, True):
            with pytest.raises(ValueError, match="is one of the audio files"):
                tokenize_to(output, [folder], tokenizer, format, overwrite)
    assert (folder / "a.wav").read_bytes() == before


@pytest.mark.parametrize("name", ["t.jsonl", "t.npz", "t", "shards"])
def test_a_second_writer_is_refused(
    model, tokenizer, folder, tmp_path, monkeypatch, name
):
    output, refused = tmp_path / name, []
    encode = tokenizer.encode_batch
    format = "parquet" if name == "shards" else None

    def second(*args):
        # While the first encodes, another starts, even to overwrite.
        options = [f"--model={model}", f"--out={output}", "--device=cpu"]
        options += ["--format=parquet"] * (name == "shards")
        refused.append(cli("tokenize", folder, *options, "--overwrite", code=1))
        return encode(*args)

    monkeypatch.setattr(tokenizer, "encode_batch", second)
    given = tokenizer, format
    assert tokenize_to(output, [folder / "a.wav"], *given).done == 1
    assert "is being written by another process" in refused[0].output
    monkeypatch.undo()
    tokenize_to(output, [folder], *given, overwrite=True)
    assert not list(tmp_path.glob(".*"))


def double(key):
    def change(tokenizer):
        value = getattr(tokenizer, key)
        setattr(tokenizer.hparams, key, 2 * value)

    return change


OTHERS = {
    "fingerprint=.*, not fingerprint=": lambda t: (
        t.mods.encoder.last.bias.add_(0.1)
    ),
    "2 codebooks .* 3 codebooks": lambda t: t.use_codebooks(3),
    "precision=fp32 .*, not precision=bf16": lambda t: t.bfloat16(),
    "token_rate=50.0 .*, not token_rate=100.0": double("token_rate"),
    "sample_rate=16000 .*, not sample_rate=32000": double("sample_rate"),
}


@pytest.mark.parametrize("message", OTHERS)
@pytest.mark.parametrize("name", ["t.jsonl", "t.npz.partial.jsonl", "shards"])
def test_another_model_does_not_go_on(build, folder, tmp_path, name, message):
    tokenizer = build(ResidualVectorQuantizer(4, 8, 32))
    tokenizer.use_codebooks(2)
    output = tmp_path / name
    options = {"format": "parquet"} if name == "shards" else {}
    tokenize_to(output, [folder / "a.wav"], tokenizer, **options)
    if name == "t.jsonl":  # It may lack its last byte.
        output.write_text(output.read_text().rstrip())
    files = [p for p in (output, *output.rglob("*")) if p.is_file()]
    before = [p.read_bytes() for p in files]
    output = tmp_path / name.removesuffix(".partial.jsonl")
    OTHERS[message](tokenizer)
    with pytest.raises(ValueError, match=message):
        tokenize_to(output, [folder], tokenizer, **options)
    assert [p.read_bytes() for p in files] == before
    options["overwrite"] = True
    assert tokenize_to(output, [folder], tokenizer, **options).done == 4


@pytest.mark.parametrize(
    "text",
    ["my only notes", '{"path": "a.wav", "text": "mine"}', '{"path": "a", "te'],
)
def test_what_others_wrote_is_left_alone(
    tokenizer, folder, tmp_path, text, monkeypatch
):
    output = tmp_path / "notes.jsonl"
    output.write_text(text)
    with pytest.raises(ValueError, match="not written by `tokenize`"):
        tokenize_to(output, [folder], tokenizer)
    assert output.read_text() == text
    monkeypatch.chdir(folder)
    for output in (folder, "."):
        with pytest.raises(FileExistsError, match=f"{folder} is a folder that"):
            tokenize_to(output, [folder], tokenizer, overwrite=True)
    assert (folder / "a.wav").exists()
    with pytest.raises(ValueError, match="--format"):
        tokenize_to(tmp_path / "a.csv", [folder], tokenizer)


@pytest.mark.parametrize("books", [1, 2])
def test_an_array_file(build, folder, tmp_path, books):
    tokenizer = build(VectorQuantizer(8, 32, num_codebooks=books))
    output = tmp_path / "tokens.npz"
    tokenize_to(output, [folder], tokenizer)
    with np.load(output) as arrays:
        ends = arrays["offsets"]
        for row, path in enumerate(arrays["paths"]):
            tokens = arrays["tokens"][ends[row] : ends[row + 1]]
            assert (tokens == tokenizer.encode_file(path).numpy()).all()
        assert len(arrays["paths"]) == 4
        assert arrays["fingerprint"] == tokenizer.fingerprint
    check(read_tokens(output), folder, tokenizer)
    tokenize_to(tmp_path / "speech/a.jsonl", [folder], tokenizer)
    lines = {line["path"]: line for line in read_tokens(output)}
    for line in read_tokens(tmp_path / "speech/a.jsonl"):
        assert line == lines[line["path"]]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"speech", "tokens.npz"}


def test_a_data_set_of_files(tokenizer, folder, tmp_path):
    output = tmp_path / "tokens"
    lines = tmp_path / "tokens.partial.jsonl"
    # The run before was killed after one file.
    tokenize_files([folder / "a.wav"], tokenizer, tmp_path / "a.jsonl")
    (tmp_path / "a.jsonl").rename(lines)
    tokenize_to(output, [folder], tokenizer)
    check(datasets.load_from_disk(output), folder, tokenizer)
    assert not lines.exists()
    with pytest.raises(FileExistsError, match="exists: choose another"):
        tokenize_to(output, [folder], tokenizer)
    tokenize_to(output, [folder / "a.wav"], tokenizer, overwrite=True)
    assert len(datasets.load_from_disk(output)) == 1


def test_a_data_set_gets_tokens(build, folder, caplog):
    tokenizer = build(VectorQuantizer(8, 32, num_codebooks=2))
    paths = [str(folder / name) for name in [*SECONDS, "text.wav"]]
    data = {"audio": paths, "id": list(range(5))}
    plain = datasets.Dataset.from_dict(data)
    encoded = plain.cast_column("audio", datasets.Audio(decode=False))
    contents = [pathlib.Path(path).read_bytes() for path in paths]
    data["audio"] = [{"bytes": x, "path": None} for x in contents]
    inside = datasets.Dataset.from_dict(data)
    inside = inside.cast_column("audio", datasets.Audio())
    wanted = [tokenizer.encode_file(path).tolist() for path in paths[:4]]
    for dataset in (plain, encoded, inside):
        done = tokenize_dataset(dataset, tokenizer)
        assert done["tokens"][:] == [*wanted, None]
        assert done["id"][:] == data["id"]
        assert done.features["audio"] == dataset.features["audio"]
    empty = datasets.Dataset.from_dict({"audio": [None, data["audio"][0]]})
    empty = empty.cast_column("audio", datasets.Audio())
    assert tokenize_dataset(empty, tokenizer)["tokens"][:] == [None, wanted[0]]
    assert "No tokens for row 0: row 0: contains no audio" in caplog.text
    with pytest.raises(ValueError, match="no column 'sound'; it has audio"):
        tokenize_dataset(plain, tokenizer, audio_column="sound")
    splits = datasets.DatasetDict(train=plain)
    with pytest.raises(ValueError, match="no column 'audio'; it has train"):
        tokenize_dataset(splits, tokenizer)
    with pytest.raises(ValueError, match="already has a column 'id'"):
        tokenize_dataset(plain, tokenizer, tokens_column="id")


@pytest.mark.timeout(120)
def test_processes_of_a_data_set_do_not_wait_for_threads(tokenizer, folder):
    paths = [str(folder / name) for name in SECONDS]
    torch.set_num_threads(2)
    # Work for the threads, which a fork leaves behind.
    wanted = [tokenizer.encode_file(path).tolist() for path in paths]
    torch.randn(500, 500) @ torch.randn(500, 500)
    dataset = datasets.Dataset.from_dict({"audio": paths})
    done = tokenize_dataset(dataset, tokenizer, num_proc=2)
    loader = torch.utils.data.DataLoader(
        paths,
        batch_size=None,
        collate_fn=tokenizer.encode_file,
        num_workers=2,
        multiprocessing_context="fork",
    )
    loaded = [tokens.tolist() for tokens in loader]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        tokens = pool.map_async(tokenizer.encode_file, paths).get(60)
    assert done["tokens"][:] == loaded == wanted
    assert [part.tolist() for part in tokens] == wanted
    tokenizer.device = "cuda"
    with pytest.raises(ValueError, match="num_proc=2: .* Leave num_proc out"):
        tokenize_dataset(dataset, tokenizer, num_proc=2)


def test_files_are_written_under_their_names(tokenizer, folder, tmp_path):
    output = tmp_path / "out"
    result = reconstruct_files([folder], tokenizer, output)
    assert result.done == 4 and len(result.bad) == 3
    found = {str(p.relative_to(output)) for p in output.rglob("*.*")}
    assert found == {"a.wav", "b.wav", "deep/c.wav", "d.wav"}
    # What is there is not done again.
    assert reconstruct_files([folder], tokenizer, output).existing == 4
    # Nor is what is no audio taken for done, or replaced.
    (output / "a.wav").unlink()
    for make in (lambda p: p.write_text("mine"), os.mkdir, os.mkfifo):
        make(output / "a.wav")
        with pytest.raises(ValueError, match="made by another program"):
            reconstruct_files([folder / "a.wav"], tokenizer, output)
        place = output / "a.wav"
        place.rmdir() if place.is_dir() else place.unlink()
    (folder / "c.flac").touch()
    for names, where in (
        (["a.wav"], folder),
        (["deep", "deep/c.wav", "c.flac"], output),
    ):
        places = [folder / name for name in names]
        with pytest.raises(ValueError, match="would overwrite"):
            reconstruct_files(places, tokenizer, where)


def test_an_output_is_a_file_of_its_format(tokenizer, folder, tmp_path):
    pipe = tmp_path / "pipe.wav"
    os.mkfifo(pipe)
    with pytest.raises(FileExistsError, match="not a regular file"):
        write_waveform(pipe, torch.zeros(9), 16000, "")
    assert pipe.is_fifo()
    # A state.json alone is no data set.
    (folder / "state.json").write_text("{}")
    assert tokenize_to(tmp_path / "t.npz", [folder], tokenizer).done == 4


@pytest.mark.parametrize(
    "change, message",
    [
        ({"tokens": np.array([0, -1, 2])}, "integers from 0"),
        ({"tokens": np.array([0.5, 1, 2])}, "integers from 0"),
        ({"offsets": np.array([0, 7])}, "not in order"),
        ({"offsets": np.array([0, 2, 1, 3])}, "not in order"),
    ],
)
def test_npz_files_of_others_are_checked(tmp_path, change, message):
    row = {"path": "a.wav", "tokens": [0, 1, 2], "num_samples": 9}
    tokens_to_npz([row | {"revision": None}], tmp_path / "t.npz")
    with np.load(tmp_path / "t.npz") as file:
        arrays = dict(file)
    np.savez_compressed(tmp_path / "t.npz", **arrays | change)
    with pytest.raises(ValueError, match=f"not an npz file.*{message}"):
        list(read_tokens(tmp_path / "t.npz"))


def test_a_full_disk_is_told_and_leaves_nothing(tokenizer, folder, tmp_path):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    output = tmp_path / "out"
    # The nearest to a full disk that can be had without one.
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(OSError, match="a.wav cannot be written"):
            reconstruct_files([folder / "a.wav"], tokenizer, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(output.iterdir())


def test_the_commands(model, tokenizer, folder, tmp_path):
    output = tmp_path / "tokens.jsonl"
    options = ("--model", model, "--device", "cpu")
    done = cli("tokenize", folder, *options, "--out", output)
    assert "4 files done, 3 left out: 1 cannot be read, 1 " in done.stdout
    assert "text.wav: cannot be read" in done.stderr
    check(map(json.loads, output.read_text().splitlines()), folder, tokenizer)
    for source, code, message in (
        (folder, 1, "0 files done, 4 there already, 3 left out: "),
        (tmp_path / "run", 1, "no audio files"),
        ("missing.wav", 2, "there is no 'missing.wav'."),
    ):
        refused = *options, "--out", output, "--strict"
        assert message in cli("tokenize", source, *refused, code=code).output
    refused = *options, "--out", output, "--precision=fp16"
    assert (
        "not precision=fp16" in cli("tokenize", folder, *refused, code=1).output
    )
    command = ["reconstruct", folder / "a.wav", *options]
    for message in ("1 file done, 0 left out.", "0 files done, 1 there alr"):
        assert message in cli(*command, "--out", tmp_path / "o").stdout
    assert soundfile.info(tmp_path / "o" / "a.wav").frames == 8000
