"""Every command and example of the README and of docs/ runs."""

import csv
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import datasets
import pytest
import soundfile

from speechbrain_vq import VQTokenizer, bundled
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
    prepare_minispeech,
)
from tests.recipe_tests import phone_corpora

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
PROGRAM = pathlib.Path(sys.executable).with_name("speechbrain-vq")
# Past the warm-up of all presets.
SHORT = [
    "--minutes=4",
    "--number_of_steps=104",
    "--batch_size=8",
    "--channels=16",
]


def run(*command, cwd):
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def code(heading):
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(r"```python\n(.*?)```", section, flags=re.S).group(1)


def test_the_example_runs(tmp_path):
    run(sys.executable, "-c", code("In your own loop"), cwd=tmp_path)


def test_the_bundled_model_speaks(tmp_path):
    example = pathlib.Path(bundled("speech")) / "example.wav"
    shutil.copyfile(example, tmp_path / "my.wav")
    section = TEXT.split("## Speech from tokens\n")[1].split("\n## ")[0]
    line = re.search(r"```bash\n(.*?)```", section, flags=re.S).group(1)
    run(PROGRAM, *shlex.split(line)[1:], cwd=tmp_path)
    wav, _ = soundfile.read(tmp_path / "from_tokens/my.wav")
    assert len(wav) == soundfile.info(example).frames


def test_the_readme_is_short():
    assert len(PAGES[0].read_text(encoding="utf-8").split()) <= 900


def test_make_knows_the_two_commands():
    lines = re.findall("^make .*", PAGES[0].read_text("utf-8"), flags=re.M)
    assert len(lines) == 2
    for line in lines:
        target = line.split("#")[0].split()
        run("make", "--dry-run", *target[1:], cwd=ROOT)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo_and_loading_what_it_made(tmp_path):
    command = [PROGRAM, "demo", "--steps=104", "--minutes=6", "--json=d.json"]
    result = run(*command, cwd=tmp_path)
    assert "vanilla" in result and "robust" in result and "Next:" in result
    metrics = json.loads((tmp_path / "d.json").read_text())
    assert [one["preset"] for one in metrics["presets"]] == [
        "vanilla",
        "robust",
    ]
    for one in metrics["presets"]:
        assert set(one) == {
            "preset",
            "used_codes_percent",
            "perplexity",
            "reconstruction_error",
            "pnmi",
        }


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_commands_from_training_to_the_hub(tmp_path, hub, monkeypatch):
    section = TEXT.split("## Train\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.S).group(1)
    for line in block.splitlines():
        command = shlex.split(line)
        assert command[0] == "speechbrain-vq"
        short = SHORT if command[1] == "train" else []
        run(PROGRAM, *command[1:], *short, cwd=tmp_path)
    assert (tmp_path / "results/best/model.safetensors").exists()
    speech = next((tmp_path / "data/audio").rglob("*.flac"))
    speech.rename(tmp_path / "speech.wav")
    run(sys.executable, "-c", code("Load"), cwd=tmp_path)
    assert (tmp_path / "from_tokens.wav").exists()
    section = TEXT.split("## Evaluate\n")[1].split("\n## ")[0]
    line = re.search(r"```bash\n(.*?)```", section, flags=re.S).group(1)
    run(PROGRAM, *shlex.split(line)[1:], cwd=tmp_path)
    report = (tmp_path / "results/report/results.md").read_text()
    assert "| PNMI |" in report and "ABX" in report
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    check_the_hub(tmp_path, hub)
    check_conversion(tmp_path)


@pytest.mark.slow
def test_the_command_of_a_recipe(tmp_path):
    phone_corpora.make_festvoxru(tmp_path)
    section = TEXT.split("## Recipes\n")[1].split("\n## ")[0]
    line = re.search(r"```bash\n(.*?)```", section, flags=re.S).group(1)
    with open(ROOT / "tests/recipes/FestvoxRu.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    flags = shlex.split(rows[-1]["test_debug_flags"])
    short = [f for f in flags if "_folder=" not in f]
    run(PROGRAM, *shlex.split(line)[1:], *short, cwd=tmp_path)
    results = json.loads((tmp_path / "results/phones/results.json").read_text())
    assert results["per"] < 100


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_walk_of_a_stranger(tmp_path, hub, monkeypatch):
    """From a folder of recordings by speaker to a model, a report, tokens and
    a repository, by the commands of the README alone."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    corpus = prepare_minispeech(tmp_path / "corpus", minutes=4)
    (corpus / "audio").rename(tmp_path / "recordings")
    paths = [str(p) for p in (tmp_path / "recordings").rglob("*.flac")]
    section = TEXT.split("## Your own recordings\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.S).group(1)
    train, tokenize, push = (shlex.split(x)[1:] for x in block.splitlines())
    output = run(PROGRAM, *train, *SHORT[1:], cwd=tmp_path)
    assert "of 24 speakers (the subfolders: " in output
    check_report(tmp_path / "results/mine/report.html")
    run(PROGRAM, *tokenize, cwd=tmp_path)
    rows = map(json.loads, (tmp_path / "mine.jsonl").read_text().splitlines())
    tokens = {str(tmp_path / row["path"]): row["tokens"] for row in rows}
    assert set(tokens) == set(paths)
    # As a data set.
    option = re.search(r"With `(--out=\w+)`, `tokenize` writes", section)[1]
    assert tokenize.pop().startswith("--out=")
    run(PROGRAM, *tokenize, option, cwd=tmp_path)
    rows = datasets.load_from_disk(tmp_path / option.removeprefix("--out="))
    assert {
        str(tmp_path / row["path"]): row["tokens"] for row in rows
    } == tokens
    run(PROGRAM, *push, cwd=tmp_path)
    assert "model.safetensors" in hub.repo("lab/mine").files()


def check_report(path):
    """A browser opens the page, without the network and without a complaint."""
    chromium = shutil.which("chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    if chromium is None:
        pytest.skip("there is no chromium")
    problems = []
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=chromium, args=["--no-sandbox"]
        )
        page = browser.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("requestfailed", lambda request: problems.append(request.url))
        page.goto(path.as_uri())
        assert page.locator(".utterance audio").count() > 2
        browser.close()
    assert not problems


def check_conversion(folder):
    """A model of the same data says recordings in another voice."""
    target = next((folder / "data/audio").rglob("*.flac"))
    target.rename(folder / "target.wav")
    section = TEXT.split("## Another voice\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.S).group(1)
    train, convert = (shlex.split(line)[1:] for line in block.splitlines())
    small = [f for f in SHORT if "minutes" not in f] + ["--num_workers=0"]
    run(PROGRAM, *train, *small, cwd=folder)
    run(PROGRAM, *convert, cwd=folder)
    assert len(list((folder / "converted").rglob("*.wav"))) == 3
    run(sys.executable, "-c", code("Another voice"), cwd=folder)
    assert (folder / "converted.wav").exists()


def check_the_hub(folder, hub):
    """What was trained is pushed, and loaded again by other processes: the
    same tokens, bit for bit."""
    (folder / "recordings").mkdir()
    for path in list((folder / "data/audio").rglob("*.flac"))[:3]:
        path.rename(folder / "recordings" / path.name)
    section = TEXT.split("## On the Hub\n")[1].split("\n## ")[0]
    block = re.search(r"```bash\n(.*?)```", section, flags=re.S).group(1)
    for line in block.splitlines():
        run(PROGRAM, *shlex.split(line)[1:], cwd=folder)
    run(sys.executable, "-c", code("On the Hub"), cwd=folder)
    assert len(hub.calls("POST", "/commit/")) == 1
    local = VQTokenizer.from_hparams(folder / "results/units/model")
    lines = (folder / "tokens.jsonl").read_text().splitlines()
    assert len(lines) == 3
    for found in map(json.loads, lines):
        expected = local.encode_file(folder / found["path"])
        assert found["tokens"] == expected.tolist()
        name = pathlib.Path(found["path"]).with_suffix(".wav").name
        assert list((folder / "decoded").rglob(name))
    # Pinned and cached: no call at all.
    hub.log.clear()
    commit = hub.repo("lab/units").refs["refs/tags/v1"]
    pinned = f"VQTokenizer.from_hparams('lab/units', revision='{commit}')"
    run(
        sys.executable,
        "-c",
        f"from speechbrain_vq import VQTokenizer; {pinned}",
        cwd=folder,
    )
    assert not hub.log
