"""From a folder of recordings to a model, as a stranger does it."""

import html
import re
import shlex
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from tensorboard.backend.event_processing import event_accumulator

from speechbrain_vq import VQTokenizer
from speechbrain_vq.dataio.manifests import read_json, read_manifest

PROGRAM = [sys.executable, "-m", "speechbrain_vq"]
SHORT = ["--steps=32", "--batch_size=4", "--channels=16"]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Three speakers, formats and rates, a broken file, and one of text."""
    folder = tmp_path_factory.mktemp("home") / "my recordings"
    random = np.random.default_rng(0)
    for number, (speaker, ending) in enumerate(
        [("ann", "wav"), ("bob", "flac"), ("eve", "ogg")]
    ):
        (folder / speaker / "day 1").mkdir(parents=True)
        for i in range(8):
            rate = (16000, 22050, 8000)[number]
            envelope = np.abs(np.sin(np.arange(2 * rate) / rate * (5 + i)))
            sound = envelope * random.normal(size=2 * rate) / 5
            path = folder / speaker / "day 1" / f"{i}.{ending}"
            soundfile.write(path, sound, rate)
    (folder / "broken.wav").write_text("no audio")
    (folder / "notes.txt").write_text("not read")
    return folder


def run(cwd, *arguments):
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_from_a_folder_to_the_next_commands(recordings):
    home = recordings.parent
    result = run(home, "train", "my recordings", *SHORT)
    output = result.stdout
    assert result.returncode == 0, output + result.stderr
    # What was found, and what was not.
    assert "Left out, as they are no audio: notes.txt" in output
    assert "broken.wav: cannot be read" in output
    assert "48.0 s in 24 files of 3 speakers (the subfolders: ann" in output
    assert "test on unseen speakers" in output
    # What was chosen, before it begins.
    plan = "28.0 s of 2 speakers to train on: 16 codes, 32 steps, about "
    assert output.index(plan) < output.index("Step 4 of 32: ")
    # In a pipe there is no bar, and a line for each validation.
    assert "\r" not in output + result.stderr and "%|" not in result.stderr
    assert len(re.findall(r"^Step \d+ of 32: ", output, flags=re.M)) == 8
    assert len(result.stderr.splitlines()) < 5, result.stderr
    out = home / "results/my recordings"
    assert read_json(out / "results.json")["steps"] == 32
    test = read_manifest(out / "manifests/test.json").values()
    train = read_manifest(out / "manifests/train.json").values()
    speakers = [{item["spk_id"] for item in items} for items in (test, train)]
    assert not speakers[0] & speakers[1]
    assert VQTokenizer.from_hparams(out / "model").codebook_size == 16
    # The next commands are real.
    commands = re.findall(r"^  .*  speechbrain-vq (.*)", output, flags=re.M)
    verbs = [shlex.split(command)[0] for command in commands]
    assert verbs == ["reconstruct", "evaluate", "push"]
    # The report is there before they are.
    assert output.index("Report: ") < output.index("Next:")
    page = (out / "report.html").read_text("utf-8")
    command = re.search("<pre><code>(.*?)</code>", page, re.DOTALL)[1]
    words = shlex.split(html.unescape(command).replace("\\\n", ""))
    assert words[:3] == ["speechbrain-vq", "train", "my recordings"]
    assert set(words[3:]) == {"--out=results/my recordings", *SHORT}
    heard = run(home, *shlex.split(commands[0]))
    assert heard.returncode == 0, heard.stderr
    assert list((out / "reconstructed").rglob("*.wav"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_yaml_of_ones_own_and_another_recipe(recordings, tmp_path):
    output = run(tmp_path, "config", "DebianSpeech/speech-codec").stdout
    (tmp_path / "my.yaml").write_text(
        re.sub("^latent_dim: .*", "latent_dim: 8", output, flags=re.M)
    )
    result = run(
        tmp_path,
        *("train", recordings, "--recipe=codec", "--config=my.yaml"),
        *("--out=out", "--codebook-size=32", "--logger=tensorboard", *SHORT),
    )
    assert result.returncode == 0, result.stdout + result.stderr
    tokenizer = VQTokenizer.from_hparams(tmp_path / "out/model")
    assert tokenizer.codebook_size == 32 and tokenizer.num_codebooks > 1
    assert "latent_dim: 8" in (tmp_path / "out/hyperparams.yaml").read_text()
    events = str(tmp_path / "out/tensorboard")
    events = event_accumulator.EventAccumulator(events).Reload()
    tags = [tag for tag in events.Tags()["audio"] if tag.endswith("decoded")]
    assert len(tags) == len(events.Tags()["images"]) > 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ctrl_c_says_how_to_go_on(recordings, tmp_path):
    command = ["train", recordings, "--out=out", *SHORT]
    first = subprocess.Popen(
        [*PROGRAM, *map(str, command)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Where the tests run in the background, the signal is ignored by all.
        preexec_fn=lambda: signal.signal(
            signal.SIGINT, signal.default_int_handler
        ),
    )
    for line in first.stdout:
        if line.startswith("Step 20 of 32: "):
            first.send_signal(signal.SIGINT)
            break
    first.stdout.read()
    errors = first.stderr.read()
    assert first.wait() == 130
    assert "Interrupted. Run the same command again to resume." in errors
    assert "Traceback" not in errors
    result = run(tmp_path, *command)
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"16 codes, \d+ steps after 2\d, about", result.stdout)
    # Once it is complete, it is only tested again.
    again = run(tmp_path, *command)
    assert again.returncode == 0 and "about" not in again.stdout
