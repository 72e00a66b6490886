"""The lists of recipes, in SpeechBrain's format: all recipes are in them, and
what they say runs.

Authors
 * speechbrain_vq authors 2026
"""

import csv
import pathlib
import re
import shlex

import pytest

from speechbrain_vq.recipes.ScribbleLens.render_handwriting import render
from tests.recipes import phone_corpora, processes, test_cifar10, vctk_corpus

ROOT = pathlib.Path(__file__).parents[2]
COLUMNS = [
    *("Task", "Dataset", "Script_file", "Hparam_file", "Data_prep_file"),
    *("Readme_file", "Result_url", "HF_repo"),
    *("test_debug_flags", "test_debug_checks"),
]
LISTS = sorted(pathlib.Path(__file__).parent.glob("*.csv"))


def rows():
    for path in LISTS:
        with open(path, newline="", encoding="utf-8") as file:
            yield from csv.DictReader(file)


ROWS = list(rows())
every_row = pytest.mark.parametrize(
    "row", ROWS, ids=[row["Hparam_file"] for row in ROWS]
)


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.name)
def test_columns_are_those_of_speechbrain(path):
    with open(path, newline="", encoding="utf-8") as file:
        assert next(csv.reader(file)) == COLUMNS


def test_every_yaml_of_a_recipe_is_listed():
    listed = {row["Hparam_file"] for row in ROWS}
    there = (ROOT / "recipes").glob("*/*/hparams/*.yaml")
    assert {str(p.relative_to(ROOT)) for p in there} == listed


@every_row
def test_the_files_of_a_row_exist(row):
    for column in COLUMNS[2:6]:
        assert (ROOT / row[column]).stat().st_size > 0
    readme = (ROOT / row["Readme_file"]).read_text(encoding="utf-8")
    assert row["Result_url"] in readme and row["HF_repo"] in readme
    assert pathlib.Path(row["Hparam_file"]).name in readme


@every_row
def test_every_key_of_a_yaml_is_used(row):
    text = (ROOT / row["Hparam_file"]).read_text(encoding="utf-8")
    keys = re.findall(r"^([A-Za-z]\w*):", text, flags=re.M)
    sources = [ROOT / row["Script_file"], *(ROOT / "recipes/common").glob("*")]
    sources += (ROOT / "speechbrain_vq").rglob("*.py")
    code = "\n".join(p.read_text() for p in sources if p.suffix == ".py")
    # SpeechBrain's own, which its experiments read.
    known = {"seed", "output_folder", "optimizer_step_limit"}
    known |= {"ckpt_interval_steps", "ckpt_interval_minutes", "max_grad_norm"}
    for key in set(keys) - known:
        in_yaml = re.search(rf"<{key}[\[.>]", text)
        in_code = re.search(rf"[\"']{key}[\"']|\.{key}\b", code)
        assert in_yaml or in_code, f"nothing uses '{key}'"


def make_handwriting(folder):
    """Rendered lines; the fonts need not look written."""
    matplotlib = pytest.importorskip("matplotlib")
    fonts = pathlib.Path(matplotlib.get_data_path(), "fonts/ttf")
    render(
        folder,
        [fonts / "DejaVuSans.ttf", fonts / "DejaVuSerif.ttf"],
        60,
        seed=1,
    )


CORPORA = {
    "CIFAR10": ("cifar10", test_cifar10.make_tar),
    "FestvoxRu": ("festvoxru", phone_corpora.make_festvoxru),
    "LibriSpeech": ("librispeech", phone_corpora.make_librispeech),
    "ScribbleLens": ("scribblelens", make_handwriting),
    "VCTK": ("vctk", vctk_corpus.make_vctk),
    "WSJ": ("wsj", phone_corpora.make_wsj),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Stands for tests/tmp, with the corpora that were asked for."""
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@every_row
def test_a_row_runs(row, folder):
    name, make = CORPORA.get(row["Dataset"], ("minispeech", None))
    if make is None:
        pytest.importorskip("espeakng_loader")
    elif not (folder / name).exists():
        make(folder / name)
    flags = row["test_debug_flags"].replace("tests/tmp", str(folder))
    done = processes.run_script(
        folder,
        ROOT / row["Script_file"],
        ROOT / row["Hparam_file"],
        *shlex.split(flags),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    output = re.search(r"--output_folder=(\S+)", flags).group(1)
    wanted = re.search(r"file_exists=\[(.*?)\]", row["test_debug_checks"])
    for file in wanted.group(1).split(","):
        assert (pathlib.Path(output) / file).is_file(), file
