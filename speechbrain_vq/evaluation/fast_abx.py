"""The same ABX by fastabx, where it is installed (Python 3.12 and later).

Authors
 * speechbrain_vq authors 2026
"""

from collections.abc import Sequence

import torch

from .items import Item


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
        ``"angular"``, or ``"identical"`` for codes of one codebook, [T, 1].
    max_x_across : int, optional
        Speakers of X for one phone, speaker and neighbours; None: all.
    seed : int
        Of the choice of speakers of X.

    Returns
    -------
    float

    Raises
    ------
    ImportError
        If fastabx is not installed.
    """
    try:
        import polars
        from fastabx import Dataset, Score, Subsampler, Task
        from fastabx.accessor import InMemoryAccessor
    except ImportError as error:
        raise ImportError(
            "fastabx is not installed: it needs Python 3.12 or later and "
            'pip install "speechbrain-vq[eval]". The ABX of this package '
            "gives the same figures without it."
        ) from error
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
    score = Score(task, distance, progress=False)
    return score.collapse(levels=[*same, "speaker"])
