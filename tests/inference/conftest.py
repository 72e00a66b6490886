"""A tiny run folder, as a recipe leaves it."""

import pytest
from hyperpyyaml import load_hyperpyyaml

from speechbrain_vq import VQTokenizer, export_pretrained
from tests.publish.runs import YAML, write_run


@pytest.fixture
def make_run(tmp_path):
    """Makes the folder of a run; `change` may spoil its modules."""

    def make(change=lambda modules: None, **meta):
        return write_run(tmp_path / "run", change, **meta)

    return make


@pytest.fixture
def model(make_run, tmp_path):
    """The folder of an exported model."""
    return export_pretrained(make_run()[0], tmp_path / "model")


@pytest.fixture
def tokenizer(model):
    """A tokenizer on the CPU."""
    return VQTokenizer.from_hparams(model, run_opts={"device": "cpu"})


@pytest.fixture
def build():
    """Makes a tokenizer that was not trained, with a quantizer of its own."""

    def make(quantizer=None, **options):
        hparams = load_hyperpyyaml(YAML.format(folder="none"))
        modules = hparams["modules"]
        modules["quantizer"] = quantizer or modules["quantizer"]
        options.setdefault("run_opts", {"device": "cpu"})
        return VQTokenizer(modules, hparams, **options)

    return make
