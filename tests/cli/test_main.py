"""Each verb starts at once, explains its options and names what is wrong."""

import ast
import pathlib
import subprocess
import sys

import click
import pytest

from speechbrain_vq.cli import main
from speechbrain_vq.cli.common import INTERRUPTED
from tests.commands import MINI, cli

ROOT = pathlib.Path(__file__).parents[2]
VERBS = list(main.commands)
PIPES = {"capture_output": True, "text": True}


def test_the_verbs_are_described_in_whole_lines():
    rows = cli("--help").output.splitlines()
    rows = rows[rows.index("Commands:") + 1 :]
    assert len(rows) == len(VERBS)
    assert not [row for row in rows if row.endswith("...")]


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_says_what_it_is(verb):
    cli(verb, "--help")
    command = main.commands[verb]
    # A point within it would end the line of `--help` before the end.
    first = command.help.split("\n")[0]
    assert first.endswith(".") and "." not in first[:-1]
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help.endswith(".")
            # A noun phrase or an imperative that makes sense alone.
            first = parameter.help.split()[0]
            assert first not in ("Of", "Where", "Though", "What", "Also")


@pytest.mark.parametrize("folder", ["speechbrain_vq", "recipes"])
def test_bars_are_silent_in_pipes(folder):
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "tqdm":
                keywords = {keyword.arg for keyword in node.keywords}
                assert "disable" in keywords, f"{path}:{node.lineno}"


def test_a_closed_pipe_is_no_error():
    command = f"{sys.executable} -m speechbrain_vq list | head -1"
    result = subprocess.run(command, shell=True, check=True, **PIPES)
    assert result.stdout and not result.stderr


def test_ctrl_c_ends_the_loading_whatever_is_imported():
    code = (
        "import os, signal, time\n"
        "from speechbrain_vq.cli.common import loading\n"
        # Those of pytest in the background are ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with loading():\n"
        "    try:\n"
        "        os.kill(os.getpid(), signal.SIGINT)\n"
        "        time.sleep(9)\n"
        "    except BaseException:\n"
        "        pass\n"
        "print('went on')\n"
    )
    result = subprocess.run([sys.executable, "-c", code], **PIPES)
    assert result.returncode == 130 and not result.stdout
    assert result.stderr == f"\n{INTERRUPTED}\n"


def test_help_is_instant():
    # Without torch, whatever the machine does beside it.
    code = (
        "import sys; from speechbrain_vq.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    "arguments, hint",
    [
        (["tokenise"], "Did you mean 'tokenize'?"),
        (["train", "MiniSpeech/unit-discovery", "--data_folder="], "is empty"),
        (["tokenize", "a.wav", "--model=m", "--out="], "--out is empty"),
        (["push", "model", ""], "is empty"),
        (
            ["train", "WSJ/phone-recognition", "--hparams=training.yaml"],
            "Did you mean 'train.yaml'?",
        ),
        (["train", "WSJ/phone"], "Did you mean 'WSJ/phone-recognition'?"),
        (["train", ".", "--recipe=unit"], "Did you mean 'units'?"),
        (["train", ".", "--stpes=100"], "Did you mean '--steps'?"),
        (["train", ".", "--preset=robst"], "Did you mean 'robust'?"),
        (["train", ".", "--steps=0"], "x>=1"),
        (["train", ".", "--logger=tensorbord"], "'tensorboard'"),
        (["config", "MiniSpeech/units"], "Did you mean 'MiniSpeech/unit-"),
        (["export", ".", "--min_ky=loss"], "'--min-key'"),
        (["export", "."], "--out"),
        (["export", f"{ROOT}/hparam", "x"], f"Did you mean '{ROOT}/hparams'?"),
        (["push", f"{ROOT}/hparam", "a/b"], f"Did you mean '{ROOT}/hparams'?"),
        (["train", ".", "--data-folder=x"], "leave --data_folder out"),
        (["export", ".", "model"], "not the folder of a run"),
        (["demo", "--steps=50"], "50 is not in"),
    ],
)
def test_wrong_verbs_and_empty_arguments_are_named(arguments, hint):
    result = cli(*arguments, code=None)
    assert result.exit_code in (1, 2) and hint in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["demo", "--json"],
        ["demo", "--out"],
        ["train", "{folder}", "--out"],
        ["tokenize", "{file}", "--out"],
        ["reconstruct", "{file}", "--out"],
        ["convert", "{file}", "--target=x", "--out"],
        ["evaluate", MINI, "--manifest={file}", "--report"],
        ["evaluate", MINI, "--manifest={file}", "--out"],
        ["report", MINI, "--out"],
    ],
    ids=lambda arguments: f"{arguments[0]} {arguments[-1]}",
)
def test_output_that_cannot_be_written_is_refused_at_once(arguments, tmp_path):
    file = tmp_path / "file"
    file.touch()
    arguments = [text.format(file=file, folder=ROOT) for text in arguments]
    for folder, message in (
        (file, f"'{file}' cannot be written to (Not a directory)."),
        # Where root may write, and nobody can.
        (pathlib.Path("/proc"), "'/proc' cannot be written to"),
    ):
        if folder.exists():
            result = cli(*arguments, folder / "output", code=2)
            assert message in result.output and "Loading" not in result.output
