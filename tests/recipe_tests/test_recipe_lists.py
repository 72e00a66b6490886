"""The lists of recipes, in SpeechBrain's format: all recipes are in them, and
what they say runs."""

import csv
import pathlib
import re
import shlex
import subprocess
import sys

import pytest

from speechbrain_vq.recipe_files import write_out
from tests.recipe_tests.processes import LISTS, ROOT, ROWS, run_script

COLUMNS = [
    *("Task", "Dataset", "Script_file", "Hparam_file", "Data_prep_file"),
    *("Readme_file", "Result_url", "HF_repo"),
    *("test_debug_flags", "test_debug_checks"),
]
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_columns_are_those_of_speechbrain(path):
    with open(path, newline="", encoding="utf-8") as file:
        columns = next(csv.reader(file))
    assert columns in (COLUMNS, [*COLUMNS, "test_download"])


def test_every_yaml_of_a_recipe_is_listed():
    there = (ROOT / "recipes").glob("*/*/hparams/*.yaml")
    assert {str(p.relative_to(ROOT)) for p in there} == set(ROWS)


@every_row
def test_the_files_of_a_row_exist(row):
    for column in COLUMNS[2:6]:
        assert (ROOT / row[column]).stat().st_size > 0
    readme = (ROOT / row["Readme_file"]).read_text(encoding="utf-8")
    assert row["Result_url"] in readme and row["HF_repo"] in readme
    assert pathlib.Path(row["Hparam_file"]).name in readme


@every_row
def test_every_key_of_a_yaml_is_used(row):
    text = write_out(ROOT / row["Hparam_file"])
    keys = re.findall(r"^([A-Za-z]\w*):", text, flags=re.M)
    sources = [ROOT / row["Script_file"]]
    # Scripts of other recipes, by import_module, theirs, and modules of a corpus.
    for source in sources:
        imported = re.findall(r"recipes\.([\w.-]+)", source.read_text())
        paths = [ROOT / f"recipes/{i.replace('.', '/')}.py" for i in imported]
        sources += [p for p in paths if p.is_file() and p not in sources]
    for folder in ("recipes/common", "speechbrain_vq"):
        sources += (ROOT / folder).rglob("*.py")
    code = "\n".join(p.read_text() for p in sources)
    # SpeechBrain's own, which its experiments read.
    known = {"seed", "output_folder", "optimizer_step_limit"}
    known |= {"ckpt_interval_steps", "ckpt_interval_minutes", "max_grad_norm"}
    for key in set(keys) - known:
        in_yaml = re.search(rf"<{key}[\[.>]", text)
        in_code = re.search(rf"[\"']{key}[\"']|\.{key}\b", code)
        assert in_yaml or in_code, f"nothing uses '{key}'"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stands for tests/tmp."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@every_row
def test_a_row_runs(row, folder):
    """As SpeechBrain's tests/utils/recipe_tests.py runs it."""
    if row["Task"] == "ssl-units":
        pytest.importorskip("transformers")
    if row["Dataset"] == "MiniSpeech":
        pytest.importorskip("espeakng_loader")
    else:
        # SpeechBrain evaluates this column.
        get = re.fullmatch(r"os\.system\('(.*)'\)", row["test_download"])
        _, *command = shlex.split(get[1].replace("tests/tmp", str(folder)))
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True)
    flags = row["test_debug_flags"].replace("tests/tmp", str(folder))
    # It makes the folder of a run, unless the flags name one, and writes there
    # before the run does.
    assert "output_folder" not in flags
    output = folder / pathlib.Path(row["Hparam_file"]).relative_to("recipes")
    output.mkdir(parents=True)
    (output / "stdout.txt").touch()
    result = run_script(
        folder,
        ROOT / row["Script_file"],
        ROOT / row["Hparam_file"],
        *shlex.split(flags),
        "--device=cpu",
        f"--output_folder={output}",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    expected = re.search(r"file_exists=\[(.*?)\]", row["test_debug_checks"])
    for file in expected.group(1).split(","):
        assert (output / file).is_file(), file
