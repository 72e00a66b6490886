"""The recipe runs from nothing to a model, on any data, and says what is
wrong with what it is given."""

import json

import numpy as np
import pytest
import soundfile

from speechbrain_vq import VQTokenizer
from tests.recipe_tests.processes import finish, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
RECIPE = "MiniSpeech/unit-discovery"
MINE = {"data_folder": "data", "make_minispeech": None}


def test_from_nothing_to_tokens(tmp_path):
    folders = {"data_folder": "data", "output_folder": "out"}
    metrics, _ = finish(tmp_path, RECIPE, **folders)
    assert metrics["steps"] == 30 and metrics["preset"] == "robust"
    assert 0 < metrics["pnmi"] < 1 and metrics["used_codes_percent"] > 30
    tokenizer = VQTokenizer.from_hparams(tmp_path / "out/model")
    manifest = json.loads((tmp_path / "data/test.json").read_text())
    utterance = next(iter(manifest.values()))
    path = utterance["wav"].replace("{data_root}", str(tmp_path / "data"))
    tokens = tokenizer.encode_file(path)
    assert len(tokens) == pytest.approx(50 * utterance["length"], abs=1)
    assert "re-initialized" in (tmp_path / "out/log.txt").read_text()
    # Another run does not go on with this one's checkpoint.
    other = run(tmp_path, RECIPE, **MINE, output_folder="out", codebook_size=32)
    assert other.returncode != 0
    assert (
        "out contains a run with other settings: codebook_size" in other.stderr
    )
    assert json.loads((tmp_path / "out/results.json").read_text()) == metrics
    # The same corpus by SpeechBrain's csv manifests, which have no phones.
    for path in (tmp_path / "data").glob("*.json"):
        if path.name == "corpus.json":
            continue
        items = json.loads(path.read_text())
        rows = ["ID,duration,wav,spk_id"]
        for name, item in items.items():
            wav = item["wav"].replace("{data_root}", "$data_root")
            rows.append(f"{name},{item['length']},{wav},{item['spk_id']}")
        path.with_suffix(".csv").write_text("\n".join(rows) + "\n")
        path.unlink()
    again, _ = finish(tmp_path, RECIPE, **MINE, output_folder="csv")
    assert "pnmi" not in again and again["vectors"] == metrics["vectors"]


def test_a_folder_of_any_audio(tmp_path):
    random = np.random.default_rng(0)
    folder = tmp_path / "recordings" / "someone"
    folder.mkdir(parents=True)
    for index in range(40):
        rate = (8000, 16000, 44100)[index % 3]
        sound = random.normal(size=(rate, 1 + index % 2)) / 10
        soundfile.write(folder / f"{index}.wav", sound, rate)
    (folder / "broken.wav").write_text("not audio")
    options = {"data_folder": "recordings", "preset": "reinit"}
    metrics, output = finish(tmp_path, RECIPE, output_folder="out", **options)
    assert "broken.wav" in output
    assert "pnmi" not in metrics and metrics["reconstruction_error"] > 0
    # The preset and the changes to it both count.
    text = (tmp_path / "out/hyperparams.yaml").read_text()
    assert "codebook_lr_multiplier: 1.0" in text and "warmup: 8" in text


def test_files_that_break_after_their_preparation_end_no_run(tmp_path):
    """In the statistics, the training, the validation and the test."""
    random = np.random.default_rng(0)
    for split, number in (("train", 12), ("valid", 4), ("test", 4)):
        items = {}
        for index in range(number):
            path = tmp_path / f"data/{split}{index}.flac"
            path.parent.mkdir(exist_ok=True)
            soundfile.write(path, random.normal(size=24000) / 10, 16000)
            items[path.stem] = {"wav": path.name, "length": 1.5}
        # Whole by its header, of which alone prepared files are read.
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        (tmp_path / f"data/{split}.json").write_text(json.dumps(items))
    (tmp_path / "data/corpus.json").write_text('{"corpus": "own"}')
    finish(tmp_path, RECIPE, **MINE, output_folder="out")
    log = (tmp_path / "out/log.txt").read_text()
    assert "Left out of the features' mean: " in log
    for name in ("train11", "valid3", "test3"):
        assert f"{name}.flac: cannot be read" in log
        assert log.count(f"{name}.flac") == 1 + (name == "train11")
    assert log.count("replaced by silence from now on") == 3
    assert "Lost files so far: 3; the run ends at 10." in log
