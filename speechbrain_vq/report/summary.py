"""Summarize a run or a model, and judge its codebook usage."""

import math
import pathlib
from typing import Any, NamedTuple

import torch

from speechbrain_vq.dataio.manifests import read_json
from speechbrain_vq.hub.download import download
from speechbrain_vq.hub.folder import CONFIG
from speechbrain_vq.publish.run import Run, read_trainer_state

from .numbers import COLUMNS

# Thresholds of a good and of a collapsed codebook: used codes and perplexity,
# relative to uniform usage on the same number of frames.
GOOD_USED, GOOD_PERPLEXITY = 0.6, 0.25
COLLAPSED_USED, COLLAPSED_PERPLEXITY = 0.15, 0.05
# Minimum number of frames per code to judge usage.
FRAMES_PER_CODE = 4


class Summary(NamedTuple):
    """Row in a comparison of runs and models; unknown fields are None.

    ``values`` are the known metrics on the data named by ``measured_on``, and
    ``trained`` those of the last training epoch.
    """

    name: str
    preset: str | None
    seed: int | None
    codebook_size: int | None
    num_codebooks: int | None
    values: dict[str, float]
    measured_on: str
    trained: dict[str, float]
    run: Run | None
    model: pathlib.Path | None

    def counts(self) -> torch.Tensor | None:
        """Read the code counts [C, K] in the last training epoch from the
        latest checkpoint of a run. Return None if there are none."""
        try:
            state = read_trainer_state(self.run.latest) if self.run else {}
        except OSError:
            return None
        for monitor in state.get("monitors", {}).values():
            counts = monitor["sums"].get("counts")
            if counts is not None and counts.sum():
                return counts
        return None


class Verdict(NamedTuple):
    """Verdict on a codebook: ``level`` is good, fair, collapsed or unknown, and
    ``advice`` lists what to try."""

    level: str
    text: str
    advice: tuple[str, ...] = ()


def summarize(
    place: str | pathlib.Path, revision: str | None = None
) -> Summary:
    """Read the summary of a run or a model, given by its folder or name. Raises
    FileNotFoundError if there is none.

    Example
    -------
    >>> summarize("units").codebook_size
    512
    """
    folder = pathlib.Path(place)
    if not folder.is_dir():
        # Keep the given name: folders in the Hub's cache are named by commit.
        return _of_model(download(place, revision), str(place))
    if (folder / CONFIG).is_file():
        return _of_model(folder, _name(folder))
    run, model = Run.open(folder), folder / "model"
    hparams, config = run.hparams, {}
    if (model / CONFIG).is_file():
        config = read_json(model / CONFIG)
    elif isinstance(hparams.get("vq"), dict):
        config = {"num_codebooks": hparams["vq"].get("num_codebooks", 1)}
    try:
        meta = run.latest.meta
    except FileNotFoundError:
        meta = {}
    values, measured_on = _numbers(run.results), "the test set"
    if not values:
        values, measured_on = _numbers(meta, "valid_"), "the validation set"
    return Summary(
        _name(folder),
        hparams.get("preset", hparams.get("arm")),
        hparams.get("seed"),
        config.get("codebook_size") or hparams.get("codebook_size"),
        config.get("num_codebooks"),
        values,
        measured_on,
        _numbers(meta, "train_"),
        run,
        model if (model / CONFIG).is_file() else None,
    )


def judge(
    values: dict[str, float],
    size: int | None,
    num_codebooks: int = 1,
    preset: str | None = None,
) -> Verdict:
    """Judge the usage of a codebook in one sentence.

    ``values`` are ``used_codes_percent``, ``perplexity`` and, if known,
    ``vectors`` (the number of frames). ``preset`` is the one used in training,
    for the advice.

    Example
    -------
    >>> judge({"used_codes_percent": 94, "perplexity": 391}, 512).text
    '94 % of 512 codes used, perplexity 391: no sign of collapse.'
    >>> judge({"used_codes_percent": 2, "perplexity": 3}, 512).level
    'collapsed'
    """
    used, perplexity = map(values.get, ("used_codes_percent", "perplexity"))
    if used is None or perplexity is None or not size:
        return Verdict("unknown", "The codebook usage is unknown.")
    codes = f"{num_codebooks} × {size}" if num_codebooks > 1 else f"{size}"
    usage = f"{used:.0f} % of {codes} codes used, perplexity {perplexity:.3g}"
    frames = values.get("vectors") or math.inf
    # Expected fraction of codes that occur in this many frames if all codes are
    # equally likely.
    possible = 1 - (1 - 1 / size) ** min(frames, 10**9)
    used, perplexity = used / 100 / possible, perplexity / size / possible
    if used < COLLAPSED_USED or perplexity < COLLAPSED_PERPLEXITY:
        text = f"{usage}: the codebook has collapsed."
        return Verdict("collapsed", text, _advice(preset))
    if frames < FRAMES_PER_CODE * size:
        text = (
            f"{usage}: too few frames to judge it ({frames:,}), but there is "
            "no sign of collapse."
        )
        return Verdict("unknown", text)
    if used < GOOD_USED or perplexity < GOOD_PERPLEXITY:
        text = f"{usage}: much of the codebook is hardly used."
        return Verdict("fair", text, _advice(preset))
    return Verdict("good", f"{usage}: no sign of collapse.")


def _name(folder: pathlib.Path) -> str:
    """Return the name of a folder, including its parent's name if it is only a
    seed or ``model``."""
    folder = folder.resolve()
    if folder.name.isdigit() or folder.name == "model":
        return f"{folder.parent.name}/{folder.name}"
    return folder.name


def _advice(preset):
    advice = []
    if preset != "robust":
        now = f"now {preset}" if preset else "the recipes' default"
        advice.append(
            f"Train with --preset=robust ({now}): it re-initializes the "
            "codebook by k-means and raises its learning rate."
        )
    return (
        *advice,
        "Train longer, with more --steps: the codebook is "
        "re-initialized until 80 % of the run.",
        "Use more speech, more varied speech, or fewer codes, for example "
        "--codebook_size=128.",
    )


def _of_model(folder, name):
    config = read_json(folder / CONFIG)
    checkpoint = config.get("checkpoint") or {}
    return Summary(
        name,
        config.get("arm"),
        config.get("seed"),
        config.get("codebook_size"),
        config.get("num_codebooks", 1),
        _numbers(checkpoint, "valid_"),
        "the validation set of its training",
        _numbers(checkpoint, "train_"),
        None,
        folder,
    )


def _numbers(values: dict[str, Any], stage: str = "") -> dict[str, float]:
    """Select the metrics of a stage that are finite numbers, and the number of
    frames (``vectors``)."""
    numbers = {}
    for name in (*COLUMNS, "vectors"):
        value = values.get(stage + name, values.get(name))
        if isinstance(value, int | float) and math.isfinite(value):
            numbers[name] = value
    return numbers
