"""The demo goes on where it was interrupted, and says what went wrong."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from speechbrain_vq.cli import main

PROGRAM = pathlib.Path(sys.executable).with_name("speechbrain-vq")
COMMAND = [PROGRAM, "demo", "--steps=104", "--minutes=6", "--json=d.json"]


def start(cwd):
    # A session of its own, so that the signal reaches it as Ctrl-C would:
    # the demo and what it has started.
    return subprocess.Popen(
        COMMAND,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, the signal is ignored by all.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ctrl_c_leaves_something_that_the_demo_takes_up_again(tmp_path):
    first = start(tmp_path)
    run = tmp_path / "results/demo/vanilla-seed1-104steps"
    deadline = time.time() + 300
    while time.time() < deadline and first.poll() is None:
        if list(run.glob("save/CKPT*")):
            break
        time.sleep(0.2)
    os.killpg(first.pid, signal.SIGINT)
    output, _ = first.communicate(timeout=120)
    assert first.returncode != 0
    assert "The same command goes on from here" in output
    assert "Traceback" not in output
    second = start(tmp_path)
    output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output
    assert "Loading a checkpoint" in (run / "log.txt").read_text()
    metrics = json.loads((tmp_path / "d.json").read_text())
    assert [one["preset"] for one in metrics["presets"]] == [
        "vanilla",
        "robust",
    ]
    # What is done is not done again, and is the same.
    third = start(tmp_path)
    output, _ = third.communicate(timeout=120)
    again = json.loads((tmp_path / "d.json").read_text())
    assert again["presets"] == metrics["presets"]
    assert again["seconds"] < metrics["seconds"]


def test_the_demo_imports_no_recipe():
    code = "import sys, speechbrain_vq.demo; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert "speechbrain_vq.recipes" not in result.stdout


def test_a_corpus_that_cannot_be_made_ends_the_demo(tmp_path, capfd):
    result = CliRunner().invoke(
        main, ["demo", "--minutes=1e400", f"--output={tmp_path}"]
    )
    assert result.exit_code == 1 and "The corpus was not made" in result.output
    assert "Error: minutes must be above 0" in capfd.readouterr().err
