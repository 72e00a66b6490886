"""Every command and example of the README and of docs/ runs."""

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
from speechbrain_vq.recipes.MiniSpeech import minispeech_prepare as mini
from tests.commands import cli
from tests.recipe_tests.phone_corpora import make_festvoxru
from tests.recipe_tests.processes import short_options

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
PROGRAM = pathlib.Path(sys.executable).with_name("speechbrain-vq")
# Past the warm-up of all presets.
SHORT = "--minutes=4 --number_of_steps=104 --batch_size=8 --channels=16".split()


def run(*command, cwd):
    result = subprocess.run(
        list(map(str, command)), cwd=cwd, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def first_block(heading, language):
    section = TEXT.split(f"## {heading}\n")[1].split("\n## ")[0]
    return re.search(rf"```{language}\n(.*?)```", section, flags=re.S)[1]


def code(heading):
    return first_block(heading, "python")


def commands(heading):
    """The arguments of each of a section's commands."""
    lines = first_block(heading, "bash").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    assert {first for first, *_ in words} == {"speechbrain-vq"}
    return [arguments for _, *arguments in words]


def test_the_bundled_model_speaks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copyfile(pathlib.Path(bundled("speech")) / "example.wav", "my.wav")
    cli(*commands("Speech from tokens")[0])
    frames = soundfile.info("from_tokens/my.wav").frames
    assert frames == soundfile.info("my.wav").frames


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
def test_the_commands_from_training_to_the_hub(tmp_path, hub, monkeypatch):
    for verb, *arguments in commands("Train"):
        short = SHORT if verb == "train" else []
        run(PROGRAM, verb, *arguments, *short, cwd=tmp_path)
    assert (tmp_path / "results/best/model.safetensors").exists()
    speech = next((tmp_path / "data/audio").rglob("*.flac"))
    speech.rename(tmp_path / "speech.wav")
    run(sys.executable, "-c", code("Load"), cwd=tmp_path)
    assert (tmp_path / "from_tokens.wav").exists()
    run(PROGRAM, *commands("Evaluate")[0], cwd=tmp_path)
    report = (tmp_path / "results/report/results.md").read_text()
    assert "| PNMI " in report and "ABX" in report
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    check_the_hub(tmp_path, hub)
    check_conversion(tmp_path)


@pytest.mark.slow
def test_the_command_of_a_recipe(tmp_path):
    make_festvoxru(tmp_path)
    options = short_options("FestvoxRu/phone-recognition", "train")
    short = [f"--{key}={value}" for key, value in options.items()]
    run(PROGRAM, *commands("Recipes")[0], *short, cwd=tmp_path)
    results = json.loads((tmp_path / "results/phones/results.json").read_text())
    assert results["per"] < 100


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_walk_of_a_stranger(tmp_path, hub, monkeypatch):
    """From a folder of recordings by speaker to a model, a report, tokens and
    a repository, by the commands of the README alone."""
    monkeypatch.setenv("HF_TOKEN", "hf_alice")
    corpus = mini.prepare_minispeech(tmp_path / "corpus", minutes=4)
    (corpus / "audio").rename(tmp_path / "recordings")
    paths = [str(p) for p in (tmp_path / "recordings").rglob("*.flac")]
    train, tokenize, push = commands("Your own recordings")
    output = run(PROGRAM, *train, *SHORT[1:], cwd=tmp_path)
    assert "of 24 speakers (the subfolders: " in output
    page = (tmp_path / "results/mine/report.html").read_text("utf-8")
    assert page.count("<audio") > 2
    run(PROGRAM, *tokenize, cwd=tmp_path)
    rows = map(json.loads, (tmp_path / "mine.jsonl").read_text().splitlines())
    tokens = {str(tmp_path / row["path"]): row["tokens"] for row in rows}
    assert set(tokens) == set(paths)
    # As a data set.
    option = re.search(r"With `(--out=\w+)`,\s+`tokenize` writes", TEXT)[1]
    assert tokenize.pop().startswith("--out=")
    run(PROGRAM, *tokenize, option, cwd=tmp_path)
    rows = datasets.load_from_disk(tmp_path / option.removeprefix("--out="))
    assert tokens == {str(tmp_path / r["path"]): r["tokens"] for r in rows}
    run(PROGRAM, *push, cwd=tmp_path)
    assert "model.safetensors" in hub.repo("lab/mine").files()


def check_conversion(folder):
    """A model of the same data says recordings in another voice."""
    next((folder / "data/audio").rglob("*.flac")).rename(folder / "target.wav")
    train, convert = commands("Another voice")
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
    for arguments in commands("On the Hub"):
        run(PROGRAM, *arguments, cwd=folder)
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
