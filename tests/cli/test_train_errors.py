"""What is wrong with a training is said at once, in one line."""

import json
import logging
import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import soundfile
import torch

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.recipes.MiniSpeech import minispeech_prepare
from tests.commands import cli
from tests.dataio.test_atomic import locked

RECIPE = "MiniSpeech/unit-discovery"


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Runs the verb in an empty folder; the line that says what is wrong."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["speechbrain-vq"])

    def run(*arguments):
        output = cli("train", *arguments, code=1).output
        (line,) = [x for x in output.splitlines() if x.startswith("Error: ")]
        assert "Traceback" not in output
        return line

    return run


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--preset=robst"], "Did you mean 'robust'?"),
        (["--arm=robst"], "Did you mean 'robust'?"),
        (["--codebok_size=64"], "Did you mean '--codebook_size'?"),
        (["--codebook-sise=64"], "Did you mean '--codebook_size'?"),
        (["--number_of_steps=-5"], "must be an integer above 0, such as 800"),
        (["--number_of_steps=1.5"], "must be an integer"),
        (["--number_of_steps=many"], "must be an integer"),
        (["--lr=0"], "lr must be a number above 0"),
        (["--lr=1", "--lr=2"], 'found duplicate key "lr"'),
        (["--arms=robust"], "No option '--arms'. `speechbrain-vq config`"),
        (["--jitter=-1"], "jitter must be a number, 0 or more"),
        (["--vq={norm: [batch}"], "are not valid yaml"),
        (["--vq={nrom: batch}"], "Did you mean 'norm'?"),
        (["--vq={norm: bacth}"], "norm must be one of"),
        (["--vq={reinit_schedule: {warmup: soon}}"], "warmup must be"),
        (["--vq=5"], "--vq takes changes"),
        (["--device=cdua"], "The device 'cdua' cannot be used"),
        (["codebook_size=64"], "write --codebook_size=64"),
        (["other_recordings"], "Unexpected argument 'other_recordings'"),
        # Zero is a value where it makes sense.
        (
            ["--window_weight=0", "--num_workers=-1"],
            "num_workers must be an integer, 0 or more",
        ),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message, train, tmp_path):
    assert message in train(RECIPE, "--data_folder=x", *arguments)
    assert not list(tmp_path.iterdir())


def test_arguments_are_checked_without_torch(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "no.yaml").write_text("a recipe: [")
    (tmp_path / "text.yaml").write_text("words")
    code = (
        "import sys\n"
        "from speechbrain_vq.cli import main\n"
        "for arguments in (\n"
        f"    ['{RECIPE}', '--codebok_size=64', '--data_folder=x'],\n"
        f"    ['{RECIPE}'],\n"
        "    ['in', '--preset=robst'],\n"
        "    ['in', '--out=in/results'],\n"
        "    ['in', '--precision=fp17'],\n"
        "    ['in', '--config=no.yaml'],\n"
        "    ['in', '--config=text.yaml'],\n"
        "    ['in'],\n"
        "):\n"
        "    try:\n"
        "        main(['train', *arguments])\n"
        "    except SystemExit as ended:\n"
        "        assert ended.code and 'torch' not in sys.modules, arguments\n"
    )
    options = {"capture_output": True, "text": True, "check": True}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, **options)
    for part in (
        *("'--codebook_size'", "--data_folder=... is missing", "'robust'"),
        *("among the recordings in in", "invalid choice: 'fp17'"),
        "Error: no.yaml is not a yaml file: while parsing",
        "Error: text.yaml has no keys of a recipe",
        "The folder in is empty.",
    ):
        assert part in result.stderr
    assert not list((tmp_path / "in").iterdir())
    assert len(list(tmp_path.iterdir())) == 3


def test_an_error_of_a_worker_is_one_line(capsys):
    class Unreadable(torch.utils.data.IterableDataset):
        def __iter__(self):
            yield read_audio("none.wav", 16000)

    loader = torch.utils.data.DataLoader(Unreadable(), num_workers=1)
    with pytest.raises(SystemExit), clean_errors():
        next(iter(loader))
    message = "Error: none.wav: there is no such file.\n"
    assert capsys.readouterr().err == message


def test_strict_refuses_a_folder_with_a_bad_file(train, tmp_path):
    (tmp_path / "in").mkdir()
    for name, content in (("a.wav", b"none"), ("b.m4a", b"none")):
        (tmp_path / "in" / name).write_bytes(content)
    message = "2 of 2 files cannot be used: 2 cannot be read."
    assert message in train(tmp_path / "in", "--strict")


@pytest.mark.parametrize(
    "seconds, message",
    [
        ([3.0], "has too few readable audio files, 1"),
        ([3.0] * 3, "too few readable audio files, 3: at least 2"),
        ([0.01] * 4, "shorter than 0.02 s"),
    ],
)
def test_too_little_speech_is_one_line(seconds, message, train, tmp_path):
    (tmp_path / "in").mkdir()
    for number, length in enumerate(seconds):
        noise = torch.randn(round(length * 16000)).numpy() / 9
        soundfile.write(tmp_path / f"in/{number}.wav", noise, 16000)
    assert message in train("in", "--out=out")


def test_a_run_on_another_folder_keeps_its_manifests(train, tmp_path):
    corpus = tmp_path / "run/manifests/corpus.json"
    (tmp_path / "run/save/CKPT+1").mkdir(parents=True)
    corpus.parent.mkdir()
    for name in ("mine", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "others/a.wav").touch()
    corpus.write_text(json.dumps({"data_root": str(tmp_path / "mine")}))
    for split in ("train", "valid", "test"):
        corpus.with_name(f"{split}.json").write_text("{}")
    message = f"run holds a run on {tmp_path}/mine, not on others"
    assert message in train("others", "--out=run")
    assert corpus.with_name("train.json").read_text() == "{}"
    # That of a folder that was moved is gone on with.
    (tmp_path / "mine").rmdir()
    line = train("others", "--out=run")
    assert "others" in line and "holds a run" not in line


def test_a_run_keeps_its_split_whatever_the_folder_holds_later(train, tmp_path):
    recordings, manifests = tmp_path / "mine", tmp_path / "run/manifests"
    for speaker in "abcd":
        (recordings / speaker).mkdir(parents=True)
        for number in range(3):
            noise = torch.randn(16000).numpy() / 9
            path = recordings / f"{speaker}/{number}.wav"
            soundfile.write(path, noise, 16000)
    minispeech_prepare.prepare_audio_folder(recordings, manifests)
    (tmp_path / "run/save/CKPT+1").mkdir(parents=True)
    before = {p.name: p.read_bytes() for p in manifests.iterdir()}

    def go_on():
        result = cli("train", "mine", "--out=run", code=None)
        now = {p.name: p.read_bytes() for p in manifests.iterdir()}
        assert not list((tmp_path / "run").glob("tmp*"))
        return result.output, now

    # Of the same files with other times, the split is the same.
    os.utime(recordings / "a/0.wav", (1, 1))
    output, now = go_on()
    assert "not those that" not in output
    changed = {name for name in before if now[name] != before[name]}
    assert changed == {"corpus.json"}
    (unseen,) = {u["spk_id"] for u in json.loads(before["test.json"]).values()}
    shutil.move(recordings / unseen, tmp_path / "elsewhere")
    output, then = go_on()
    assert "the run in run began with: 0 are new, 3 are missing." in output
    assert then == now


def test_a_second_run_in_a_folder_is_refused(train, tmp_path):
    with locked(tmp_path / "run") as first:
        line = train(RECIPE, "--data_folder=x", "--out=run")
        assert "run is being written by another process" in line
        first.kill()
    # Nobody holds it any more; it has no recordings.
    line = train(RECIPE, "--data_folder=x", "--out=run")
    assert "is being written" not in line


@pytest.mark.parametrize(
    "error, code, message",
    [
        (KeyError("batch_size"), 1, "The key 'batch_size' is missing"),
        (ValueError("too large"), 1, "Error: too large"),
        (FileNotFoundError("no file"), 1, "Error: no file"),
        (KeyboardInterrupt(), 130, "Run the same command again to resume."),
        (None, 1, "Error: Not enough memory ("),
    ],
)
def test_errors_of_users_are_lines_with_a_code(error, code, message, capsys):
    with pytest.raises(SystemExit) as ended, clean_errors():
        if error is None:
            torch.empty(10**15)
        raise error
    assert ended.value.code == code and message in capsys.readouterr().err


def test_bugs_keep_their_traceback_and_others_with_debug():
    arguments = "--data_folder=x", "--preset=robst", "--debug"
    result = cli("train", RECIPE, *arguments, code=1)
    assert isinstance(result.exception, ValueError)
    with pytest.raises(ZeroDivisionError), clean_errors():
        print(1 / 0)


def test_nothing_is_made_where_a_folder_is_missing(train, tmp_path):
    (tmp_path / "my_recordings").mkdir()
    line = train(RECIPE, "--data-folder=my_recordigns", "--out=run")
    assert "Did you mean 'my_recordings'?" in line
    assert "--make_minispeech" in line
    assert not (tmp_path / "my_recordigns").exists()
    assert not list((tmp_path / "my_recordings").iterdir())


def test_the_console_is_for_users():
    from speechbrain_vq.recipes.common.loggers import ConsoleFilter

    def passes(name, level):
        record = logging.LogRecord(name, level, "", 0, "", (), None)
        return ConsoleFilter().filter(record)

    assert passes("speechbrain_vq.publish", logging.INFO)
    assert passes("speechbrain.core", logging.WARNING)
    assert not passes("speechbrain.core", logging.INFO)


@pytest.mark.skipif(os.name != "posix", reason="names are text")
def test_a_name_that_is_no_text_is_logged_in_one_line(tmp_path):
    code = (
        "import logging, sys\n"
        "from speechbrain.utils.logger import setup_logging\n"
        "from speechbrain_vq.cli.common import clean_errors\n"
        "from speechbrain_vq.dataio.audio import find_audio, usable_files\n"
        "from speechbrain_vq.presets import package_folder\n"
        "with clean_errors():\n"
        "    common = package_folder('recipes') / 'common'\n"
        "    setup_logging(common / 'console.yaml', {})\n"
        "    usable_files(find_audio(['in']))\n"
    )
    (tmp_path / "in").mkdir()
    odd = os.path.join(os.fsencode(tmp_path), b"in", b"caf\xe9.wav")
    pathlib.Path(os.fsdecode(odd)).write_bytes(b"none")
    options = {"capture_output": True, "check": True, "cwd": tmp_path}
    env = {**os.environ, "PYTHONIOENCODING": "utf-8:strict"}
    result = subprocess.run([sys.executable, "-c", code], env=env, **options)
    assert b"Logging error" not in result.stderr
    log = (tmp_path / "log.txt").read_text("utf-8")
    for text in (result.stdout.decode(), log):
        (line,) = [x for x in text.splitlines() if "Left out" in x]
        assert "caf\\udce9.wav: cannot be read" in line
