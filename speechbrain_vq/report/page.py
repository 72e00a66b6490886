"""Write a self-contained HTML page on a run or a model."""

import datetime
import logging
import os
import pathlib
import tempfile
from collections.abc import Iterable
from typing import Any

import jinja2

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.items import SILENCES
from speechbrain_vq.dataio.manifests import duration
from speechbrain_vq.inference import VQTokenizer
from speechbrain_vq.publish import export_pretrained
from speechbrain_vq.publish.run import in_warmup

from .figures import CodeMap, legend, phone_unit_map, usage_curves
from .history import read_history, training_charts
from .images import mel_ticks
from .numbers import COLUMNS, rows, tiles
from .recordings import Measured, held_out, measure, read_recordings
from .reproduce import changes, command, facts
from .summary import FRAMES_PER_CODE, Summary, judge, summarize

logger = logging.getLogger(__name__)


def write_report(
    source: str | os.PathLike,
    output: str | os.PathLike = "report.html",
    compare: Iterable[str | os.PathLike] = (),
    data: str | os.PathLike | None = None,
    data_root: str | os.PathLike | None = None,
    revision: str | None = None,
    **options,
) -> pathlib.Path:
    """Write a self-contained HTML page on a run or a model, for use offline.
    Return its path.

    Arguments
    ---------
    source : path or str
        Run folder, model folder, name of a bundled model, or id of a model on
        the Hub.
    output : path
        HTML file to write.
    compare : iterable of path
        Further runs or models for the comparison table.
    data : path, optional
        Manifest, prepared corpus, audio file or folder of recordings to encode
        and play; by default the test set of the run, or the example of the
        model.
    data_root : path, optional
        Value of ``{data_root}`` in the manifest.
    revision : str, optional
        Branch, tag or commit of a model on the Hub.
    **options
        Options of ``VQTokenizer.from_hparams``, such as ``vocoder``.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such run, model or data.
    """
    summary = summarize(source, revision)
    others = [summarize(place) for place in compare]
    output = pathlib.Path(output)
    entries = None if data is None else read_recordings(data, data_root)
    tokenizer, notes = _load(summary, options)
    measured = tokenizer and _measure(tokenizer, summary, entries)
    name = None if data is None else pathlib.Path(data).name
    variables = _variables(summary, others, tokenizer, measured, name)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    template = environment.get_template("page.html")
    html = template.render(variables, notes=notes)
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as partial:
        # Names of files may not be valid text.
        partial.write_text(html, "utf-8", "backslashreplace")
    return output


def _load(summary, options):
    """Load the model, and first export that of a run to a temporary folder if
    necessary. Return it, or None if it cannot be loaded, and notes for the
    page."""
    notes = []
    try:
        if summary.model is not None:
            return VQTokenizer.from_hparams(summary.model, **options), notes
        if in_warmup(summary.run.latest):
            notes.append(
                "The run ended during its warm-up: its model does not "
                "quantize, and its tokens are meaningless."
            )
        with tempfile.TemporaryDirectory() as folder:
            place = pathlib.Path(folder, "model")
            export_pretrained(summary.run.folder, place, force=True)
            return VQTokenizer.from_hparams(place, **options), notes
    # Image models and runs without a checkpoint have training curves only.
    except (OSError, ValueError, KeyError) as error:
        if summary.run is None or any(options.values()):
            raise
        logger.warning("The report has no recordings: %s", error)
        return None, [*notes, f"The model cannot be loaded: {error}"]


def _measure(tokenizer, summary, entries):
    """Encode the given recordings, or else the test set of the run or the
    example of the model, if it can be read."""
    if entries is not None:
        return measure(tokenizer, entries)
    place = held_out(summary)
    if place is None:
        return None
    try:
        return measure(tokenizer, read_recordings(place))
    except (OSError, ValueError) as error:  # E.g. the audio was removed.
        logger.warning("The report has no recordings: %s", error)
        return None


def _variables(
    summary: Summary,
    others: list[Summary],
    tokenizer: VQTokenizer | None,
    measured: Measured | None,
    data: str | None,
) -> dict[str, Any]:
    """Return the variables of the template. ``data`` is the name of the given
    recordings, if any. Their metrics override those of the summary."""
    run, codes, phones = summary.run, None, []
    place = data or ("the test set" if run else "the example")
    size, books = summary.codebook_size, summary.num_codebooks or 1
    values, measured_on = summary.values, summary.measured_on
    longest = run and run.hparams.get("longest")
    if measured is not None:
        phones = measured.phones
        if data is None and "perplexity" in values:
            values = measured.values | values
        else:
            values = values | measured.values
            # The known error was not computed on these recordings.
            values.pop("reconstruction_error", None)
            measured_on, longest = place, None
    if tokenizer is not None:
        size = tokenizer.codebook_size
        books = len(tokenizer.mods.quantizer.codebook)
        table = measured and measured.phone_units
        codebooks = tokenizer.mods.quantizer.embedding.table
        codes = CodeMap(codebooks, table, phones)
    rate = tokenizer and tokenizer.token_rate
    # With too little held-out speech, judge the usage during training.
    verdict = judge(values, size, books, summary.preset)
    judged_on = f"On {measured_on}"
    if verdict.level == "unknown":
        trained = judge(summary.trained, size, books, summary.preset)
        if trained.level != "unknown":
            verdict = trained
            judged_on = "In the last epoch of training"
    history = run and read_history(run.folder)
    today = datetime.date.today()
    # The others were not evaluated on the given recordings.
    own = summary.values if data else values
    return {
        "summary": summary,
        "date": f"{today.day} {today:%B %Y}",
        "verdict": verdict,
        "judged_on": judged_on,
        "too_few": judged_on != f"On {measured_on}",
        "measured_on": measured_on,
        "longest": longest,
        "values": values,
        "tiles": list(tiles(values, size, books, rate)),
        "data": place,
        "measured": measured,
        "duration": measured and duration(measured.seconds),
        "ticks": tokenizer and mel_ticks(tokenizer.sample_rate),
        "rate": rate,
        "charts": training_charts(history) if run else [],
        "history": history,
        "usage": _usage_chart(summary, others, measured),
        "codes": codes,
        "size": size,
        "books": books,
        "legend": legend(phones),
        "silences": SILENCES,
        "units": phones and phone_unit_map(measured.phone_units, phones),
        "columns": COLUMNS.values(),
        "runs": [summary, *others],
        "rows": rows([own, *(other.values for other in others)]),
        "own_data": data is None and measured is not None,
        "command": run and command(summary),
        "changes": run and changes(summary),
        "facts": facts(summary),
    }


def _usage_chart(summary, others, measured):
    """Draw the code usage in the recordings or, if they are too short, during
    training. Return None if there are too few tokens."""
    sources = [(summary.counts(), "the last epoch of training")]
    if measured is not None:
        place = f"all {measured.utterances} recordings, in full"
        sources.insert(0, (measured.counts, place))
    for counts, source in sources:
        if counts is None:
            continue
        frames = int(counts[0].sum())
        if frames >= FRAMES_PER_CODE * counts.shape[1]:
            known = [(other.name, other.counts()) for other in others]
            known = [pair for pair in known if pair[1] is not None]
            chart = usage_curves(counts, known)
            return {"chart": chart, "source": source, "frames": frames}
    return None
