"""Recipes as they are run: each in a process of its own, with the options of
the lists of recipes, with which a run takes seconds."""

import csv
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time

from hyperpyyaml import load_hyperpyyaml

from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipe_files import recipe_path

ROOT = pathlib.Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# SpeechBrain reads whatever lies in this folder as a list.
LISTS = sorted((ROOT / "tests/recipes").iterdir())


def rows():
    for path in LISTS:
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


ROWS = {row["Hparam_file"]: row for row in rows()}


def short_options(recipe, yaml):
    """Those of a row but for the folders."""
    row = ROWS[f"recipes/{recipe}/hparams/{yaml}.yaml"]
    flags = shlex.split(row["test_debug_flags"])
    return dict(f[2:].split("=", 1) for f in flags if "tests/tmp" not in f)


def hyperparameters(recipe, yaml="train", **options):
    """Those of a run, as the command line makes them."""
    _, *arguments = _arguments(recipe, yaml, options)
    path, _, overrides = parse_arguments(list(map(str, arguments)))
    with open(path, encoding="utf-8") as file:
        return load_hyperpyyaml(file, overrides, overrides_must_match=False)


def run(cwd, recipe, yaml="train", **options):
    """Runs a recipe in a folder, without options that are None: how it ended."""
    return run_script(cwd, *_arguments(recipe, yaml, options))


def finish(cwd, recipe, yaml="train", **options):
    """Runs a recipe, which must succeed: its results, and what it printed."""
    ended = run(cwd, recipe, yaml, **options)
    output = ended.stdout + ended.stderr
    assert ended.returncode == 0, f"{ended.returncode}: {output}"
    folder = cwd / options["output_folder"]
    return json.loads((folder / "results.json").read_text()), output


def run_script(cwd, script, yaml, *flags):
    """Runs the script of a recipe, and says how it ended."""
    options = {"cwd": cwd, "env": ENVIRONMENT, "capture_output": True}
    return subprocess.run(_command(script, yaml, *flags), text=True, **options)


def run_and_kill(cwd, recipe, yaml="train", **options):
    """Kills a recipe when it has re-initialized twice; gives its log."""
    command = _command(*_arguments(recipe, yaml, options))
    pipes = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    killed = subprocess.Popen(command, cwd=cwd, env=ENVIRONMENT, **pipes)
    folder = cwd / options["output_folder"]
    log, deadline = folder / "log.txt", time.time() + 300
    while time.time() < deadline and killed.poll() is None:
        if log.exists() and log.read_text().count(": re-initialized") > 1:
            break
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not (folder / "results.json").exists()
    return log


def _arguments(recipe, yaml, options):
    options = {**short_options(recipe, yaml), **options}
    flags = [f"--{k}={v}" for k, v in options.items() if v is not None]
    folder = recipe_path(recipe)
    return folder / "train.py", folder / f"hparams/{yaml}.yaml", *flags


def _command(script, yaml, *flags):
    return [sys.executable, str(script), str(yaml), "--noprogressbar", *flags]
