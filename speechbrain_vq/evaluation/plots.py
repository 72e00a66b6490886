"""Pictures of units. They need matplotlib, ``pip install
"speechbrain-vq[report]"``.

Authors
 * speechbrain_vq authors 2026
"""

import os
from collections.abc import Sequence

import torch


def plot_phone_units(
    counts: torch.Tensor, phones: Sequence[str], path: str | os.PathLike
) -> None:
    """Writes a picture of P(phone | unit): units beside those of the same
    phone.

    Arguments
    ---------
    counts : torch.Tensor
        How often each phone met each unit, [phones, units].
    phones : sequence of str
        Their names.
    path : path
        The png file to write.

    Example
    -------
    >>> plot_phone_units(torch.eye(2), "ab", "table.png")  # doctest: +SKIP
    """
    from matplotlib.figure import Figure

    counts = counts[:, counts.sum(0) > 0].double()
    share = counts / counts.sum(0).clamp(min=1)
    order = torch.argsort(share.argmax(0) - 0.5 * share.amax(0))
    size = 8, max(3.0, 0.16 * len(phones))
    figure = Figure(figsize=size, dpi=100, layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(
        share[:, order].numpy(),
        aspect="auto",
        cmap="magma_r",
        vmin=0,
        vmax=1,
        interpolation="nearest",
    )
    axis.set_yticks(range(len(phones)), phones, fontsize=7)
    axis.set(xlabel="units that occur, by their most frequent phone")
    figure.colorbar(image, label="P(phone | unit)")
    figure.savefig(path)
