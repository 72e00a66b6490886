"""ScribbleLens: its files are read and their faults are named; the stand-in says
where each character is; the recipe runs from either to a model."""

import importlib
import shutil
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from speechbrain_vq.dataio.manifests import read_json
from speechbrain_vq.inference import VQPretrained
from speechbrain_vq.recipes.ScribbleLens import render_handwriting
from speechbrain_vq.recipes.ScribbleLens.scribblelens_prepare import (
    ROOT,
    find_characters,
    prepare,
    read_alignment,
    read_image,
)
from tests.corpora import make_handwriting
from tests.recipe_tests.processes import finish, hyperparameters

RECIPE = "ScribbleLens/handwriting"
recipe = "speechbrain_vq.recipes.ScribbleLens.handwriting.train"
recipe = importlib.import_module(recipe)
PATHS = "scribblelens.paths.1.4b.zip"


@pytest.fixture(scope="session")
def rendered(tmp_path_factory):
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("rendered") / "data"
    make_handwriting(folder)
    return folder


@pytest.fixture
def corpus(tmp_path):
    """Three pages of the true layout: tall images, transcripts, alignments."""
    root = tmp_path / "data" / ROOT
    (root / "corpora").mkdir(parents=True)
    lists = {"train": ["22.0", "22.1"], "test": ["23.0"]}
    with zipfile.ZipFile(root / "corpora" / PATHS, "w") as archive:
        for split, pages in lists.items():
            rows = []
            for page in pages:
                stem = f"nl/tasman/{page}/line1"
                (root / stem).parent.mkdir(parents=True)
                # 96 high and 61 wide: 20 columns at a height of 32.
                grey = np.full((96, 61), 255, np.uint8)
                grey[:, 30:45] = 0
                Image.fromarray(grey).save(root / f"{stem}.jpg")
                (root / f"{stem}.txt").write_text("'t zee.\n", "utf-8")
                symbols = ["*"] * 4 + ["t"] * 2 + ["_"] * 2 + ["z"] * 4
                symbols += ["e"] * 6 + ["*"] * 2
                text = f"{ROOT}/{stem}.jpg 20 targetStr:*t_zee*\n" + "".join(
                    f"{x} {x + 1} {s} -0.5\n" for x, s in enumerate(symbols)
                )
                archive.writestr(f"{ROOT}/{stem}.ali", text)
                rows.append(f"{stem}.jpg {stem}.txt")
            path = root / "corpora" / f"nl.bw.lines.{split}.dat"
            path.write_text("\n".join(rows) + "\n", "utf-8")
    return tmp_path / "data"


def manifests(folder):
    return [read_json(folder / f"{s}.json") for s in ("train", "valid", "test")]


def test_the_true_layout_is_read(corpus, tmp_path):
    train, valid, test = manifests(prepare(corpus, tmp_path / "out"))
    # One page of the training set is held out.
    assert list(train) == ["tasman-22.1-line1"]
    assert list(valid) == ["tasman-22.0-line1"]
    assert test["tasman-23.0-line1"] == {
        "image": f"{ROOT}/nl/tasman/23.0/line1.jpg",
        "width": 20,
        "writer": "tasman",
        "page": "nl/tasman/23.0",
        "text": "t zee",
        "characters": [
            [4, 6, "t"],
            [6, 8, " "],
            [8, 12, "z"],
            [12, 15.0, "e"],
            [15.0, 18.0, "e"],
        ],
    }
    columns = read_image(corpus / ROOT / "nl/tasman/23.0/line1.jpg")
    assert columns.shape == (20, 32) and columns.dtype == np.uint8
    # Ink is where it was: from 30 to 45 of 61 columns.
    dark = np.flatnonzero(columns.mean(1) < 128)
    assert dark[0] == 10 and dark[-1] == 14


@pytest.mark.parametrize("start, place", [(".", "."), (".", ROOT), (ROOT, ".")])
def test_it_is_found_from_within(start, place, corpus, tmp_path, monkeypatch):
    expected = manifests(prepare(corpus, tmp_path / "expected"))
    monkeypatch.chdir(corpus / start)
    folder = prepare(place, tmp_path / "out")
    assert manifests(folder) == expected
    # A run from another place reads the same images.
    assert read_json(folder / "prepared.json")["source"] == str(corpus)


def test_what_is_prepared_is_not_prepared_again(corpus, tmp_path):
    folder = prepare(corpus, tmp_path / "out")
    (folder / "train.json").write_text("{}")
    prepare(corpus, folder)
    assert (folder / "train.json").read_text() == "{}"
    # A run that was killed before the end is made again.
    (folder / "prepared.json").unlink()
    prepare(corpus, folder)
    assert "tasman" in (folder / "train.json").read_text()


def drop(name):
    return lambda folder: (folder / ROOT / name).unlink()


def cut(name):
    def act(folder):
        path = folder / ROOT / name
        path.write_bytes(path.read_bytes()[:-40])

    return act


def one_page(folder):
    path = folder / ROOT / "corpora/nl.bw.lines.train.dat"
    path.write_text(path.read_text().splitlines()[0])


@pytest.mark.parametrize(
    "harm, error, message",
    [
        (lambda f: shutil.rmtree(f), FileNotFoundError, "openslr.org/84"),
        (
            *(lambda f: (f / ROOT).rename(f / "scribble"), FileNotFoundError),
            "holds scribble: unpack",
        ),
        (
            *(drop("corpora/nl.bw.lines.train.dat"), FileNotFoundError),
            "train.dat is missing. The lists there: nl.bw.lines.test.dat",
        ),
        (drop(f"corpora/{PATHS}"), FileNotFoundError, "no alignments"),
        (cut(f"corpora/{PATHS}"), ValueError, f"{PATHS} is damaged"),
        (
            *(cut("nl/tasman/23.0/line1.jpg"), ValueError),
            r"None of the 1 lines of the test list.*23.0/line1.jpg",
        ),
        (drop("nl/tasman/23.0/line1.txt"), ValueError, "23.0/line1.txt"),
        (one_page, ValueError, "one to train on"),
    ],
)
def test_what_is_missing_or_bad_is_told(harm, error, message, corpus, tmp_path):
    harm(corpus)
    with pytest.raises(error, match=message):
        prepare(corpus, tmp_path / "out")
    assert not (tmp_path / "out/prepared.json").exists()


def test_a_line_that_cannot_be_used_is_left_out(rendered, tmp_path, caplog):
    data = tmp_path / "data"
    shutil.copytree(rendered, data)
    bad = next((data / ROOT / "nl").rglob("2.0/line1.jpg"), None)
    bad = bad or next((data / ROOT / "nl").rglob("1.0/line1.jpg"))
    with Image.open(bad) as image:
        image.resize((image.width + 9, 32)).save(bad)
    prepare(data, tmp_path / "out")
    assert "left out" in caplog.text and bad.name in caplog.text
    assert "columns, the image" in caplog.text
    assert sum(map(len, manifests(tmp_path / "out"))) == 59


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "has 0 rows"),
        ("targetStr:abc\n", "its header is 'targetStr:abc'"),
        ("a.jpg 3 targetStr:*a*\n0 1 a 0\n1 2 a 0\n", "has 2 rows"),
    ],
)
def test_an_alignment_that_is_none_is_reported(text, message):
    with pytest.raises(ValueError, match=message):
        read_alignment(text)


def test_an_alignment_that_disagrees_with_its_text_is_kept_as_it_is():
    assert find_characters("aab*", "xab") == [[0, 2, "a"], [2, 3, "b"]]
    assert find_characters("aab*", "ba") == [[0, 2, "a"], [2, 3, "b"]]
    # The alignment may tell two letters apart by itself.
    apart = [[0, 2, "a"], [3, 4, "a"], [4, 5, "b"]]
    assert find_characters("aa*ab", "aab") == apart


def test_the_same_seed_gives_the_same_bytes(rendered, tmp_path):
    def files(folder):
        paths = [path for path in folder.rglob("*") if path.is_file()]
        return {p.relative_to(folder): p.read_bytes() for p in paths}

    make_handwriting(tmp_path / "again")
    assert files(tmp_path / "again") == files(rendered)
    make_handwriting(tmp_path / "other", seed=2)
    assert files(tmp_path / "other") != files(rendered)
    with pytest.raises(FileExistsError, match="is not empty"):
        make_handwriting(rendered, seed=2)
    with pytest.raises(FileNotFoundError, match="no font"):
        render_handwriting.find_fonts([str(tmp_path / "again/nothing")])


def test_no_line_is_in_two_splits(rendered, tmp_path):
    parts = train, valid, test = manifests(prepare(rendered, tmp_path / "out"))
    for key in ("page", "text"):
        sets = [{item[key] for item in part.values()} for part in parts]
        assert sum(map(len, sets)) == len(set.union(*sets))
    assert len(test) == 12 and len(train) + len(valid) == 48
    assert {i["writer"] for i in test.values()} == {"dejavusans", "dejavuserif"}


def test_characters_lie_where_the_stand_in_says(rendered, tmp_path):
    """Spaces and margins have little ink, letters have much."""
    train = manifests(prepare(rendered, tmp_path / "out"))[0]
    ink = {"space": [], "letter": []}
    for item in train.values():
        dark = 255 - read_image(rendered / item["image"]).astype(float)
        dark -= np.median(dark)
        assert "".join(c for *_, c in item["characters"]) == item["text"]
        for x0, x1, character in item["characters"]:
            middle = dark[round(x0) : round(x1)].mean()
            ink["space" if character == " " else "letter"].append(middle)
    assert np.mean(ink["space"]) < 0.15 * np.mean(ink["letter"])
    little = np.quantile(ink["letter"], 0.05)
    assert np.mean(np.array(ink["space"]) < little) > 0.9


# The recipe ------------------------------------------------------------------


@pytest.mark.slow
def test_from_lines_to_a_model(rendered, tmp_path):
    options = {"data_folder": rendered, "output_folder": "out"}
    metrics, _ = finish(tmp_path, RECIPE, "small", **options)
    assert metrics["preset"] == "robust" and metrics["steps"] == 60
    assert 0 < metrics["bits_per_dim"] < 2 and 0 < metrics["cer"] <= 200
    assert 0 < metrics["mapping_accuracy"] < 1 and 0 < metrics["nmi"] < 1
    assert metrics["fillable_codes"] == 32
    assert metrics["used_of_fillable_percent"] == metrics["used_codes_percent"]
    assert "re-initialized" in (tmp_path / "out/log.txt").read_text()
    # One code for two columns of each line of the test set.
    test = manifests(tmp_path / "out/manifests")[2]
    frames = sum((item["width"] + 1) // 2 for item in test.values())
    assert metrics["vectors"] == frames
    model = VQPretrained.from_hparams(tmp_path / "out/model")
    with torch.no_grad():
        latents = model.mods.encoder(torch.rand(1, 40, 32), torch.ones(1))
        codes = model.mods.quantizer.encode(*latents)
    assert codes.shape == (1, 20) and codes.max() < 32


def test_batches_larger_than_an_epoch_are_refused():
    options = {"batch_size": 6, "oversample": 3}
    recipe.check_batches(options, range(6))
    with pytest.raises(ValueError, match="--batch_size=5 or less"):
        recipe.check_batches(options, range(5))


def test_the_probe_teaches_nothing_else(tmp_path):
    """Its gradient reaches its own parameters alone, and all of them."""
    brain, hparams = make_brain(tmp_path)
    brain.init_optimizers()
    sizes = {
        name: sum(len(group["params"]) for group in optimizer.param_groups)
        for name, optimizer in brain.optimizers_dict.items()
    }
    probe = list(brain.modules.probe.parameters())
    assert sizes["probe"] == len(probe)
    assert sum(sizes.values()) == len(list(brain.modules.parameters()))
    *_, log_probs, lengths = brain.compute_forward(Batch(), None)
    hparams["probe"].loss(log_probs, lengths, ["ab", "c"]).backward()
    for name, parameter in brain.modules.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.any())
        assert learns == name.startswith("probe."), name


def test_padding_counts_in_no_loss(tmp_path):
    brain, _ = make_brain(tmp_path)
    brain.modules.eval()
    losses = []
    for extra in (0, 9):
        brain.on_stage_start(recipe.sb.Stage.VALID)
        loss = brain.evaluate_batch(Batch(extra), recipe.sb.Stage.VALID)
        errors = brain.errors.summarize("error_rate")
        losses.append([float(loss), brain.nats, brain.pixels, errors])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert losses[0][2] == (30 + 17) * 32


class Batch:
    """Two lines, the second one shorter, with as much padding as told."""

    def __init__(self, extra=0):
        ink = torch.rand(2, 30, 32, generator=torch.Generator().manual_seed(0))
        ink[1, 17:] = 0
        wide = torch.nn.functional.pad(ink, (0, 0, 0, extra))
        lengths = torch.tensor([30, 17]) / (30 + extra)

        class Padded(tuple):
            lengths = property(lambda self: self[1])

        self.ink, self.text = Padded((wide, lengths)), ["abc", "d"]
        self.id = ["one", "other"]

    def to(self, device):
        return self


def make_brain(folder):
    """The Brain of a run, and its hyperparameters."""
    folders = {"data_folder": folder, "output_folder": folder}
    hparams = hyperparameters(RECIPE, "small", **folders)
    parts = hparams["modules"], hparams["opt_class"]
    return recipe.HandwritingBrain(*parts, hparams), hparams


@given(st.text(), st.integers(0, 99), st.integers(1, 300), st.integers(1, 99))
@settings(deadline=None)
def test_chunks_lie_within_the_line(name, epoch, width, size):
    first, last = recipe.chunk_of(name, epoch, width, size)
    assert 0 <= first and last <= width and last - first == min(size, width)
    assert recipe.chunk_of(name, epoch, width, size) == (first, last)
