"""Write an example of a model: a recording, its tokens, and two plots.

The plots need matplotlib, ``pip install "speechbrain-vq[report]"``.
"""

import importlib.util
import logging
import pathlib
import tempfile
from typing import Any

import numpy as np
import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpoint

from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.dataio.manifests import write_json
from speechbrain_vq.hub.folder import (
    EXAMPLE,
    EXAMPLE_TOKENS,
    SPECTROGRAM,
    USAGE,
)

from .run import read_trainer_state

logger = logging.getLogger(__name__)

# Long enough for listening, too short for training.
MAX_SECONDS = 10.0


def write_example(
    model: Any,
    folder: pathlib.Path,
    checkpoint: Checkpoint,
    recording: str | pathlib.Path | None,
) -> dict[str, Any]:
    """Write an example recording, its tokens and the plots of the card.

    Returns the files for the card: ``example`` and ``example_tokens``, each a
    file name or None, and ``plots``, pairs of a file name and a caption."""
    files: dict[str, Any] = {"example": None, "example_tokens": None}
    if recording is not None and hasattr(model, "encode_file"):
        wav = read_audio(recording, model.sample_rate, duration=MAX_SECONDS)
        soundfile.write(folder / EXAMPLE, wav.numpy(), model.sample_rate)
        # Encode the written file, whose samples are rounded to 16 bits.
        tokens = model.encode_file(folder / EXAMPLE).tolist()
        content = {"file": EXAMPLE, "tokens": tokens}
        write_json(folder / EXAMPLE_TOKENS, content)
        files = {"example": EXAMPLE, "example_tokens": EXAMPLE_TOKENS}
    plots = files["plots"] = []
    if importlib.util.find_spec("matplotlib") is None:
        logger.info(
            'The card has no plots. To add them: pip install "%s"',
            "speechbrain-vq[report]",
        )
        return files
    # A Brain without VQMixin saves no monitors.
    monitors = read_trainer_state(checkpoint).get("monitors", {})
    counts = [m["sums"]["counts"] for m in monitors.values() if m["sums"]]
    if len({count.shape for count in counts}) == 1:
        _plot_usage(torch.cat(counts), folder / USAGE)
        plots.append((USAGE, "Codebook usage"))
    if files["example"] and hasattr(model, "reconstruct_file"):
        with tempfile.TemporaryDirectory() as scratch:
            decoded = pathlib.Path(scratch) / "decoded.wav"
            model.reconstruct_file(folder / EXAMPLE, decoded)
            _plot_spectrograms(folder / EXAMPLE, decoded, folder / SPECTROGRAM)
        plots.append((SPECTROGRAM, "The example and its reconstruction"))
    return files


def _plot_usage(counts: torch.Tensor, path: pathlib.Path) -> None:
    """Plot the code frequencies in ``counts`` [C, K], in descending order for
    each codebook."""
    figure, (axis,) = _make_figure(1, height=3.0)
    ranks = range(1, counts.shape[1] + 1)
    for book, row in enumerate(counts.double()):
        row = row.sort(descending=True).values.numpy()
        share = 100 * row / max(row.sum(), 1)
        axis.step(ranks, share, where="mid", label=f"codebook {book + 1}")
        if len(counts) == 1:
            axis.fill_between(ranks, share, step="mid", alpha=0.3)
    # A uniform distribution, for comparison.
    axis.axhline(100 / counts.shape[1], color="gray", linestyle=":")
    axis.set(
        xlabel="codes, most frequent first",
        ylabel="% of tokens",
        title="Codebook usage during training",
        xlim=(1, counts.shape[1]),
        ylim=(0, None),
    )
    if len(counts) > 1:
        axis.legend()
    figure.savefig(path)


def _plot_spectrograms(
    original: pathlib.Path, decoded: pathlib.Path, path: pathlib.Path
) -> None:
    """Plot the spectrogram of a recording above that of its reconstruction."""
    figure, axes = _make_figure(2, height=4.5)
    titles = ("original", "reconstructed from its tokens")
    for axis, file, title in zip(
        axes, (original, decoded), titles, strict=True
    ):
        samples, rate = soundfile.read(file)
        sizes = {"NFFT": 512, "noverlap": 384, "Fs": rate / 1000}
        span = (0, len(samples) / rate)
        # Digital silence has a logarithm of -inf; the colors span 80 dB.
        with np.errstate(divide="ignore"):
            *_, image = axis.specgram(
                samples, **sizes, xextent=span, cmap="magma"
            )
        loudest = image.get_array().max()
        image.set_clim(loudest - 80, loudest)
        axis.set(title=title, ylabel="kHz", facecolor="black")
    axes[-1].set(xlabel="seconds")
    figure.savefig(path)


def _make_figure(rows: int, height: float):
    """Create a figure without pyplot, which may require a display."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, height), dpi=100, layout="constrained")
    return figure, figure.subplots(rows, squeeze=False, sharex=True)[:, 0]
