"""What is in a folder, in words.

Authors
 * speechbrain_vq authors 2026
"""

import os
import pathlib


def contents(
    folder: str | os.PathLike, pattern: str = "*", most: int = 5
) -> str:
    """What a folder holds, for the message that it is not what is wanted.

    Arguments
    ---------
    folder : path
        The folder.
    pattern : str
        Of what to name.
    most : int
        How many to name.

    Returns
    -------
    str
        The first names, or ``nothing``.

    Example
    -------
    >>> contents("no/such/folder")
    'nothing'
    """
    names = sorted(path.name for path in pathlib.Path(folder).glob(pattern))
    more = ["..."] if len(names) > most else []
    return ", ".join(names[:most] + more) or "nothing"
