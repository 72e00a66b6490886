"""The same ABX by fastabx, where it is installed (Python 3.12 and later).

Authors
 * speechbrain_vq authors 2026
"""

import math
from collections.abc import Sequence

import torch

from .cells import comparisons
from .items import Item


def check_fastabx() -> None:
    """Nothing where fastabx can be used.

    Raises
    ------
    ImportError
        If it is not installed; the message says how it is.
    """
    try:
        import fastabx  # noqa: F401
        import polars  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "fastabx is not installed: it needs Python 3.12 or later and "
            'pip install "speechbrain-vq[eval]". The ABX of this package '
            f"gives the same figures without it. ({error})"
        ) from error


def fastabx_error(
    features: Sequence[torch.Tensor],
    items: Sequence[Item],
    speaker: str = "within",
    context: str = "within",
    distance: str = "angular",
    max_x_across: int | None = 5,
    seed: int = 0,
) -> float:
    """The ABX error as fastabx has it; arguments as those of ``abx``.

    Without ``max_x_across`` it is the same figure; otherwise the two choose
    other speakers of X.

    Arguments
    ---------
    features : sequence of torch.Tensor
        The frames of each item, [T, D].
    items : sequence of Item
        What they are.
    speaker, context : str
        ``"within"`` or ``"across"``, and ``"within"`` or ``"any"``.
    distance : str
        ``"angular"``, or ``"identical"`` for codes, [T, C].
    max_x_across : int, optional
        Speakers of X for one phone, speaker and neighbours; None: all.
    seed : int
        Of the choice of speakers of X.

    Returns
    -------
    float
        nan if nothing can be compared.

    Raises
    ------
    ImportError
        If fastabx is not installed.
    """
    check_fastabx()
    import polars
    from fastabx import Dataset, Score, Subsampler, Task
    from fastabx.accessor import InMemoryAccessor

    # It makes an error of that.
    if not comparisons(items, speaker, context, max_x_across, seed).cells:
        return math.nan
    stops = torch.tensor([len(one) for one in features]).cumsum(0).tolist()
    frames = dict(enumerate(zip([0, *stops], stops, strict=False)))
    labels = (
        polars.DataFrame(list(items))
        .select("phone", "speaker")
        .with_columns(
            place=polars.Series(
                [f"{item.before} {item.after}" for item in items]
            )
        )
    )
    data = torch.cat(list(features)).float()
    dataset = Dataset(
        labels, InMemoryAccessor(frames, data, torch.device("cpu"))
    )
    same = ["place"] if context == "within" else []
    across = ["speaker"] if speaker == "across" else None
    task = Task(
        dataset,
        on="phone",
        by=(same if across else [*same, "speaker"]) or None,
        across=across,
        subsampler=Subsampler(None, max_x_across, seed),
    )
    if distance == "identical" and data.shape[1] > 1:
        distance = _differing
    score = Score(task, distance, progress=False)
    return score.collapse(levels=[*same, "speaker"])


def _differing(x, y):
    """``identity`` of padded items, [I, T, C], [J, S, C] to [I, J, T, S]."""
    return (x[:, None, :, None] != y[None, :, None]).float().mean(-1)
