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
from speechbrain_vq.dataio.manifests import duration
from speechbrain_vq.evaluation.ipa import to_ipa
from speechbrain_vq.inference import VQTokenizer
from speechbrain_vq.publish import export_pretrained
from speechbrain_vq.publish.run import in_warmup

from .figures import CodeMap, is_few, legend, phone_unit_map, usage_curves
from .history import read_history, training_charts
from .images import mel_ticks, png
from .numbers import COLUMNS, rows, tiles
from .recordings import held_out, measure, read_recordings
from .reproduce import changes, command, facts
from .summary import REFERENCE_SIZE, judge, summarize

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
        and listen to; by default the test set of the run, or the example of
        the model.
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
    page = _Page(summary, others, options)
    if page.tokenizer is not None:
        page.measure(data, entries)
    page.collect(explicit=data is not None)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(pathlib.Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html").render(page.context())
    output.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(output) as partial:
        partial.write_text(html, "utf-8")
    return output


class _Page:
    """Variables of a report's template, computed in three steps: ``measure``,
    ``collect``, ``context``."""

    def __init__(self, summary, others, options):
        self.summary, self.others = summary, others
        self.notes: list[str] = []
        self.tokenizer = self._load(options)
        self.measured, self.data = None, None
        self.size = summary.codebook_size
        self.books = summary.num_codebooks or 1
        if self.tokenizer is not None:
            self.size = self.tokenizer.codebook_size
            self.books = len(self.tokenizer.mods.quantizer.codebook)

    def _load(self, options):
        """Load the model. A run without an exported model exports one to a
        temporary folder. Returns None if it cannot be loaded."""
        try:
            if self.summary.model is not None:
                return VQTokenizer.from_hparams(self.summary.model, **options)
            with tempfile.TemporaryDirectory() as folder:
                if in_warmup(self.summary.run.latest):
                    self.notes.append(
                        "The run ended within its warm-up: its model does not "
                        "quantize, and its tokens are meaningless."
                    )
                place = pathlib.Path(folder, "model")
                export_pretrained(self.summary.run.folder, place, force=True)
                return VQTokenizer.from_hparams(place, **options)
        # Models of images and runs without a checkpoint have curves only.
        except (OSError, ValueError, KeyError) as error:
            if self.summary.run is None or any(options.values()):
                raise
            logger.warning("The report has no recordings: %s", error)
            self.notes.append(f"The model cannot be loaded: {error}")
            return None

    def measure(self, data, entries):
        """Encode recordings, by default the test set of the run or the example
        of the model."""
        if entries is not None:
            self.measured = measure(self.tokenizer, entries)
            self.data = pathlib.Path(data).name
            return
        place = held_out(self.summary)
        if place is None:
            return
        try:
            self.measured = measure(self.tokenizer, read_recordings(place))
        except (OSError, ValueError) as error:  # E.g. the audio was removed.
            logger.warning("The report has no recordings: %s", error)
        self.data = "the test set" if self.summary.run else "the example"

    def collect(self, explicit):
        """Set the values to show. Those of the recordings take precedence if
        ``explicit``, or if the summary has none."""
        self.values = dict(self.summary.values)
        self.measured_on = self.summary.measured_on
        run, measured = self.summary.run, self.measured
        self.longest = run and run.hparams.get("longest")
        if measured is None:
            return
        counts, values = measured.counts, measured.values
        pnmi = values.get("pnmi" if len(counts) == 1 else "pnmi_codebook_1")
        own = {
            "used_codes_percent": values["used_codes_percent"],
            "perplexity": values["perplexity"],
            "bits_per_second": values["bits_per_second_entropy"],
            "vectors": int(counts[0].sum()),
            "mel_cepstral_distortion": measured.distortion,
            **({} if pnmi is None else {"pnmi": pnmi}),
        }
        if explicit or "perplexity" not in self.values:
            # The known error is not of these recordings.
            self.values.pop("reconstruction_error", None)
            self.values |= own
            self.measured_on = self.data
            self.longest = None
        else:
            self.values = own | self.values

    def context(self) -> dict[str, Any]:
        """Return the variables of the template."""
        verdict, judged_on = self._verdict()
        measured, phones = self.measured, self.phones
        table = None if measured is None else measured.phone_units
        codes = None
        if self.tokenizer is not None:
            codebooks = self.tokenizer.mods.quantizer.embedding.table
            codes = CodeMap(codebooks, table, phones)
        run = self.summary.run
        rate = self.tokenizer and self.tokenizer.token_rate
        compared = [self.summary._replace(values=self.values), *self.others]
        history = read_history(run.folder if run else None)
        today = datetime.date.today()
        return {
            "name": self.summary.name,
            "date": f"{today.day} {today:%B %Y}",
            "about": self._about(),
            "verdict": verdict,
            "judged_on": judged_on,
            "too_few": judged_on != f"On {self.measured_on}",
            "measured_on": self.measured_on,
            "frames": self.values.get("vectors"),
            "longest": self.longest,
            "values": self.values,
            "tiles": list(tiles(self.values, self.size, self.books, rate)),
            "reference_size": REFERENCE_SIZE,
            "notes": self.notes,
            "data": self.data,
            "measured": self.measured,
            "duration": self.measured and duration(self.measured.seconds),
            "utterances": list(_players(self.tokenizer, measured, codes)),
            "charts": training_charts(history),
            "history": history,
            "usage": self._usage(),
            "map": codes and codes.draw(measured and measured.counts),
            "variance": codes and codes.variance,
            "books": self.books,
            "legend": legend(phones),
            "units": phone_unit_map(table, phones) if phones else None,
            "columns": COLUMNS,
            "rows": rows(compared),
            "command": command(self.summary),
            "changes": changes(self.summary),
            "facts": facts(self.summary),
        }

    def _verdict(self):
        """Judge the usage of the codebook on held-out speech or, if there is
        too little of it, in training. Return the verdict and its data."""
        about = self.size, self.books, self.summary.preset
        verdict = judge(self.values, *about)
        if verdict.level == "unknown":
            trained = judge(self.summary.trained, *about)
            if trained.level != "unknown":
                return trained, "In the last epoch of the training"
        return verdict, f"On {self.measured_on}"

    def _about(self):
        parts = []
        if self.summary.preset:
            parts.append(f"preset {self.summary.preset}")
        if self.size:
            books = f"{self.books} × " if self.books > 1 else ""
            parts.append(f"{books}{self.size} codes")
        if self.tokenizer is not None:
            parts.append(f"{self.tokenizer.token_rate:g} tokens a second")
        if "steps" in self.values:
            parts.append(f"{self.values['steps']:,} steps")
        return " · ".join(parts)

    @property
    def phones(self) -> list[str]:
        """Names of the phones in the recordings, if any."""
        return self.measured.phones if self.measured else []

    def _usage(self):
        """Draw the usage of the codes; None if there are too few tokens."""
        counts, source = None, "the recordings above, at full length"
        if self.measured is not None:
            counts = self.measured.counts
        trained = self.summary.counts()
        if is_few(counts) and trained is not None:
            counts, source = trained, "the last epoch of the training"
        if is_few(counts):
            return None
        others = [(other.name, other.counts()) for other in self.others]
        known = [(name, other) for name, other in others if other is not None]
        return {
            "chart": usage_curves(counts, known),
            "source": source,
            "frames": int(counts[0].sum()),
        }


def _players(tokenizer, measured, codes):
    """Yield the template variables of each example: texts, audio with
    spectrograms, tokens and phones."""
    if measured is None:
        return
    ipa = to_ipa(measured.phones)
    for example in measured.examples:
        phones = [
            (start, min(end, example.seconds), ipa.get(name, name))
            for start, end, name in example.entry.get("phones") or ()
            if start < example.seconds
        ]
        names = ("Original", "Reconstruction")
        clips = zip(names, example.audio, example.mels, strict=True)
        tokens = example.tokens
        # The audio may be up to one token longer than its tokens.
        share = len(tokens) / tokenizer.token_rate / example.seconds
        yield {
            "name": example.name,
            "speaker": example.entry.get("spk_id"),
            "words": example.entry.get("words"),
            "seconds": round(example.seconds, 3),
            "whole": example.whole,
            "clips": [
                {"name": name, "audio": audio, "image": png(mel)}
                for name, audio, mel in clips
            ],
            "ticks": mel_ticks(tokenizer.sample_rate),
            "rate": tokenizer.token_rate,
            "tokens": [" ".join(map(str, row)) for row in tokens.tolist()],
            "books": tokens.shape[1],
            "strip_share": min(share, 1),
            "strip": codes.strip(tokens),
            "phones": phones,
        }
