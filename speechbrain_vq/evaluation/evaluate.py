"""All measures at once, of a model or of tokens.

Authors
 * speechbrain_vq authors 2026
"""

import os
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tqdm import tqdm

from .conversion import Conversion, conversion_pairs
from .items import capped, make_items, read_items
from .judges import load_judge
from .leak import Leak, chosen
from .manifest import read_manifest
from .measures import Abx, CostOf, PhoneInformation, Segmentation
from .resynthesis import Reconstruction, has_pystoi, some_names
from .sampling import Figure, Replicates
from .sources import Model, TokenFile


class Evaluation(NamedTuple):
    """What came out.

    Arguments
    ---------
    figures : dict
        From section to a dict from name to ``Figure``.
    settings : dict
        What was evaluated, and how.
    left_out : list of str
        What was not, and why.
    tables : dict
        ``phone_units`` [phones, units] of the first codebook, the names of its
        ``phones``, and ``code_counts`` [C, K].
    """

    figures: dict[str, dict[str, Figure]]
    settings: dict
    left_out: list[str]
    tables: dict


def evaluate(
    source: str | os.PathLike,
    manifest: str | os.PathLike,
    item: str | os.PathLike | None = None,
    judges: Iterable[str | Callable] = (),
    max_reconstructed: int = 32,
    max_size_group: int = 10,
    replicates: int = 100,
    seed: int = 0,
    codebook_size: int | None = None,
    data_root: str | os.PathLike | None = None,
    conversions: int = 0,
    targets: str | os.PathLike | None = None,
    audio: str | os.PathLike | None = None,
    progress: bool = False,
    **options,
) -> Evaluation:
    """Measures what units are worth: what they say of phones, ABX, boundaries,
    what leaks, what they cost, and what comes back.

    Utterances stream by: what is kept are counts, the frames of a bounded
    number of ABX items of up to 50 speakers, and a bounded sample for probes.
    Intervals are of 95 %, by the bootstrap over utterances.

    Arguments
    ---------
    source : path or VQTokenizer
        A model: an exported folder, or ``org/name`` on the Hub, or one that is
        loaded; or tokens, a ``.jsonl`` that ``tokenize`` wrote.
    manifest : path
        A json manifest, see ``read_manifest``.
    item : path, optional
        A ZeroSpeech item file, for ABX with the same neighbours; by default
        triphones of the manifest's phones.
    judges : iterable of str or callable
        See ``judges``; none by default.
    max_reconstructed : int
        Utterances to reconstruct, at random.
    max_size_group : int
        ABX items of the same speaker, phone and, for the same context,
        neighbours.
    replicates : int
        Of the bootstrap; 0: no intervals.
    seed : int
        Of everything that is drawn.
    codebook_size : int, optional
        Of tokens in a file; by default the greatest token, and one.
    data_root : path, optional
        For ``{data_root}`` in the manifest.
    conversions : int
        Pairs of an utterance and another speaker to convert, at random.
    targets : path, optional
        A json manifest of those whose voices to take; by default the same.
    audio : path, optional
        A folder for the recordings of the conversions.
    progress : bool
        Whether to show a bar.
    **options
        ``revision`` and ``run_opts`` of ``VQTokenizer.from_hparams``.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If the manifest, the item file, the tokens or a judge are none, or
        nothing could be evaluated.

    Example
    -------
    >>> found = evaluate("model", "test.json")  # doctest: +SKIP
    >>> found.figures["phones"]["pnmi"]  # doctest: +SKIP
    Figure(value=0.61, low=0.59, high=0.63)
    """
    entries = read_manifest(manifest, data_root)
    judges = list(judges)
    asked = _judges(judges)
    draws = Replicates(replicates, seed)
    told: list[str] = []
    items = _items(entries, item, max_size_group, seed, told)
    opened = _open(source, options)
    opened.codebook_size = opened.codebook_size or codebook_size
    measures = {
        "phones": PhoneInformation(),
        "abx": Abx(items, seed),
        "segmentation": Segmentation(),
        "leak": Leak(chosen(entries, seed=seed), draws, seed),
        "cost": CostOf(opened.codebook_size),
    }
    if max_reconstructed and isinstance(opened, Model):
        measures["reconstruction"] = Reconstruction(
            opened.reconstruct,
            opened.tokenizer.sample_rate,
            some_names(entries, max_reconstructed, seed),
            asked,
        )
    if conversions and isinstance(opened, Model):
        voices = read_manifest(targets, data_root) if targets else entries
        measures["conversion"] = Conversion(
            opened.convert,
            opened.tokens,
            opened.tokenizer.sample_rate,
            voices,
            conversion_pairs(
                entries, conversions, seed, opened.speakers, voices
            ),
            asked,
            audio,
        )
    count, seconds = 0, 0.0
    with tqdm(total=len(entries), unit="utt", disable=not progress) as bar:
        for utterance in opened.utterances(entries):
            weights = draws.weights(utterance.name)
            for measure in measures.values():
                measure.add(utterance, weights)
            count, seconds = count + 1, seconds + utterance.seconds
            bar.update()
    told += [f"{name}: {why}" for name, why in opened.bad.items()]
    if not count:
        raise ValueError(
            f"None of the {len(entries)} utterances of {manifest} could be "
            f"evaluated: {told[-1] if told else 'there are none'}"
        )
    figures = {name: measure.figures() for name, measure in measures.items()}
    told += _missing(figures, entries, opened, measures, asked)
    settings = {
        "source": str(getattr(source, "source", source)),
        "manifest": str(manifest),
        "items": str(item) if item else "made of the manifest's phones",
        "utterances": count,
        "seconds": round(seconds, 2),
        "replicates": replicates,
        "seed": seed,
        "abx_max_size_group": max_size_group,
        "abx_max_x_across": 5,
        "abx_items": {context: len(some) for context, some in items.items()},
        "abx_frames": "those whose middle is in the item, as fastabx",
        "segmentation_tolerance": measures["segmentation"].tolerance,
        "judges": [
            j if isinstance(j, str) else name
            for name, j in zip(asked, judges, strict=True)
        ],
    }
    if "reconstruction" in measures:
        settings["reconstructed"] = measures["reconstruction"].done
    if "conversion" in measures:
        settings["converted"] = measures["conversion"].done
    table, phones = measures["phones"].table()
    tables = {
        "phone_units": table,
        "phones": phones,
        "code_counts": measures["cost"].cost.code_counts(),
    }
    found = {name: some for name, some in figures.items() if some}
    return Evaluation(found, settings, told, tables)


def _open(source, options):
    if not isinstance(source, str | os.PathLike):
        return Model(source)
    if pathlib.Path(source).suffix == ".jsonl":
        if not pathlib.Path(source).is_file():
            raise FileNotFoundError(f"{source}: there is no such file.")
        return TokenFile(source)
    from speechbrain_vq.inference import VQTokenizer

    return Model(VQTokenizer.from_hparams(str(source), **options))


def _judges(judges):
    found = [load_judge(j) if isinstance(j, str) else j for j in judges]
    names = [getattr(j, "__name__", type(j).__name__) for j in found]
    if len(set(names)) < len(names):
        raise ValueError(f"Judges need different names, not {names}.")
    return dict(zip(names, found, strict=True))


def _items(entries, path, size, seed, told):
    """Items by context, a bounded number."""
    given = read_items(path) if path else None
    if given is not None:
        unknown = [one for one in given if one.file not in entries]
        if unknown:
            told.append(
                f"{len(unknown)} of {len(given)} ABX items are of files that "
                f"the manifest does not name, e.g. {unknown[0].file}"
            )
        given = [one for one in given if one.file in entries]
    found = {}
    for context, triphones in (("within", True), ("any", False)):
        made = given
        if made is None or context == "any":
            made = (
                one
                for name, entry in entries.items()
                for one in make_items(
                    name, entry["phones"], entry.get("spk_id") or "", triphones
                )
            )
        found[context] = capped(made, context, size, seed=seed)
    return {context: some for context, some in found.items() if some}


def _missing(figures, entries, opened, measures, asked):
    """What could not be measured, in words."""
    told = []
    if not any(entry["phones"] for entry in entries.values()):
        told.append(
            "phone information, boundaries and the phone probe: the manifest "
            "has no phones"
        )
    if not figures["abx"]:
        told.append(
            "ABX: there is no item file, and the manifest has no phones of "
            "which to make items, or none are comparable"
        )
    elif measures["abx"].dropped:
        told.append(
            f"{measures['abx'].dropped} ABX items without a whole frame"
        )
    for what in ("speaker", "gender"):
        if f"{what}_chance" not in figures["leak"]:
            key = {"speaker": "spk_id"}.get(what, what)
            told.append(
                f"{what} probe: the manifest ({key}) does not name two, with "
                "two utterances each"
            )
    if not isinstance(opened, Model):
        told.append(
            "latents, codewords, reconstruction, conversion and judges: they "
            "need the model, not its tokens"
        )
        if not opened.codebook_size:
            told.append(
                "the codebook's size: taken as the greatest token, and one "
                "(codebook_size says it)"
            )
    elif "reconstruction" in figures and not has_pystoi():
        told.append('STOI: pip install "speechbrain-vq[eval]"')
    if isinstance(opened, Model):
        told += _missing_conversions(figures, measures, asked)
    if asked and not {"reconstruction", "conversion"} & measures.keys():
        told.append("judges: nothing is reconstructed")
    cost = figures["cost"]
    if "bits_per_second_zerospeech" not in cost:
        told.append("ZeroSpeech's bit rate: too many different codes")
    return told


def _missing_conversions(figures, measures, asked):
    if "conversion" not in measures:
        return ["conversion to other voices: not asked for (conversions)"]
    bad = measures["conversion"].bad
    told = [f"{pair}: {why}" for pair, why in bad.items()]
    if not figures["conversion"] and not told:
        told = [
            "conversion: the manifest (spk_id) does not name two speakers, or "
            "none whose voice the model knows"
        ]
    elif not asked:
        told.append("likeness of converted voices: no judge is named")
    return told
