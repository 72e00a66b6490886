"""Benchmark tables: which runs start, which are skipped, what is written."""

import csv
import json
import pathlib
import subprocess
import sys

import pytest

from tests.benchmarks.scripts import FOLDER, import_script

TASK = """
title: A table
recipe: MiniSpeech/unit-discovery
hparams: train.yaml
seeds: [1, 2, 3]
variants:
    - vanilla
    - wide robust: {{preset: robust, codebook_size: 64}}
columns:
    error: {{title: error, format: .2f}}
    share: {{title: share (%), format: .0f, scale: 100}}
note: Said below {title}.
"""
ERRORS = {"vanilla": [0.5, 0.1, 0.9], "wide robust": [0.2, 0.2, 0.3]}


def run(task, *arguments):
    command = [sys.executable, FOLDER / "paper_matrix.py", task, *arguments]
    pipes = {"capture_output": True, "text": True}
    return subprocess.run(command, cwd=task.parent, **pipes)


@pytest.fixture(scope="module")
def script():
    return import_script("paper_matrix")


@pytest.fixture
def ended(tmp_path, script):
    """Write a task and the results of all its runs."""
    task = tmp_path / "task.yaml"
    task.write_text(TASK.format(title="the title"))
    matrix = script.Matrix(task, pathlib.Path("results"), ())
    for variant, errors in ERRORS.items():
        for seed, error in enumerate(errors, start=1):
            output = tmp_path / matrix.output(variant, seed)
            output.mkdir(parents=True)
            result = {"steps": 7, "error": error, "share": seed / 10}
            result["versions"] = "torch 2.0" if seed == 1 else "torch 2.1"
            (output / "results.json").write_text(json.dumps(result))
            command = json.dumps(matrix.command(variant, seed))
            (output / "command.json").write_text(command)
    return task


def test_medians_and_ranges_of_the_runs(ended):
    done = run(ended, "--results=results")
    assert done.returncode == 0, done.stderr
    text = ended.with_suffix(".md").read_text()
    for part in (
        "| vanilla | 0.50 (0.10 to 0.90) | 20 (10 to 30) | 3 |",
        "| wide robust | 0.20 (0.20 to 0.30) | 20 (10 to 30) | 3 |",
        *("Said below the title.", "7 optimizer steps"),
        "torch 2.0 or torch 2.1.",
    ):
        assert part in text
    with open(ended.with_suffix(".csv"), newline="") as file:
        rows = list(csv.DictReader(file))
    for variant, errors in ERRORS.items():
        found = {r["seed"]: r for r in rows if r["variant"] == variant}
        assert {r["task"] for r in found.values()} == {"A table"}
        assert list(found) == ["1", "2", "3", "median", "least", "most"]
        spread = [sorted(errors)[1], min(errors), max(errors)]
        measured = [float(row["error"]) for row in found.values()]
        assert measured == errors + spread
        assert found["1"]["versions"] == "torch 2.0"
    assert ended.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_ranges_are_shown_unless_empty(script):
    column, found = {"format": ".1f", "scale": 10}, [{"x": 0.0}, {"x": 0.1}]
    assert script.spread(found, "x", column) == "0.5 (0.0 to 1.0)"
    # Equal in the format of the table.
    assert script.spread([{"x": 0.1}, {"x": 0.101}], "x", column) == "1.0"
    # Of several codebooks, the first is shown.
    found = [{"pnmi_codebook_1": 0.1, "pnmi_codebook_2": 0.9}, {}]
    assert script.spread(found, "pnmi", {"format": ".1f"}) == "0.1"
    assert script.spread(found, "other", column) == ""


def test_failed_writes_keep_the_old_table(script, tmp_path):
    def failing():
        yield ["half"]
        raise OSError

    page, table = tmp_path / "task.md", tmp_path / "task.csv"
    assert script.save(page, ["# Old"]) == "# Old\n"
    script.save_csv(table, [["old"]])
    with pytest.raises(UnicodeEncodeError):
        script.save(page, ["# New", "\ud800"])
    with pytest.raises(OSError):
        script.save_csv(table, failing())
    kept = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert kept == {"task.md": "# Old\n", "task.csv": "old\n"}


def test_runs_of_another_command_are_rejected(ended):
    done = run(ended, "--results=results", "--batch_size=3")
    assert done.returncode != 0
    assert "holds a run of another command" in done.stderr


@pytest.mark.slow
def test_failed_runs_may_change_their_command(tmp_path):
    task = tmp_path / "task.yaml"
    task.write_text(TASK.format(title="the title"))
    task.with_suffix(".md").write_text("Old")
    options = ("--results=results", "--only=vanilla")
    for wrong in ("--no_such_key=1", "--no_such_key=2"):
        done = run(task, *options, wrong)
        assert done.returncode != 0 and "3 runs failed" in done.stderr
        assert "another command" not in done.stderr
    assert task.with_suffix(".md").read_text() == "Old"


@pytest.mark.slow
def test_only_missing_runs_start(ended):
    folder = ended.parent / "results" / "task" / "wide robust"
    (folder / "3" / "results.json").unlink()
    (folder / "3" / "command.json").unlink()
    kept = (folder / "2" / "results.json").stat().st_mtime_ns
    # The log holds the error of a failed run; the table shows the others.
    done = run(ended, "--results=results")
    assert done.returncode != 0 and "1 runs failed" in done.stderr
    assert "data_folder" in (folder / "3" / "log.txt").read_text()
    assert (folder / "2" / "results.json").stat().st_mtime_ns == kept
    text = ended.with_suffix(".md").read_text()
    assert "| wide robust | 0.20 | 15 (10 to 20) | 2 |" in text
