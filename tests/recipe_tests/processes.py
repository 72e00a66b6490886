"""Recipes as they are run: each in a process of its own."""

import os
import signal
import subprocess
import sys
import time


def run(cwd, recipe, yaml="train", **options):
    """Runs the recipe in a folder; options that are None are left out."""
    return run_script(cwd, *_arguments(recipe, yaml, options))


def run_script(cwd, script, yaml, *flags):
    """Runs the script of a recipe, and says how it ended."""
    return subprocess.run(
        _command(script, yaml, *flags),
        cwd=cwd,
        env=_environment(),
        capture_output=True,
        text=True,
    )


def run_and_kill(cwd, message, recipe, yaml="train", **options):
    """Kills a recipe when there is a message in its log; gives the log."""
    killed = subprocess.Popen(
        _command(*_arguments(recipe, yaml, options)),
        cwd=cwd,
        env=_environment(),
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    folder = cwd / options["output_folder"]
    log, deadline = folder / "log.txt", time.time() + 300
    while time.time() < deadline and killed.poll() is None:
        if log.exists() and message in log.read_text():
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "results.json").exists()
    return log


def _arguments(recipe, yaml, options):
    flags = [f"--{k}={v}" for k, v in options.items() if v is not None]
    return recipe / "train.py", recipe / f"hparams/{yaml}.yaml", *flags


def _command(script, yaml, *flags):
    return [sys.executable, str(script), str(yaml), "--noprogressbar", *flags]


def _environment():
    return {**os.environ, "OMP_NUM_THREADS": "1"}
