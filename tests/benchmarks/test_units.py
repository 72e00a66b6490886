"""Unit benchmark: which runs start, what is written, and k-means."""

import csv
import json
import random

import pytest
import soundfile
import torch

from tests.benchmarks.scripts import import_script
from tests.evaluation.synthetic import spans, tones

TASK = """
title: Some units
recipe: MiniSpeech/unit-discovery
hparams: train.yaml
settings: {utterance_norm: true, codebook_size: 16}
seeds: [1, 2]
variants:
    - clusters: {preset: kmeans, utterance_norm: false}
    - robust
evaluated:
    Here: {}
    There: {minutes: 2}
reconstructed: 1
columns:
    pnmi: {title: PNMI, format: .2f}
    used_codes: {title: used (%), format: .0f, scale: 100}
note: Said below.
"""


@pytest.fixture(scope="module")
def units():
    return import_script("units")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Write utterances of four tones as phones, by a loud and a quiet speaker."""
    folder = tmp_path_factory.mktemp("corpus")
    hertz, draw = {"a": 300, "b": 700, "c": 1500, "d": 3000}, random.Random(0)
    for split in ("train", "valid", "test"):
        entries = {}
        for number in range(4):
            name, phones = f"{split}-{number}", draw.choices(list(hertz), k=10)
            wav = tones(map(hertz.get, phones)) * (0.5 if number % 2 else 0.1)
            soundfile.write(folder / f"{name}.wav", wav, 16000)
            entries[name] = {
                "wav": f"{{data_root}}/{name}.wav",
                "length": 1.0,
                "spk_id": "xy"[number % 2],
                "phones": spans(phones),
            }
        (folder / f"{split}.json").write_text(json.dumps(entries))
    return folder


@pytest.fixture
def task(tmp_path, units, corpus):
    path = tmp_path / "task.yaml"
    path.write_text(TASK)
    return units.Units(path, tmp_path / "runs", (f"--data_folder={corpus}",))


def pretend(task, variant, seed, pnmi, used, titles=("Here", "There")):
    """Write the files of a finished run and its evaluations."""
    output = task.output(variant, seed)
    output.mkdir(parents=True, exist_ok=True)
    found = {"steps": 7, "preset": "x", "reconstruction_error": 0.3}
    (output / "results.json").write_text(json.dumps(found))
    command = json.dumps(task.command(variant, seed))
    (output / "command.json").write_text(command)
    for title in titles:
        folder = task.evaluation(variant, seed, title)
        folder.mkdir()
        figure = {"value": pnmi, "low": None, "high": None}
        report = {"figures": {"phones": {"pnmi": figure}}}
        (folder / "results.json").write_text(json.dumps(report))
        folder.with_suffix(".json").write_text(json.dumps({"used_codes": used}))


def test_variants_override_settings(task):
    hparams = task.hparams("clusters", 1)
    assert not hparams["utterance_norm"] and hparams["codebook_size"] == 16
    assert task.hparams("robust", 1)["utterance_norm"]
    assert "--seed=2" in task.command("robust", 2)
    # All runs share one manifest folder.
    hparams = [task.hparams(variant, 1) for variant in task.variants]
    assert len({one["manifest_folder"] for one in hparams}) == 1


def test_medians_and_ranges_are_written(task, tmp_path):
    pretend(task, "clusters", 1, 0.25, 1.0)
    pretend(task, "robust", 1, 0.5, 0.9)
    pretend(task, "robust", 2, 0.75, 0.9, titles=["Here"])
    text = task.write(tmp_path / "task")
    assert text == (tmp_path / "task.md").read_text()
    here, there = text.split("## Here")[1].split("## There")
    assert "| clusters | 0.25 | 100 | 1 |" in here
    assert "| robust | 0.62 (0.50 to 0.75) | 90 | 2 |" in here
    assert "| robust | 0.50 | 90 | 1 |" in there
    assert "Said below. Medians" in text and "7 optimizer steps" in text
    with open(tmp_path / "task.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    found = {
        row["seed"]: float(row["value"])
        for row in rows
        if (row["table"], row["variant"], row["metric"])
        == ("Here", "robust", "pnmi")
    }
    assert found == {"1": 0.5, "2": 0.75}
    # The recipe's own metrics are those of its own test set.
    where = {r["table"] for r in rows if r["metric"] == "reconstruction_error"}
    assert where == {"Here"}


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("frames", [12, 13])
def test_stacking_is_invertible(units, norm, frames):
    """With the speaker's moments; padding changes nothing."""
    features = torch.randn(2, frames, 3) * 5 + 2
    lengths = torch.tensor([1.0, 6 / frames])
    features[1, 6:] = 0
    encode, decode = units.Stacked(4, norm), units.Unstacked(4, norm)
    stacked, shares = encode(features, lengths)
    number = -(-frames // 4)
    assert stacked.shape == (2, number, 12)
    assert (shares * number).tolist() == pytest.approx([number, 2])
    voices = units.Moments(3)(features, lengths)
    back = decode(stacked, voices, shares)[:, :frames]
    assert torch.allclose(back[0], features[0], atol=1e-4)
    assert torch.allclose(back[1, :6], features[1, :6], atol=1e-4)
    alone, _ = encode(features[1:, :6], torch.ones(1))
    # Only the last token's frames depend on padding.
    assert torch.allclose(alone[0, :1], stacked[1, :1], atol=1e-4)
    if norm:
        louder, _ = encode(features[:1] * 3 + 1, torch.ones(1))
        assert torch.allclose(louder, stacked[:1], atol=1e-3)


@pytest.mark.slow
def test_kmeans_units_match_the_tones(task, tmp_path):
    """K-means is trained and evaluated like any model."""
    assert task.run("clusters", 1)
    metrics = task.metrics("clusters", 1, "Here")
    # Of the 5 frames of a tone some reach into its neighbours.
    assert metrics["pnmi"] > 0.6 and metrics["phone_from_latents"] > 0.8
    assert metrics["tokens_per_second"] == pytest.approx(50)
    assert 0 < metrics["used_codes"] <= 1
    assert metrics["mel_cepstral_distortion"] > 0
    # The speakers differ in loudness, which the features do not contain.
    assert metrics["speaker_from_latents"] < 0.8
    assert "| clusters |" in task.write(tmp_path / "task")
    kept = task.evaluation("clusters", 1, "Here") / "results.json"
    before = kept.stat().st_mtime_ns
    assert task.run("clusters", 1) and kept.stat().st_mtime_ns == before
