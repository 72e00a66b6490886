"""Evaluation of a model or a token file with all metrics."""

import os
import pathlib
import warnings
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tqdm import tqdm

from speechbrain_vq.dataio.audio import count_reasons
from speechbrain_vq.dataio.logs import few_warnings
from speechbrain_vq.dataio.manifests import (
    TOLERANCE,
    first_names,
    read_manifest,
)
from speechbrain_vq.inference.engine import RayEngine

from .abx import Abx
from .abx_items import sample_items
from .bitrate import BitRate
from .conversion import Conversion, conversion_pairs
from .intervals import PoissonBootstrap
from .judges import judge_settings, load_judges
from .metric import Estimate, Metric
from .phone_units import PhoneInformation
from .probes import LinearProbes, sample_utterances
from .reconstruction import Reconstruction, sample_names
from .segmentation import Segmentation
from .tokens import TokenFile
from .utterances import EvaluatedModel


class Evaluation(NamedTuple):
    """Results of ``evaluate``: estimates by section and key, settings, notes on
    what was left out and why, tables of counts, and section titles.

    ``tables`` contains ``phone_units`` [phones, units] of the first codebook,
    the names of its ``phones``, and ``code_counts`` [C, K].
    """

    metrics: dict[str, dict[str, Estimate]]
    settings: dict
    left_out: list[str]
    tables: dict
    titles: dict[str, str]

    @property
    def figures(self) -> dict[str, dict[str, Estimate]]:
        """Former name of ``metrics``."""
        warnings.warn(
            "Evaluation.figures is now Evaluation.metrics",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.metrics


@few_warnings()
def evaluate(
    source: str | os.PathLike,
    manifest: str | os.PathLike,
    item: str | os.PathLike | None = None,
    judges: Iterable[str | Callable] = (),
    max_reconstructed: int = 32,
    replicates: int = 100,
    seed: int = 0,
    codebook_size: int | None = None,
    data_root: str | os.PathLike | None = None,
    conversions: int = 0,
    targets: str | os.PathLike | None = None,
    audio: str | os.PathLike | None = None,
    progress: bool = False,
    engine: RayEngine | None = None,
    **options,
) -> Evaluation:
    """Evaluate units by phone information, ABX, segmentation, linear probes,
    bit rate, reconstruction and voice conversion.

    All metrics are computed in one pass over the utterances. Besides the
    manifest, only counts and a limited number of ABX frames and probe inputs
    are kept, so memory grows with the numbers of codes and phone names. The 95 %
    confidence intervals are from a bootstrap over utterances, see
    ``intervals``.

    Arguments
    ---------
    source : path or VQTokenizer
        A model (an exported folder, ``org/name`` on the Hub, or a loaded one),
        or a ``.jsonl`` token file of any model, see ``tokens.read_tokens``.
    manifest : path
        JSON manifest, see ``read_manifest``. ABX requires speakers
        (``spk_id``).
    item : path, optional
        ZeroSpeech item file for ABX in the same context; by default, triphones
        of the manifest. ABX in any context always compares phones of the
        manifest.
    judges : iterable of str or callable
        Pretrained models that score speech, see ``judges``.
    max_reconstructed : int
        Maximum number of randomly drawn utterances to reconstruct.
    replicates : int
        Number of bootstrap replicates; 0 gives no intervals.
    seed : int
        Random seed.
    codebook_size : int, optional
        Codebook size of a token file; by default the one stored in its lines.
    data_root : path, optional
        Value of ``{data_root}`` in the manifest.
    conversions : int
        Maximum number of randomly drawn pairs of an utterance and another
        speaker to convert.
    targets : path, optional
        JSON manifest of the target speakers; by default ``manifest``.
    audio : path, optional
        Folder for the recordings of the conversions.
    progress : bool
        Whether to show a progress bar.
    engine : RayEngine, optional
        Engine that encodes the recordings; by default this process. Metrics
        and decoding always run in this process.
    **options
        ``revision``, ``run_opts`` and ``vocoder`` of
        ``VQTokenizer.from_hparams``.

    Raises
    ------
    ValueError
        If the manifest, the item file, the tokens or a judge are invalid, or
        no utterance can be evaluated.
    ImportError
        If a judge's package or weights are missing.

    Example
    -------
    >>> evaluation = evaluate("model", "test.json")  # doctest: +SKIP
    >>> evaluation.metrics["phones"]["pnmi"].value  # doctest: +SKIP
    0.61
    """
    entries = read_manifest(manifest, data_root)
    judges = load_judges(judges)
    bootstrap = PoissonBootstrap(replicates, seed)
    samples, notes = sample_items(entries, item, seed=seed)
    encoder = _open(source, codebook_size, engine, options)
    probed = sample_utterances(entries, seed=seed)
    metrics = {
        "phones": PhoneInformation(),
        "abx": Abx(samples, seed),
        "segmentation": Segmentation(),
        "leak": LinearProbes(probed, seed),
        "cost": BitRate(encoder.codebook_size),
    }
    if isinstance(encoder, EvaluatedModel):
        if max_reconstructed:
            names = sample_names(entries, max_reconstructed, seed)
            metrics["reconstruction"] = Reconstruction(encoder, names, judges)
        if conversions:
            voices = read_manifest(targets, data_root) if targets else entries
            known = encoder.tokenizer.speakers
            pairs = conversion_pairs(entries, conversions, seed, known, voices)
            metrics["conversion"] = Conversion(
                encoder, voices, pairs, judges, audio
            )
        else:
            notes.append("conversion to other voices: not requested")
        if judges and not (max_reconstructed or conversions):
            notes.append("judges: nothing is reconstructed")
    else:
        notes.append(
            "latents, codewords, reconstruction, conversion and judges: they "
            "need the model, not only its tokens"
        )
    settings = {
        "source": str(getattr(source, "source", source)),
        "manifest": str(manifest),
        "replicates": replicates,
        "seed": seed,
        **judge_settings(judges),
    }
    counts, left_out = _update(metrics, encoder, entries, bootstrap, progress)
    if not counts["utterances"]:
        raise ValueError(
            f"None of the {len(entries)} utterances of {manifest} could be "
            f"evaluated: {left_out[-1] if left_out else 'there are none'}"
        )
    notes += left_out
    return _collect(metrics, settings | counts, notes)


def _update(metrics, encoder, entries, bootstrap, progress):
    """Update all metrics. Return counts for the settings, and notes on
    omissions."""
    count, seconds, wrong_lengths = 0, 0.0, []
    for utterance in tqdm(
        encoder.utterances(entries),
        total=len(entries),
        unit="utt",
        disable=None if progress else True,
    ):
        name, entry = utterance.name, utterance.entry
        # A duration computed from the tokens may differ by up to a frame.
        tolerance = TOLERANCE + 1 / utterance.token_rate
        end = entry["phones"][-1][1] if entry["phones"] else 0
        if end > utterance.seconds + tolerance:
            encoder.errors[name] = (
                f"{entry['wav']}: its phones end after the audio, at {end:g} s "
                f"of {utterance.seconds:.2f} s. Times must be in seconds from "
                "the beginning of the file."
            )
            continue
        stated = entry.get("length", utterance.seconds)
        if abs(stated - utterance.seconds) > tolerance:
            wrong_lengths.append(name)
        weights = bootstrap.weights(name)
        for metric in metrics.values():
            metric.update(utterance, weights)
        count, seconds = count + 1, seconds + utterance.seconds
    counts = {"utterances": count, "seconds": round(seconds, 2)}
    # Keep the order of the manifest, even if an engine encoded it.
    errors = {n: encoder.errors[n] for n in entries if n in encoder.errors}
    if errors:
        reasons = {
            name: error.removeprefix(f"{entries[name]['wav']}: ")
            for name, error in errors.items()
        }
        counts["utterances_left_out"] = len(errors)
        counts["reasons"] = count_reasons(reasons)
    notes = [f"{name}: {error}" for name, error in errors.items()]
    if wrong_lengths:
        notes.append(
            f"lengths of {len(wrong_lengths)} utterances that differ from the "
            f"audio: {first_names(wrong_lengths)}"
        )
    return counts, notes


def _collect(
    metrics: dict[str, Metric], settings: dict, notes: list[str]
) -> Evaluation:
    """Compute all metrics, and collect their notes, settings and tables."""
    estimates = {name: metric.compute() for name, metric in metrics.items()}
    tables: dict = {}
    for name, metric in metrics.items():
        notes = notes + metric.notes(estimates[name])
        settings = settings | metric.settings()
        tables |= metric.tables()
    titles = {name: metric.label for name, metric in metrics.items()}
    estimates = {name: values for name, values in estimates.items() if values}
    return Evaluation(estimates, settings, notes, tables, titles)


def _open(source, codebook_size, engine, options):
    """Open the source of utterances: a model or a token file."""
    if not isinstance(source, str | os.PathLike):
        return EvaluatedModel(source, engine)
    path = pathlib.Path(source)
    if path.suffix == ".jsonl":
        return TokenFile(source, codebook_size)
    if path.is_file():
        raise ValueError(
            f"{source}: a token file must be .jsonl, as written by `tokenize` "
            "with --out=NAME.jsonl; a model is a folder, or org/name."
        )
    from speechbrain_vq.inference import VQTokenizer

    tokenizer = VQTokenizer.from_hparams(str(source), **options)
    return EvaluatedModel(tokenizer, engine)
