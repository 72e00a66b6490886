"""The benchmark of GPUs runs where there is none, and says so."""

import subprocess
import sys

import pytest
import torch

from tests.benchmarks.scripts import FOLDER

TITLES = [
    "Codes against those of the CPU",
    "Steps over the floor `w[(x @ w.T).argmin(1)]`",
    "Precision and compilation",
    "Host synchronizations",
    "A Brain",
    "K-means of the mixture of kmeans.py",
    "Approximate search",
]


def run(*options):
    command = [sys.executable, FOLDER / "gpu.py", *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_what_to_do():
    pytest.importorskip("vector_quantize_pytorch")
    done = run()
    assert done.returncode == 1 and not done.stdout
    (line,) = done.stderr.splitlines()[-1:]
    assert "no GPU" in line and "--device=cpu --quick" in line


@pytest.mark.slow
def test_all_sections_are_measured(tmp_path):
    pytest.importorskip("vector_quantize_pytorch")
    page = tmp_path / "gpu.md"
    done = run("--device=cpu", "--quick", f"--out={page}")
    assert done.returncode == 0, done.stderr
    lines = page.read_text().splitlines()
    assert [x[3:] for x in lines if x.startswith("## ")] == TITLES
    # On the CPU, all codes are those of the CPU.
    assert "| 512 | 1.00000 | 1.00000 | 0.0e+00 |" in lines
