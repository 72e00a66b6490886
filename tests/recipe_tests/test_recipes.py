"""What holds for a run of any recipe."""

import pytest

from tests.corpora import CORPORA
from tests.recipe_tests.processes import finish, run_and_kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def make_corpus(folder, recipe):
    """Makes what the recipe cannot make; the option that names it."""
    kind = recipe.partition("/")[0].lower()
    if kind in CORPORA:
        CORPORA[kind](folder / "data")
    return {"data_folder": "data"}


@pytest.mark.parametrize(
    "recipe, yaml",
    [
        ("CIFAR10/autoencoder", "train"),
        ("FestvoxRu/phone-recognition", "small"),
        ("MiniSpeech/unit-discovery", "train"),
        ("ScribbleLens/handwriting", "small"),
    ],
)
def test_a_run_killed_and_resumed_has_the_same_results(recipe, yaml, tmp_path):
    options = make_corpus(tmp_path, recipe) | {"ckpt_interval_steps": 3}
    whole, _ = finish(tmp_path, recipe, yaml, output_folder="whole", **options)
    options["output_folder"] = "killed"
    log = run_and_kill(tmp_path, recipe, yaml, **options)
    resumed, _ = finish(tmp_path, recipe, yaml, **options)
    assert "Loading a checkpoint" in log.read_text() and resumed == whole


OF_CODES = {
    *("fillable_codes", "mapping_accuracy", "nmi", "used_codes_percent"),
    *("perplexity", "perplexities"),
}


@pytest.mark.parametrize(
    "recipe, yaml, metrics",
    [
        # The rate of an autoencoder is that of its codes.
        ("CIFAR10/autoencoder", "train", {"reconstruction_bits_per_dim"}),
        ("FestvoxRu/phone-recognition", "small", {"per"}),
        ("ScribbleLens/handwriting", "small", {"cer", "bits_per_dim"}),
    ],
)
def test_without_a_bottleneck_no_model_is_made(recipe, yaml, metrics, tmp_path):
    options = {"preset": "none", "vq": None, "output_folder": "out"}
    options |= make_corpus(tmp_path, recipe)
    results, output = finish(tmp_path, recipe, yaml, **options)
    assert results.keys() & (OF_CODES | {"bits_per_dim"}) <= metrics
    assert all(results[metric] > 0 for metric in metrics)
    assert not (tmp_path / "out/model").exists()
    assert "No model was exported" in output
