"""An evaluation as a table to read, and as files.

Authors
 * speechbrain_vq authors 2026
"""

import json
import os
import pathlib

from speechbrain_vq.dataio.replacing import replacing

from .evaluate import Evaluation
from .plots import plot_phone_units
from .sampling import Figure

SECTIONS = {
    "phones": "What units say of phones",
    "abx": "ABX error (0.5 is chance)",
    "segmentation": "Unit changes against phone boundaries (20 ms)",
    "leak": "Accuracy of linear probes",
    "cost": "Cost",
    "reconstruction": "Reconstruction against the original",
    "conversion": "Conversion to other voices",
}
UNITS = {
    "entropy_of_phone_given_unit": "bits",
    "entropy_of_unit_given_phone": "bits",
    "mel_cepstral_distortion": "dB",
    "log_spectral_distance": "dB",
    "si_snr": "dB",
    "f0_rmse": "Hz",
}


def as_text(evaluation: Evaluation) -> str:
    """A plain table.

    Arguments
    ---------
    evaluation : Evaluation
        What came out.

    Returns
    -------
    str
    """
    lines = []
    for title, rows in _sections(evaluation):
        width = max(len(row[0]) for row in rows)
        lines += ["", title]
        lines += [
            f"  {name:{width}}  {value:>9}  {interval}".rstrip()
            for name, value, interval in rows
        ]
    lines += _notes(evaluation, "\n", "  ")
    return "\n".join(lines).lstrip("\n") + "\n"


def as_markdown(evaluation: Evaluation) -> str:
    """Tables in markdown.

    Arguments
    ---------
    evaluation : Evaluation
        What came out.

    Returns
    -------
    str
    """
    lines = ["# Evaluation"]
    for title, rows in _sections(evaluation):
        lines += ["", f"## {title}", ""]
        lines += ["| measure | value | 95 % interval |", "|---|---|---|"]
        lines += [f"| {' | '.join(row)} |" for row in rows]
    lines += _notes(evaluation, "\n## ", "- ")
    return "\n".join(lines) + "\n"


def as_json(evaluation: Evaluation) -> dict:
    """Figures that json can hold; None where there is no number.

    Arguments
    ---------
    evaluation : Evaluation
        What came out.

    Returns
    -------
    dict
    """
    return {
        "figures": {
            section: {name: _plain(one) for name, one in figures.items()}
            for section, figures in evaluation.figures.items()
        },
        "settings": evaluation.settings,
        "left_out": evaluation.left_out,
    }


def write_report(
    evaluation: Evaluation, folder: str | os.PathLike
) -> list[pathlib.Path]:
    """Writes ``results.json``, ``results.md`` and, where matplotlib is
    installed and there are phones, ``phone_units.png``.

    Arguments
    ---------
    evaluation : Evaluation
        What came out.
    folder : path
        Where to; made if absent.

    Returns
    -------
    list of pathlib.Path
        The files.
    """
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    picture = folder / "phone_units.png"
    text = as_markdown(evaluation)
    files = []
    if evaluation.tables["phones"]:
        try:
            with replacing(picture) as partial:
                plot_phone_units(
                    evaluation.tables["phone_units"],
                    evaluation.tables["phones"],
                    partial,
                )
            text += f"\n![P(phone | unit)]({picture.name})\n"
            files.append(picture)
        except ImportError:
            text += (
                "\nThe picture of phones and units needs "
                'pip install "speechbrain-vq[report]".\n'
            )
    numbers = json.dumps(as_json(evaluation), indent=2, allow_nan=False)
    for name, content in (
        ("results.json", numbers + "\n"),
        ("results.md", text),
    ):
        with replacing(folder / name) as partial:
            partial.write_text(content, "utf-8")
        files.append(folder / name)
    return files


def _sections(evaluation):
    for section, title in SECTIONS.items():
        figures = evaluation.figures.get(section)
        if figures:
            yield title, [_row(name, one) for name, one in figures.items()]


def _row(name, figure: Figure):
    unit = UNITS.get(name, "")
    label = name.replace("_", " ") + (f" ({unit})" if unit else "")
    interval = ""
    if figure.low is not None:
        interval = f"{_number(figure.low)} to {_number(figure.high)}"
    return label, _number(figure.value), interval


def _number(value):
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def _plain(figure):
    return {
        # nan is no json.
        name: value if value is None or value == value else None
        for name, value in figure._asdict().items()
    }


def _notes(evaluation, before, bullet):
    lines = []
    settings = [f"{k}: {v}" for k, v in evaluation.settings.items()]
    for title, notes in (
        ("Left out", evaluation.left_out[:20]),
        ("Settings", settings),
    ):
        if notes:
            lines += [before + title] + [""] * before.count("#")
            lines += [bullet + note for note in notes]
        if title == "Left out" and len(evaluation.left_out) > 20:
            lines.append(
                f"{bullet}... and {len(evaluation.left_out) - 20} more"
            )
    return lines
