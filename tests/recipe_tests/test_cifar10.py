"""The image recipe reads every form that its data come in, says what is wrong
with what it is given, and its metrics are those of the model it exports.
"""

import gzip
import hashlib
import io
import json
import math
import os
import pickle
import sys
import tarfile

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
    DEBIAN_FOLDER,
    HUB_NAMES,
    TAR,
    TAR_FOLDER,
    prepare,
    read_images,
)
from tests.recipe_tests import processes

RECIPE = recipe_path("CIFAR10/autoencoder")
TRAIN, TEST, VALID = 50, 20, 10
HUB_NAME = HUB_NAMES["cifar10"]
IDX = {
    "train": "train-images-idx3-ubyte.gz",
    "test": "t10k-images-idx3-ubyte.gz",
}


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


def make_tar(folder):
    folder.mkdir()
    with tarfile.open(folder / TAR, "w:gz") as archive:
        for name, content in batches().items():
            member = tarfile.TarInfo(f"{TAR_FOLDER}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def make_parquet(folder):
    (folder / "plain_text").mkdir(parents=True)
    for split, number, seed in (("train", TRAIN, 1), ("test", TEST, 2)):
        cells = [{"bytes": png(i), "path": None} for i in images(number, seed)]
        table = pyarrow.table({"img": cells, "label": [6] * number})
        name = f"plain_text/{split}-00000-of-00001.parquet"
        pyarrow.parquet.write_table(table, folder / name)


def make_pictures(folder):
    for split, number, seed in (("train", TRAIN, 1), ("test", TEST, 2)):
        for index, image in enumerate(images(number, seed)):
            home = folder / split / ("cat" if index < number / 2 else "dog")
            home.mkdir(parents=True, exist_ok=True)
            (home / f"{index:04d}.png").write_bytes(png(image))


def idx(array, kind=0x803):
    header = np.array([kind, *array.shape], ">u4").tobytes()
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
    monkeypatch.setattr(cifar10, "train_list", train)
    monkeypatch.setattr(
        cifar10, "test_list", [["test_batch", sums["test_batch"]]]
    )
    meta = {**cifar10.meta, "md5": sums["batches.meta"]}
    monkeypatch.setattr(cifar10, "meta", meta)
    return cifar10


FORMS = {
    "parquet": make_parquet,
    "sheets": make_sheets,
    "pictures": make_pictures,
}


# Reading them -------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_images(form, tmp_path):
    FORMS[form](tmp_path / "data")
    folder = prepare(tmp_path / "data", tmp_path / "out", valid_images=VALID)
    train = np.concatenate(
        [read_images(folder, split).numpy() for split in ("train", "valid")]
    )
    np.testing.assert_array_equal(train, images(TRAIN, 1))
    assert len(read_images(folder, "valid")) == VALID
    np.testing.assert_array_equal(read_images(folder, "test"), images(TEST, 2))


@pytest.mark.parametrize("packed", [True, False])
def test_the_original_gives_the_same_images(
    packed, original, tmp_path, monkeypatch
):
    data = tmp_path / "data"
    (make_tar if packed else make_folder)(data)
    if packed:
        md5 = hashlib.md5((data / TAR).read_bytes()).hexdigest()
        monkeypatch.setattr(original, "tgz_md5", md5)
    folder = prepare(data, tmp_path / "out", valid_images=VALID)
    np.testing.assert_array_equal(read_images(folder, "test"), images(TEST, 2))
    valid = images(TRAIN, 1)[-VALID:]
    np.testing.assert_array_equal(read_images(folder, "valid"), valid)
    if not packed:
        # Also by the name of the folder itself.
        prepare(data / TAR_FOLDER, tmp_path / "out2", valid_images=VALID)


def test_a_damaged_archive_is_neither_read_nor_fetched(tmp_path, monkeypatch):
    torchvision = pytest.importorskip("torchvision")

    def fetch(*args, **options):
        raise AssertionError("it fetches another one")

    cifar10 = torchvision.datasets.cifar
    monkeypatch.setattr(cifar10, "download_and_extract_archive", fetch)
    make_tar(tmp_path / "data")
    cut(tmp_path / "data" / TAR)
    with pytest.raises(ValueError, match=f"{TAR} cannot be read.*checksum"):
        prepare(tmp_path / "data", tmp_path / "out")


def test_without_torchvision_the_original_is_not_read(tmp_path, monkeypatch):
    make_folder(tmp_path / "data")
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(ImportError, match="pip install torchvision"):
        prepare(tmp_path / "data", tmp_path / "out")


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


def test_what_the_hub_does_not_give_is_reported(tmp_path, monkeypatch):
    def load_dataset(name, split):
        raise ConnectionError("there is no network")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(FileNotFoundError, match="no network.*--data_folder"):
        prepare(HUB_NAME, tmp_path / "out")


@pytest.mark.parametrize("home", [DEBIAN_FOLDER, "."])
def test_fashion_mnist_is_padded_in_the_middle(home, tmp_path):
    make_fashion(tmp_path / "data", home)
    folder = prepare(
        tmp_path / "data", tmp_path / "out", "fashion-mnist", VALID
    )
    test = read_images(folder, "test").numpy()
    assert test.shape == (TEST, 1, 32, 32)
    inner = slice(2, 30)
    np.testing.assert_array_equal(
        test[:, :, inner, inner], images(TEST, 2, channels=1, size=28)
    )
    assert test.sum() == test[:, :, inner, inner].sum()


def test_what_is_done_is_not_done_again(tmp_path):
    make_sheets(tmp_path / "data")
    sheet = tmp_path / "data/test_batch.png"

    def run():
        folder = prepare(tmp_path / "data", tmp_path / "out", valid_images=5)
        return folder / "test.safetensors"

    first = run().stat().st_ino
    assert run().stat().st_ino == first
    # Stopped before its end, or of other data.
    (tmp_path / "out/images.json").unlink()
    second = run().stat().st_ino
    assert second != first
    write_sheet(sheet, images(TEST, 3))
    np.testing.assert_array_equal(
        torch.from_numpy(images(TEST, 3)),
        read_images(run().parent, "test"),
    )
    assert not list((tmp_path / "out").glob("*.partial*"))


@pytest.mark.parametrize("left", [0, 5, 100, -1])
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


class Harm:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_a_pickle_that_would_run_something_does_not(tmp_path):
    pytest.importorskip("torchvision")
    make_folder(tmp_path / "data")
    harmed = tmp_path / "harmed"
    content = pickle.dumps({b"data": Harm(str(harmed))})
    (tmp_path / "data" / TAR_FOLDER / "data_batch_3").write_bytes(content)
    with pytest.raises(ValueError, match="not found or corrupted"):
        prepare(tmp_path / "data", tmp_path / "out")
    assert not harmed.exists()


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def lose_batch(data):
    make_folder(data)
    (data / TAR_FOLDER / "data_batch_2").unlink()


def damage_parquet(data):
    make_parquet(data)
    cut(data / "plain_text/test-00000-of-00001.parquet")


def lose_parquet(data):
    make_parquet(data)
    (data / "plain_text/test-00000-of-00001.parquet").unlink()


def other_columns(data):
    data.mkdir()
    for split in ("train", "test"):
        table = pyarrow.table({"text": ["a", "b"]})
        pyarrow.parquet.write_table(table, data / f"{split}.parquet")


def damage_sheet(data):
    make_sheets(data)
    cut(data / "data_batch_3.png")


def other_sheet(data):
    make_sheets(data)
    Image.new("RGB", (3072, 20)).save(data / "test_batch.png")


def deep_sheet(data):
    make_sheets(data)
    levels = np.full((20, 1024), 40_000, np.uint16)
    Image.fromarray(levels).save(data / "test_batch.png")


def hidden_picture(data):
    make_pictures(data)
    Image.new("RGBA", (32, 32)).save(data / "test/dog/9999.png")


def lose_sheet(data):
    make_sheets(data)
    (data / "test_batch.png").unlink()


def damage_picture(data):
    make_pictures(data)
    cut(data / "train/cat/0003.png")


def large_picture(data):
    make_pictures(data)
    image = Image.new("RGB", (64, 48))
    image.save(data / "test/dog/9999.png")


def lose_pictures(data):
    make_pictures(data)
    (data / "test").rename(data / "tests")


def foreign(data):
    data.mkdir()
    (data / "cifar-100-python.tar.gz").write_bytes(b"")


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda data: None, "There is no folder .*data.*Hugging Face Hub"),
        (foreign, "holds cifar-100-python.tar.gz; expected"),
        (lose_batch, "data_batch_2 is missing.*cs.toronto.edu"),
        (damage_parquet, "test-00000-of-00001.parquet cannot be read"),
        (lose_parquet, r"test\*.parquet is missing"),
        (other_columns, "train.parquet.*its columns are text; none is img"),
        (damage_sheet, "data_batch_3.png cannot be read: it is cut short"),
        (deep_sheet, "test_batch.png cannot be read.*its mode is I;16"),
        (hidden_picture, "9999.png cannot be read.*its mode is RGBA"),
        (other_sheet, "test_batch.png cannot .* 3072 pixels wide.* 1024"),
        (lose_sheet, "test_batch.png is missing.*npm pack"),
        (damage_picture, "0003.png cannot be read"),
        (large_picture, "9999.png has 64 x 48 pixels; .* have 32 x 32"),
        (lose_pictures, r"test/<class>/\*.png is missing"),
    ],
)
def test_what_is_wrong_is_reported(make, message, tmp_path):
    make(tmp_path / "data")
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        prepare(tmp_path / "data", tmp_path / "out", valid_images=VALID)
    assert not (tmp_path / "out/images.json").exists()


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "train-images-idx3-ubyte.gz is missing.*apt-get download"),
        (b"no gzip", "cannot be read.*BadGzipFile"),
        (idx(images(9, 1, 1, 28)[:, 0])[:-50], "cannot be read.*EOFError"),
        (
            gzip.compress(
                gzip.decompress(idx(images(9, 1, 1, 28)[:, 0]))[:-9], mtime=0
            ),
            "cannot be read.*cannot reshape",
        ),
        (idx(np.zeros(9, np.uint8), 0x801), "magic number .* not 2049"),
        (idx(np.zeros((9, 64, 64), np.uint8)), r"\[9, 1, 64, 64\]; expected"),
        (idx(np.zeros((0, 28, 28), np.uint8)), r"\[0, 1, 28, 28\]; expected"),
    ],
)
def test_what_is_wrong_with_fashion_mnist_is_reported(
    content, message, tmp_path
):
    make_fashion(tmp_path / "data")
    path = tmp_path / "data" / DEBIAN_FOLDER / IDX["train"]
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        prepare(tmp_path / "data", tmp_path / "out", "fashion-mnist")


def test_a_validation_set_of_everything_is_refused(tmp_path):
    make_pictures(tmp_path / "data")
    with pytest.raises(ValueError, match="valid_images=5000 must be from 1"):
        prepare(tmp_path / "data", tmp_path / "out")


def test_an_unknown_data_set_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match="'mnist'; it must be one of cifar10, fashion"
    ):
        prepare(tmp_path, tmp_path / "out", "mnist")


def test_an_incomplete_copy_is_reported(tmp_path, caplog):
    make_sheets(tmp_path / "data")
    prepare(tmp_path / "data", tmp_path / "out", valid_images=VALID)
    assert "holds 20 images for test, the whole of it is 10000" in caplog.text


# The recipe ---------------------------------------------------------------

SHORT = {
    # The statistics of the encoder's norms take some tens to settle.
    "number_of_steps": 40,
    "batch_size": 4,
    "valid_batch_size": 8,
    "valid_images": VALID,
    "channels": 8,
    "codebook_size": 16,
    "codebook_dim": 4,
    "num_codebooks": 4,
    "vq": "{reinit_schedule: {warmup: 4, every: 3}}",
}


def run(cwd, **options):
    result = processes.run(cwd, RECIPE, **{**SHORT, **options})
    assert result.returncode == 0, result.stdout + result.stderr
    return result


def read(path):
    return json.loads(path.read_text())


def test_metrics_and_pictures_are_those_of_the_exported_model(tmp_path):
    make_sheets(tmp_path / "data")
    run(tmp_path, data_folder="data", output_folder="out")
    metrics = read(tmp_path / "out/results.json")
    assert metrics["steps"] == 40 and metrics["preset"] == "robust"
    log = (tmp_path / "out/log.txt").read_text()
    assert "Step 4: re-initialized" in log and "Step 7: re-initialized" in log

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
    assert metrics["bits_per_dim"] == pytest.approx(
        nats / (3072 * math.log(2)), rel=1e-5
    )
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


@pytest.mark.slow
def test_without_a_bottleneck_there_are_no_codes(tmp_path):
    make_fashion(tmp_path / "data")
    result = run(
        tmp_path,
        data_folder="data",
        output_folder="out",
        dataset="fashion-mnist",
        preset="none",
        vq=None,
    )
    metrics = read(tmp_path / "out/results.json")
    assert 0 < metrics["reconstruction_bits_per_dim"] < 9
    assert "bits_per_dim" not in metrics and "perplexities" not in metrics
    assert "No model was exported" in result.stdout + result.stderr
    assert not (tmp_path / "out/model").exists()
    assert Image.open(tmp_path / "out/pictures/test.png").mode == "L"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_and_resumed_ends_with_the_same_results(tmp_path):
    make_sheets(tmp_path / "data")
    same = {"data_folder": "data", "ckpt_interval_steps": 3}
    run(tmp_path, output_folder="whole", **same)
    log = processes.run_and_kill(
        tmp_path,
        "Step 7: re-initialized",
        RECIPE,
        **SHORT,
        output_folder="killed",
        **same,
    )
    run(tmp_path, output_folder="killed", **same)
    assert "Loading a checkpoint" in log.read_text()
    whole = read(tmp_path / "whole/results.json")
    assert read(tmp_path / "killed/results.json") == whole


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", ["vanilla", "ema_bn", "reinit"])
def test_other_presets(name, tmp_path):
    make_pictures(tmp_path / "data")
    options = {"output_folder": "out", "preset": name}
    if name != "reinit":  # They have no schedule.
        options["vq"] = None
    run(tmp_path, data_folder="data", **options)
    metrics = read(tmp_path / "out/results.json")
    assert metrics["preset"] == name and metrics["bits_per_dim"] > 0
    log = (tmp_path / "out/log.txt").read_text()
    assert ("Step 4: re-initialized" in log) == (name == "reinit")


@pytest.mark.slow
def test_the_truncation_of_the_papers_code_is_another_likelihood(tmp_path):
    make_sheets(tmp_path / "data")
    run(tmp_path, data_folder="data", output_folder="exact")
    run(
        tmp_path,
        data_folder="data",
        output_folder="truncated",
        official_truncation=True,
    )
    true, truncated = (
        read(tmp_path / name / "results.json")
        for name in ("exact", "truncated")
    )
    assert true["bits_per_dim"] != truncated["truncated_bits_per_dim"]
    # Nobody takes one for the other.
    assert not {k for k in truncated if "bits" in k} & {
        "bits_per_dim",
        "reconstruction_bits_per_dim",
    }


def test_the_small_yaml_is_the_papers_but_for_sizes():
    text = (RECIPE / "hparams/small.yaml").read_text("utf-8")
    assert set(ruamel.yaml.YAML().load(text)["recipe"]) == {
        "number_of_steps",
        "batch_size",
        "valid_batch_size",
        "ckpt_interval_steps",
        "channels",
    }
