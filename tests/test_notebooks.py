"""The notebooks of docs/ run, and what is committed of them is clean."""

import json
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).parents[1] / "docs/notebooks"
PATHS = sorted(FOLDER.glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", PATHS, ids=lambda p: p.stem)


@pytest.mark.slow
@every_notebook
def test_a_notebook_runs(path, tmp_path):
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=240, resources=where).execute()


@every_notebook
def test_committed_output_is_clean(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < 500_000 and "/home/" not in text and "/tmp/" not in text
    for cell in json.loads(text)["cells"]:
        for output in cell.get("outputs", ()):
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"


@every_notebook
def test_links_of_a_notebook_lead_to_pages(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    links = [
        link
        for cell in cells
        if cell["cell_type"] == "markdown"
        for link in re.findall(r"\]\(([^)#]+)", "".join(cell["source"]))
    ]
    assert links and all((FOLDER / link).is_file() for link in links)
