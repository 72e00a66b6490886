"""The code and the tables of docs/ are right."""

import inspect
import pathlib
import re
import subprocess
import sys

import pytest

from tests.training.test_templates import SHAPES

TEXT = (pathlib.Path(__file__).parents[1] / "docs/training.md").read_text()


@pytest.mark.parametrize(
    "block", re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
)
def test_code_runs(block, tmp_path):
    subprocess.run(
        [sys.executable, "-c", block],
        cwd=tmp_path,
        check=True,
        capture_output=True,
    )


def test_table_counts_the_lines_that_change():
    rows = re.findall(r"\| (?:integration|templates)/(\S+).*?\| (\d) \|", TEXT)
    told = {name: int(lines) for name, lines in rows}
    counted = {
        re.search(r"/(\w+)", cls.__doc__)[1]: inspect.getsource(cls).count(
            "# vq"
        )
        for cls in SHAPES
    }
    assert told == counted
