"""A recogniser learns from the tokens of a tokenizer that does not."""

import importlib
import json
import shutil

import pytest
import torch

from speechbrain_vq import VQTokenizer, export_pretrained
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
    prepare_minispeech,
)
from tests.inference.conftest import make_run
from tests.recipe_tests.processes import finish, hyperparameters
from tests.recipe_tests.processes import run as run_recipe
from tests.training.toy import digest

__all__ = ["make_run"]

RECIPE = "MiniSpeech/asr-on-tokens"
SHORT = {
    "number_of_epochs": 60,
    "batch_size": 1,
    "hidden_size": 64,
    "lr": 0.02,
    "dropout": 0.0,
    "minutes": 0.3,
}

NAME = "speechbrain_vq.recipes.MiniSpeech.asr-on-tokens.train"
recipe = importlib.import_module(NAME)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A MiniSpeech of which every split is the same few utterances."""
    pytest.importorskip("espeakng_loader")
    folder = tmp_path_factory.mktemp("data") / "minispeech"
    prepare_minispeech(folder, SHORT["minutes"], num_speakers=2)
    train = json.loads((folder / "train.json").read_text("utf-8"))
    few = dict(list(train.items())[:3])
    for split in ("train", "valid", "test"):
        (folder / f"{split}.json").write_text(json.dumps(few), "utf-8")
    return folder


@pytest.fixture
def model(make_run, data, tmp_path):
    """A tokenizer whose codebook is made of that speech."""
    wavs = [
        read_audio(path, 16000).unsqueeze(0)
        for path in sorted((data / "audio").rglob("*.flac"))
    ]

    def fit(modules):
        modules["features"].fit(wavs)
        for _ in range(20):
            for wav in wavs:
                mels, lengths = modules["features"](wav, torch.ones(1))
                modules["quantizer"](*modules["encoder"](mels, lengths))
        modules["quantizer"].reinitialize()

    return export_pretrained(make_run(fit)[0], tmp_path / "model")


def load(output, model, data, **options):
    folders = {"data_folder": data, "output_folder": output}
    options = {**SHORT, **folders, "tokenizer": model, **options}
    return hyperparameters(RECIPE, **options)


def run(output, model, data, **options):
    """Runs the recipe in this process, without its command line."""
    hparams = load(output, model, data, **options)
    brain = recipe.train(hparams, {"noprogressbar": True})
    return json.loads((output / "results.json").read_text()), brain, hparams


def test_it_learns_and_the_tokenizer_does_not(model, data, tmp_path):
    early, *_ = run(tmp_path / "early", model, data, number_of_epochs=1)
    results, brain, hparams = run(tmp_path / "out", model, data)
    assert early["per"] > 80 and results["per"] < 30
    tokenizer = hparams["pretrained"]
    fresh = VQTokenizer.from_hparams(model)
    assert digest(tokenizer.state_dict()) == digest(fresh.state_dict())
    frozen = {p.data_ptr() for p in tokenizer.parameters()}
    groups = brain.optimizer.param_groups
    learning = {p for group in groups for p in group["params"]}
    assert learning and not frozen & {p.data_ptr() for p in learning}
    assert not any(p.requires_grad for p in tokenizer.parameters())
    assert learning == set(brain.modules.parameters())
    # The vectors began as the codebook and are the recogniser's own since.
    codebook = tokenizer.get_pretrained_embeddings()
    assert brain.modules.front.table.weight.shape == codebook.shape
    assert not torch.equal(brain.modules.front.table.weight, codebook)
    # Everything in the manifests but silence was to be recognised.
    manifest = json.loads((data / "test.json").read_text("utf-8"))
    phones = [p for u in manifest.values() for *_, p in u["phones"]]
    assert results["phones"] == sum(p != "SIL" for p in phones)
    saved = list((tmp_path / "out/save").rglob("*.ckpt"))
    assert not any("quantizer" in f.name or "encoder" in f.name for f in saved)


def test_a_resumed_run_ends_with_the_same_results(model, data, tmp_path):
    options = {"dropout": 0.3, "number_of_epochs": 4}
    whole, brain, _ = run(tmp_path / "whole", model, data, **options)
    cut = tmp_path / "cut", model, data
    run(*cut, **{**options, "number_of_epochs": 2})
    # As if killed before the test: the results come last.
    (tmp_path / "cut/results.json").unlink()
    torch.manual_seed(99)
    resumed, again, _ = run(*cut, **options)
    assert resumed == whole
    states = again.modules.state_dict(), brain.modules.state_dict()
    assert len(set(map(digest, states))) == 1


@pytest.mark.parametrize(
    "options", [{"input": "features"}, {"embedding_init": "random"}]
)
def test_what_tokens_are_compared_with(options, model, data, tmp_path):
    hparams = load(tmp_path / "out", model, data, **options)
    item = next(iter(json.loads((data / "train.json").read_text()).values()))
    tokenizer = hparams["pretrained"]
    path = item["wav"].replace("{data_root}", str(data))
    wav = read_audio(path, tokenizer.sample_rate)
    encoded = recipe.encode(tokenizer, wav, hparams["input"])
    tokens = recipe.encode(tokenizer, wav, "tokens")
    # At the rate of the tokens, whatever it is.
    assert abs(len(encoded) - len(tokens)) <= 1
    results, brain, hparams = run(
        tmp_path / "out", model, data, number_of_epochs=1, **options
    )
    assert results["input"] == hparams["input"]
    if hparams["input"] == "features":
        assert encoded.shape[1] == 40  # Two frames of 20 mels
        assert not list(brain.modules.front.parameters())


def test_splits_without_phones_are_refused(model, data, tmp_path):
    folder = tmp_path / "mute"
    shutil.copytree(data, folder)
    utts = json.loads((folder / "test.json").read_text("utf-8"))
    for utt in utts.values():
        del utt["phones"]
    (folder / "test.json").write_text(json.dumps(utts), "utf-8")
    with pytest.raises(ValueError, match=r"test\.json has phones"):
        run(tmp_path / "out", model, folder)


def test_command_line(model, data, tmp_path):
    options = {
        "data_folder": data,
        "tokenizer": model,
        "output_folder": "out",
        "number_of_epochs": 1,
        "hidden_size": 8,
    }
    results, _ = finish(tmp_path, RECIPE, **options)
    assert results["tokenizer"] == str(model) and results["per"] > 0
    # Which phones were taken for which.
    assert "WER" in (tmp_path / "out/per.txt").read_text("utf-8")
    # A run is not resumed on other tokens.
    other = shutil.copytree(model, tmp_path / "other")
    for change in ({"tokenizer": other}, {"input": "features"}):
        result = run_recipe(tmp_path, RECIPE, **options | change)
        assert (
            result.returncode
            and "another folder (--output_folder)" in result.stderr
        )
