"""Units of several codebooks: from a preset to a model that others load, with
metrics that hold for all of its codebooks."""

import json
import math

import pytest
import torch

from speechbrain_vq import VQTokenizer
from speechbrain_vq.dataio.manifests import data_root
from speechbrain_vq.evaluation.phone_units import PhoneUnitCounts, pnmi
from speechbrain_vq.nnet.losses import entropy
from tests.recipe_tests.phone_corpora import make_festvoxru
from tests.recipe_tests.processes import finish
from tests.recipe_tests.test_librispeech import copy_of_the_hub

SIZE = 16
FOLDERS = {"manifest_folder": "manifests", "output_folder": "out"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("preset", ["residual", "product"])
def test_metrics_are_those_of_the_tokens_of_the_model(preset, tmp_path):
    make_festvoxru(tmp_path / "data")
    options = {"data_folder": "data", "preset": preset, **FOLDERS}
    results, _ = finish(tmp_path, "FestvoxRu/unit-discovery", **options)
    tokenizer = VQTokenizer.from_hparams(tmp_path / "out/model")
    assert tokenizer.mods.quantizer.composition == preset
    root = data_root(tmp_path / "manifests")
    manifest = json.loads((tmp_path / "manifests/test.json").read_text())
    tables = [PhoneUnitCounts(SIZE, 50) for _ in range(2)]
    tokens = []
    for item in manifest.values():
        path = item["wav"].format(data_root=root)
        tokens.append(tokenizer.encode_file(path))
        assert tokens[-1].shape == (round(50 * item["length"]), 2)
        for table, units in zip(tables, tokens[-1].T.tolist(), strict=True):
            table.add(units, item["phones"])
    wav = tmp_path / "again.wav"
    assert torch.equal(tokenizer.reconstruct_file(path, wav), tokens[-1])
    tokens = torch.cat(tokens)
    counts = torch.stack([t.bincount(minlength=SIZE) for t in tokens.T])
    bits = float(entropy(counts.double()).sum()) / math.log(2)
    used = 100 * float((counts > 0).double().mean())
    assert results["vectors"] == len(tokens)
    assert results["bits_per_second"] == pytest.approx(50 * bits, rel=0.01)
    assert results["used_codes_percent"] == pytest.approx(used, abs=7)
    for book, table in enumerate(tables, 1):
        expected = pnmi(table.counts())
        name = f"pnmi_codebook_{book}"
        assert results[name] == pytest.approx(expected, abs=0.02)
    config = json.loads((tmp_path / "out/model/config.json").read_text())
    assert (config["num_codebooks"], config["codebook_size"]) == (2, SIZE)
    card = (tmp_path / "out/model/README.md").read_text()
    assert f"2 x {SIZE} codes" in card
    # 50 tokens a second of two codebooks of 4 bits.
    assert "| bit rate, by the number of codes (bits/s) | 400 |" in card


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_units_of_what_is_streamed_25_a_second(tmp_path):
    copy_of_the_hub(tmp_path / "librispeech_asr")
    results, _ = finish(
        tmp_path,
        "LibriSpeech/unit-discovery",
        data_folder=tmp_path / "librispeech_asr",
        hours=3 / 3600,
        valid_hours=1 / 3600,
        stride=4,
        **FOLDERS,
    )
    assert results["reconstruction_error"] > 0 and "pnmi" not in results
    manifest = json.loads((tmp_path / "manifests/train.json").read_text())
    lengths = [item["length"] for item in manifest.values()]
    assert sum(lengths) >= 3 > sum(lengths[:-1])
    kept = tmp_path / "manifests/audio/train-clean-100"
    assert sorted(p.stem for p in kept.iterdir()) == sorted(manifest)
    tokenizer = VQTokenizer.from_hparams(tmp_path / "out/model")
    assert tokenizer.token_rate == 25
    path = next(kept.iterdir())
    tokens = tokenizer.encode_file(path)
    seconds = manifest[path.stem]["length"]
    assert len(tokens) == pytest.approx(25 * seconds, abs=1)
