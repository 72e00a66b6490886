"""An evaluation as a table to read, and as files.

Authors
 * speechbrain_vq authors 2026
"""

import json
import os
import pathlib
import re

from speechbrain_vq.dataio.atomic import atomic_write

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
# What figures are called, where their keys with spaces do not say it.
LABELS = {
    "pnmi": "PNMI",
    "entropy_of_phone_given_unit": "entropy of phone given unit (bits)",
    "entropy_of_unit_given_phone": "entropy of unit given phone (bits)",
    "f1": "F1",
    "over_segmentation": "over-segmentation",
    "r_value": "R-value",
    "bits_per_second_entropy": "bits per second, by the entropy of a token",
    "bits_per_second_log2_codes": "bits per second, by log2 of the codes",
    "bits_per_second_zerospeech": "bits per second, ZeroSpeech's bit rate",
    "bits_per_second_runs": "bits per second of runs, by their entropy",
    "mel_cepstral_distortion": "mel-cepstral distortion (dB)",
    "log_spectral_distance": "log-spectral distance (dB)",
    "si_snr": "SI-SNR (dB)",
    "stoi": "STOI",
    "f0_rmse": "RMSE of F0 (Hz)",
    "voicing_error": "voicing error (share of frames)",
    "token_agreement": "tokens kept (share of frames)",
    "token_agreement_own_voice": "tokens kept in the own voice "
    "(share of frames)",
    "closer_to_target": "closer to the target (share of pairs)",
    "wer_source": "word error rate of the source",
    "wer_output": "word error rate of the output",
}
SETTINGS = {
    "abx_items_from": "ABX items",
    "seconds": "seconds of speech",
    "replicates": "replicates of the bootstrap",
    "abx": "ABX by",
    "abx_max_size_group": "ABX items of a phone, speaker and neighbours, "
    "at most",
    "abx_max_x_across": "ABX speakers of X, across, at most",
    "abx_items": "ABX items used",
    "abx_items_of": "ABX items that there are",
    "abx_triples": "ABX triples compared",
    "abx_triples_of": "ABX triples that there are",
    "abx_frames": "ABX frames of an item",
    "segmentation_tolerance": "tolerance of boundaries",
    "reconstructed": "utterances reconstructed",
    "converted": "utterances converted",
}
_CONTEXTS = {"within": "same context", "any": "any context"}


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
    lines += _notes(evaluation, "", "  ")
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
    lines += _notes(evaluation, "## ", "- ")
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
            with atomic_write(picture) as partial:
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
        with atomic_write(folder / name) as partial:
            partial.write_text(content, "utf-8")
        files.append(folder / name)
    return files


def _sections(evaluation):
    for section, title in SECTIONS.items():
        figures = evaluation.figures.get(section)
        if figures:
            yield title, [_row(name, one) for name, one in figures.items()]


def _row(name, figure: Figure):
    interval = ""
    if figure.low is not None:
        interval = f"{_number(figure.low)} to {_number(figure.high)}"
    return _label(name), _number(figure.value), interval


def _label(name):
    """``pnmi_codebook_2`` is "PNMI, codebook 2"."""
    judge, _, name = name.rpartition(":")
    name, _, book = name.partition("_codebook_")
    label = LABELS.get(name) or _spaced(name)
    label += f", codebook {book}" if book else ""
    return f"{judge}: {label}" if judge else label


def _spaced(name):
    """A key as words."""
    condition = r"^(?:abx_)?(\w+)_speaker_(\w+)_context"
    name = re.sub(condition, r"\1 speakers, \2 context", name)
    return name.replace("context_", "context: ").replace("_", " ")


def _number(value):
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.4f}"


def _plain(figure):
    return {
        # nan is no json.
        name: value if value is None or value == value else None
        for name, value in figure._asdict().items()
    }


def _settings(evaluation):
    """The settings in words."""
    for name, value in evaluation.settings.items():
        if isinstance(value, dict):
            pairs = value.items()
            value = [
                f"{v} ({_CONTEXTS.get(k) or _spaced(k)})" for k, v in pairs
            ]
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        if name == "segmentation_tolerance":
            value = f"{1000 * value:g} ms"
        yield f"{SETTINGS.get(name) or _spaced(name)}: {value}"


def _notes(evaluation, before, bullet):
    left_out = evaluation.left_out[:20]
    if len(evaluation.left_out) > 20:
        left_out.append(f"... and {len(evaluation.left_out) - 20} more")
    lines = []
    for title, notes in (
        ("Left out", left_out),
        ("Settings", list(_settings(evaluation))),
    ):
        if notes:
            # A heading of markdown wants an empty line behind it.
            lines += ["", before + title] + [""] * bool(before)
            lines += [bullet + note for note in notes]
    return lines
