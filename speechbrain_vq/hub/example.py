"""What an exported folder shows: an utterance, its tokens, two pictures.

Authors
 * speechbrain_vq authors 2026
"""

import importlib.util
import json
import logging
import pathlib
import tempfile
from typing import Any

import soundfile
import torch
from speechbrain.utils.checkpoints import Checkpoint

from speechbrain_vq.dataio.audio import read_audio

from .runs import read_training_state

logger = logging.getLogger(__name__)

EXAMPLE, EXAMPLE_TOKENS = "example.wav", "example.tokens.json"
USAGE, SPECTROGRAM = "codebook_usage.png", "spectrogram.png"
PLOTS = (USAGE, SPECTROGRAM)
# Of the example, in seconds: to be heard, not to be trained on.
LONGEST = 10.0


def show(
    model: Any,
    folder: pathlib.Path,
    checkpoint: Checkpoint,
    example: pathlib.Path | None,
) -> dict[str, Any]:
    """Writes what there is to show.

    Arguments
    ---------
    model : object
        The model, loaded from the folder.
    folder : pathlib.Path
        Where it goes.
    checkpoint : Checkpoint
        What the model was made of.
    example : pathlib.Path, optional
        A recording.

    Returns
    -------
    dict
        The names of the ``example`` and ``example_tokens`` or None, and
        ``plots``: pairs of a name and what is seen.
    """
    files: dict[str, Any] = {"example": None, "example_tokens": None}
    if example is not None and hasattr(model, "encode_file"):
        _write_example(model, folder, example)
        files = {"example": EXAMPLE, "example_tokens": EXAMPLE_TOKENS}
    if importlib.util.find_spec("matplotlib") is None:
        logger.warning(
            "The card has no plots: they need matplotlib, "
            'pip install "speechbrain-vq[report]"'
        )
        return {**files, "plots": []}
    plots = []
    if _plot_usage(folder, checkpoint):
        plots.append((USAGE, "How often the codes are used"))
    if files["example"] and hasattr(model, "reconstruct_file"):
        _plot_spectrogram(model, folder)
        plots.append((SPECTROGRAM, "The example and what its tokens keep"))
    return {**files, "plots": plots}


def _write_example(model, folder, example) -> None:
    wav = read_audio(example, model.sample_rate, duration=LONGEST)
    soundfile.write(folder / EXAMPLE, wav.numpy(), model.sample_rate)
    # Of the file as it was written: its 16 bits have rounded.
    tokens = model.encode_file(folder / EXAMPLE).tolist()
    text = json.dumps({"file": EXAMPLE, "tokens": tokens})
    (folder / EXAMPLE_TOKENS).write_text(text + "\n", encoding="utf-8")


def _plot_usage(folder, checkpoint) -> bool:
    """From the sums that ``VQMixin`` keeps in a checkpoint; plain Brains have
    none."""
    monitors = read_training_state(checkpoint).get("monitors", {})
    counts = [m["sums"]["counts"] for m in monitors.values() if m["sums"]]
    if not counts or any(c.shape != counts[0].shape for c in counts):
        return False
    from .plots import plot_usage

    plot_usage(
        torch.cat(counts), "Use of the codes in training", folder / USAGE
    )
    return True


def _plot_spectrogram(model, folder) -> None:
    from .plots import plot_spectrograms

    with tempfile.TemporaryDirectory() as other:
        decoded = pathlib.Path(other) / "decoded.wav"
        model.reconstruct_file(folder / EXAMPLE, decoded)
        plot_spectrograms(folder / EXAMPLE, decoded, folder / SPECTROGRAM)
