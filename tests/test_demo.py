"""The demo goes on where it was interrupted, and says what went wrong."""

import contextlib
import fcntl
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.commands import cli

PROGRAM = pathlib.Path(sys.executable).with_name("speechbrain-vq")
COMMAND = [PROGRAM, "demo", "--steps=104", "--minutes=6", "--json=d.json"]


def start(cwd, stderr=subprocess.STDOUT):
    # A session of its own, so that the signal reaches it as Ctrl-C would:
    # the demo and what it has started.
    return subprocess.Popen(
        COMMAND,
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        start_new_session=True,
        # Where the tests run in the background, the signal is ignored by all.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_all(terminal):
    """Read what a process shows on its terminal, until it ends."""
    text = b""
    # Linux has an error there.
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 65536):
            text += part
    os.close(terminal)
    return text.decode()


@pytest.mark.slow
def test_ctrl_c_while_the_corpus_is_made_is_one_line(tmp_path):
    demo = start(tmp_path)
    lines = iter(demo.stdout.readline, "")
    assert next(lines).startswith("1. A recording")
    # The other process begins.
    assert any(line.startswith("2. Synthetic speech") for line in lines)
    time.sleep(0.5)
    os.killpg(demo.pid, signal.SIGINT)
    output, _ = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert output == "\nInterrupted. Run the same command again to resume.\n"


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
    assert output.count("Run the same command again to resume") == 1
    assert "Traceback" not in output
    # On a terminal.
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    second = start(tmp_path, theirs)
    os.close(theirs)
    with ThreadPoolExecutor() as pool:
        shown = pool.submit(read_all, ours)
        output, _ = second.communicate(timeout=900)
    assert second.returncode == 0, output
    # The bars move by steps, not by validations.
    assert len(set(re.findall(r"\d+/104", shown.result()))) > 20
    assert "Loading a checkpoint" in (run / "log.txt").read_text()
    assert "vanilla" in output and "robust" in output and "Next:" in output
    metrics = json.loads((tmp_path / "d.json").read_text())
    names = [one["preset"] for one in metrics["presets"]]
    assert names == ["vanilla", "robust"]
    measured = {"used_codes_percent", "perplexity", "reconstruction_error"}
    for one in metrics["presets"]:
        assert set(one) == {"preset", "pnmi", *measured}
    # What is done is not done again, and is the same.
    output, _ = start(tmp_path).communicate(timeout=120)
    again = json.loads((tmp_path / "d.json").read_text())
    assert again["presets"] == metrics["presets"]
    assert again["seconds"] < metrics["seconds"]


def test_a_corpus_that_cannot_be_made_ends_the_demo(tmp_path, capfd):
    result = cli("demo", "--minutes=1e400", f"--output={tmp_path}", code=1)
    assert "The corpus was not created" in result.output
    assert "Error: minutes must be above 0" in capfd.readouterr().err
