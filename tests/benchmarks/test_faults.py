"""One training that is killed fifty times, while the clock jumps."""

import subprocess
import sys

import pytest

from tests.benchmarks.scripts import FOLDER

KIND = "one training, every kind of kill -9, clock jumping"


@pytest.mark.slow
def test_fifty_kills_of_one_training_lose_nothing(tmp_path):
    page = tmp_path / "faults.md"
    options = ["--tries=50", f"--kinds={KIND}", f"--out={page}"]
    subprocess.run([sys.executable, FOLDER / "faults.py", *options], check=True)
    kind, *numbers = page.read_text().splitlines()[-1].strip("| ").split(" | ")
    assert (kind, numbers) == (KIND, ["50", "50", "0"])
