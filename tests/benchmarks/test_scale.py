"""The benchmark of sizes: exponents, and lines that are measured once."""

import pytest

from tests.benchmarks.scripts import import_script


@pytest.fixture(scope="module")
def scale():
    pytest.importorskip("vector_quantize_pytorch")
    return import_script("scale")


def test_exponents_are_those_of_power_laws(scale):
    sizes = [10, 100, 1000, 4000]
    for power in (0, 0.5, 2):
        rows = [{"K": k, "seconds": 3 * k**power} for k in sizes]
        rows[0]["seconds"] += 1e3  # A constant, at small sizes.
        found = scale.exponent(rows, "K", "seconds")
        assert found == pytest.approx(power, abs=1e-6)


@pytest.mark.slow
def test_what_is_measured_is_not_measured_again(scale, tmp_path, monkeypatch):
    sizes = [8, 16, 32]
    usual = {"N": 64, "K": 64, "D": 8, "C": 1}
    axes = {
        (what, axis): [{**usual, axis: size} for size in sizes]
        for what, axis in scale.AXES
    }
    monkeypatch.setattr(scale, "AXES", axes)
    monkeypatch.setattr(scale, "CODEWORDS", sizes)
    monkeypatch.setattr(scale, "LARGE", [256])
    used = [(64, 5 / 4, None), (64, 4, 0.01)]
    monkeypatch.setattr(scale, "USED", used)
    path = tmp_path / "scale.jsonl"
    rows = scale.collect(path)
    lines = path.read_text().splitlines()
    assert len(lines) == len(rows) == 3 * len(axes) + 2 + 1 + len(used)
    # A run that was killed in its last line but two.
    path.write_text("\n".join(lines[:-2]) + "\n")
    again = scale.collect(path)
    assert again[:-2] == rows[:-2] and len(again) == len(rows)
    scale.draw(rows, tmp_path / "scale.svg")
    page = "\n".join(scale.page(rows))
    assert "| step | N | 8 | 32 |" in page and "| 256 | " in page
