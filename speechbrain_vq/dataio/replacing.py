"""Files that are written whole or not at all.

Authors
 * speechbrain_vq authors 2026
"""

import contextlib
import os
import pathlib
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """A place to write a file to, which takes the place of another at the
    end. When something goes wrong nothing is left of it, and the other stays.

    Arguments
    ---------
    path : path
        The file to be written, in a folder that exists.

    Yields
    ------
    pathlib.Path
        Where to write it: beside it, under a name of this process alone.

    Example
    -------
    >>> with replacing("out.txt") as partial:  # doctest: +SKIP
    ...     partial.write_text("all of it")
    """
    path = pathlib.Path(path)
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
