"""A card says what the results say, and its code runs."""

import json
import pathlib
import re
import shutil

import pytest
import soundfile
import torch
from huggingface_hub import ModelCard

from speechbrain_vq import VQTokenizer, bundled, export_pretrained
from speechbrain_vq.dataio.manifests import read_manifest
from speechbrain_vq.evaluation.phone_units import PhoneInformation
from speechbrain_vq.publish import Run
from speechbrain_vq.publish.card import replace_source
from tests.commands import cli
from tests.publish.runs import RESULTS, USED, YAML, write_minispeech, write_run


def write_tested_run(folder):
    options = "preset: robust\nvq: {{norm: running, affine: False}}"
    write_run(folder, yaml=YAML.replace("arm: robust", options), **USED)
    write_minispeech(folder)
    (folder / "results.json").write_text(json.dumps(RESULTS))
    return folder


@pytest.fixture
def run(tmp_path):
    return write_tested_run(tmp_path / "run")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What most tests look at, and none changes."""
    folder = tmp_path_factory.mktemp("exported")
    return export_pretrained(write_tested_run(folder / "run"), folder / "units")


def load_card(model):
    return ModelCard.load(model / "README.md")


def rows(card):
    """The table of metrics."""
    return dict(re.findall(r"^\| (.+?) \| (.+?) \|$", card.text, flags=re.M))


def test_the_front_matter_has_the_metrics_of_the_test(model):
    data = load_card(model).data
    assert data.library_name == "speechbrain"
    assert data.pipeline_tag == "feature-extraction"
    assert data.license == "apache-2.0" and data.language == ["en"]
    assert "speechbrain_vq" in data.tags and data.model_name == "units"
    measured = {r.metric_type: r.metric_value for r in data.eval_results}
    others = {"preset", "seed", "steps", "vectors"}
    assert measured == {k: v for k, v in RESULTS.items() if k not in others}
    assert set(data.metrics) == set(measured)
    assert {r.dataset_name for r in data.eval_results} == {"MiniSpeech"}
    assert {r.dataset_split for r in data.eval_results} == {"test"}
    # Only what is on the Hub may be named there.
    assert data.datasets is None


def test_the_table_says_what_the_model_is(model):
    card = load_card(model)
    table = rows(card)
    assert table["tokens per second"] == "50"
    assert table["codebook"] == "32 codes of 8 dimensions"
    # 50 x 5 bits
    assert table["bit rate, by the number of codes (bits/s)"] == "250"
    assert table["bit rate, by the entropy of the codes (bits/s)"] == "221.4"
    assert table["used codes (%)"] == "84.38" and table["perplexity"] == "21.5"
    assert str(PhoneInformation.quantities["pnmi"]) in table
    for text in (
        "`robust` with `norm=running`, seed 7",
        "30 steps",
        "1 minutes of Mini",
    ):
        assert text in card.text
    for heading in ("Install", "Use", "Training", "Limitations", "Citation"):
        assert f"\n## {heading}\n" in card.text


def test_every_file_that_the_card_names_is_there(model):
    text = load_card(model).text
    pictures = re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert pictures == ["spectrogram.png"]
    for name in [*pictures, "example.wav", "example.tokens.json"]:
        assert name in text and (model / name).is_file()


@pytest.mark.parametrize("name", ["units", "speech"])
def test_the_code_of_the_card_runs(name, model, tmp_path, monkeypatch):
    """Of what was exported and of what comes with the package."""
    folder = model if name == "units" else pathlib.Path(bundled(name))
    text = load_card(folder).text
    (code,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "units").symlink_to(model)
    soundfile.write("speech.wav", torch.randn(16000) / 10, 16000)
    names = {}
    exec(code, names)
    assert len(names["tokens"]) == 50 and names["wavs"].shape == (1, 16000)
    assert pathlib.Path("from_tokens.wav").is_file()
    pushed = replace_source(text, name, "org/name")
    assert '.from_hparams("org/name")' in pushed and "bundled(" not in pushed


def test_a_name_on_the_hub_goes_into_the_code(run, tmp_path):
    model = export_pretrained(run, tmp_path / "units", repo_id="org/name")
    text = (model / "README.md").read_text()
    assert '.from_hparams("org/name")' in text and "# name\n" in text
    pushed = replace_source(text, "name", "other/place")
    assert '.from_hparams("other/place")' in pushed
    assert ModelCard(pushed).data.model_name == "place"
    assert "\n# place\n" in pushed and "# name\n" not in pushed


def test_another_checkpoint_is_tested(run, tmp_path):
    write_run(run, loss=0.1, **USED)
    write_run(run, loss=0.9, **USED)
    last = load_card(export_pretrained(run, tmp_path / "last"))
    assert last.data.eval_results
    model = export_pretrained(run, tmp_path / "best", min_key="loss")
    measured = load_card(model).data.eval_results
    measured = {r.metric_type: r.metric_value for r in measured}
    tokenizer = VQTokenizer.from_hparams(model)
    test = run / "manifests/test.json"
    wavs = [item["wav"] for item in read_manifest(test).values()]
    codes = torch.cat([tokenizer.encode_file(wav) for wav in wavs]).unique()
    assert measured["used_codes_percent"] == 100 * len(codes) / 32
    assert set(measured) == {"used_codes_percent", "perplexity"}
    # Without the recordings, by what was seen in validation, told as that.
    test.unlink()
    card = load_card(export_pretrained(run, tmp_path / "best", min_key="loss"))
    assert not card.data.eval_results and "was not tested" in card.text
    assert rows(card)["perplexity (validation)"] == "20.25"
    # Unless the results name it; what is no number is left out.
    names = sorted(path.name for path in (run / "save").iterdir())
    results = {**RESULTS, "checkpoint": names[1], "note": "well"}
    results["pnmi"] = float("nan")
    options = {"min_key": "loss", "results": results}
    card = load_card(export_pretrained(run, tmp_path / "named", **options))
    measured = {r.metric_type for r in card.data.eval_results}
    assert "perplexity" in measured and not {"pnmi", "note"} & measured


def test_the_options_of_the_command(run, tmp_path):
    place = tmp_path / "units"
    options = ["--license=mit", "--language=de", "--language=en"]
    options += ["--dataset=org/speech", "--repo-id=org/name"]
    cli("export", run, place, *options)
    data = load_card(place).data
    assert data.license == "mit" and data.language == ["de", "en"]
    assert data.datasets == ["org/speech"]
    assert {r.dataset_type for r in data.eval_results} == {"org/speech"}


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--repo-id=name", "organization/name"),
        ("--repo-id=org/a b", "cannot be a repository"),
        ("--min-key=los", "Did you mean 'loss'?"),
    ],
)
def test_a_wrong_option_is_refused_in_one_line(run, tmp_path, option, hint):
    place = tmp_path / "new" / "units"
    result = cli("export", run, place, option, code=1)
    assert hint in result.output
    assert len(result.output.strip().splitlines()) == 1
    assert not place.parent.exists()


def test_recordings_of_ones_own_are_called_that(tmp_path):
    section = "inference: {{recipe: A/b, summary: Mine., card: {{tags: [x]}}}}"
    yaml = YAML.replace("lr: 0.001", section, 1)
    run, _ = write_run(tmp_path / "run", yaml=yaml)
    write_minispeech(run, corpus="audio")
    card = load_card(export_pretrained(run, tmp_path / "model"))
    assert "on the author's own recordings" in card.text
    assert "MiniSpeech" not in card.text
    assert "\nMine.\n" in card.text and "recipe `A/b`" in card.text
    assert card.data.tags == ["x"]


def start_run(folder, **about):
    """A run as one starts it: every path from where one stands."""
    (folder / "results").mkdir(parents=True)
    run, _ = write_run(folder / "results/units")
    text = YAML.format(folder="results/units") + "data_folder: data\n"
    (run / "hyperparams.yaml").write_text(text)
    write_minispeech(folder, **about)
    (folder / "manifests").rename(folder / "data")
    return run


def read_training_text(run, place):
    return load_card(export_pretrained(run, place)).text


def test_a_run_knows_its_corpus_wherever_it_lies(tmp_path, monkeypatch):
    run = start_run(tmp_path / "home")
    start_run(tmp_path / "other", corpus="audio")
    monkeypatch.chdir(tmp_path / "home")
    assert Run.open(run).corpus.name == "MiniSpeech"
    Run.open(run).write_corpus()
    monkeypatch.chdir(tmp_path / "other")
    run = run.rename(tmp_path / "moved")
    text = read_training_text(run, tmp_path / "model")
    assert "on 1 minutes of MiniSpeech" in text
    assert (tmp_path / "model/example.wav").is_file()
    shutil.rmtree(tmp_path / "home")
    text = read_training_text(run, tmp_path / "model")
    assert "on 1 minutes of MiniSpeech" in text and "`example.wav`" not in text
    assert load_card(tmp_path / "model").data.language == ["en"]


def test_manifests_that_another_run_has_replaced_are_not_a_run_s(
    tmp_path, monkeypatch
):
    run = start_run(tmp_path / "home")
    monkeypatch.chdir(tmp_path / "home")
    for split in ("train", "valid"):
        shutil.copy("data/test.json", f"data/{split}.json")
    Run.open(run).write_corpus()
    assert [f.name for f in Run.open(run).manifest_folders()] == ["data"]
    text = pathlib.Path("data/test.json").read_text()
    pathlib.Path("data/test.json").write_text(text.replace("en", "fr"))
    assert not [*Run.open(run).manifest_folders()]
    assert Run.open(run).corpus.languages == ("en",)
    # Nor does it go on with them.
    with pytest.raises(ValueError, match="data has changed since the run"):
        Run.open(run).write_corpus()
    shutil.rmtree(run / "save")
    Run.open(run).write_corpus()
    assert Run.open(run).corpus.languages == ("fr",)


def test_what_is_not_known_is_not_made_up(tmp_path, caplog):
    run, _ = write_run(tmp_path / "run")
    Run.open(run).write_corpus()
    text = read_training_text(run, tmp_path / "model")
    assert "The training data is unknown." in text
    assert "the author's own recordings" not in text
    assert "manifests were not found" in caplog.text


def test_a_corpus_of_people_is_named(tmp_path):
    run, _ = write_run(tmp_path / "run")
    write_minispeech(run, corpus="librispeech")
    text = read_training_text(run, tmp_path / "model")
    assert "of LibriSpeech," in text and "`example.wav`" not in text


IMAGES = """
dataset: made up
save_folder: {folder}/save
data_folder: images
inference:
    interface: VQPretrained
    keys: [dataset]
    recipe: CIFAR10/autoencoder
    summary: Codes of images.
modules:
    head: !new:torch.nn.Linear
        in_features: 4
        out_features: 3
"""


def test_a_model_of_images_says_nothing_of_sound(tmp_path, caplog):
    run, _ = write_run(tmp_path / "run", yaml=IMAGES)
    (run / "results.json").write_text('{"steps": 3, "perplexity": 4.5}')
    card = load_card(export_pretrained(run, tmp_path / "model"))
    assert "Codes of images." in card.text
    for word in ("recording", "speech ", "audio", "wav", "unknown"):
        assert word not in card.text.lower()
    assert not {"audio", "speech"} & set(card.data.tags)
    assert "manifests" not in caplog.text
