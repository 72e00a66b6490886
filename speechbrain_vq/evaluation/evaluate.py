"""All measures at once, of a model or of tokens.

Authors
 * speechbrain_vq authors 2026
"""

import itertools
import os
import pathlib
from collections.abc import Callable, Iterable
from typing import NamedTuple

from tqdm import tqdm

from speechbrain_vq.dataio.manifests import read_manifest

from .choice import choose_items
from .conversion import Conversion, conversion_pairs
from .judges import judge_name, load_judge
from .leak import Leak, chosen
from .measures import (
    Abx,
    CostOf,
    PhoneInformation,
    Segmentation,
    condition,
)
from .ranges import figures_of
from .resynthesis import Reconstruction, has_pystoi, some_names
from .sampling import Figure, Replicates
from .sources import LONGEST, Model
from .tokens import TokenFile

# What files of tokens of other kinds end in.
_NO_TOKENS = {".npz", ".npy", ".json", ".txt", ".csv", ".pt"}


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
    abx: str = "own",
    progress: bool = False,
    **options,
) -> Evaluation:
    """Measures what units are worth: what they say of phones, ABX, boundaries,
    what leaks, what they cost, and what comes back.

    Utterances stream by: what is kept are the manifest, counts, the frames of
    a bounded number of ABX items of up to 50 speakers, and a bounded sample
    for probes. Of ABX, a bounded number of triples is compared, all there are
    of some hundred utterances; ``settings`` say how many. Intervals are of
    95 %, by the bootstrap over utterances; see ``ranges``.

    Arguments
    ---------
    source : path or VQTokenizer
        A model: an exported folder, or ``org/name`` on the Hub, or one that is
        loaded; or tokens of any model, a ``.jsonl`` as ``tokenize`` writes it,
        see ``tokens.read_tokens``.
    manifest : path
        A json manifest, see ``read_manifest``. Without speakers (``spk_id``)
        there is no ABX.
    item : path, optional
        A ZeroSpeech item file, for ABX with the same neighbours; by default
        triphones of the manifest's phones. Of any neighbours, items are always
        the manifest's phones.
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
    abx : str
        Whose ABX: ``"own"``, or ``"fastabx"`` where it is installed, which has
        no intervals.
    progress : bool
        Whether to show a bar.
    **options
        ``revision``, ``run_opts`` and ``vocoder`` of
        ``VQTokenizer.from_hparams``.

    Returns
    -------
    Evaluation

    Raises
    ------
    ValueError
        If the manifest, the item file, the tokens or a judge are none, or
        nothing could be evaluated.
    ImportError
        If fastabx or what a judge needs is asked for and not installed.

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
    items, told = choose_items(entries, item, max_size_group, seed)
    opened = _open(source, codebook_size, options)
    measures = {
        "phones": PhoneInformation(),
        "abx": Abx({c: one.items for c, one in items.items()}, seed, abx),
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
            opened.own_phases,
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
            for name, measure in measures.items():
                some = utterance
                if name in ("reconstruction", "conversion"):
                    some = opened.beginning(utterance)
                measure.add(some, weights)
            count, seconds = count + 1, seconds + utterance.seconds
            bar.update()
    told += [f"{name}: {why}" for name, why in opened.bad.items()]
    if not count:
        raise ValueError(
            f"None of the {len(entries)} utterances of {manifest} could be "
            f"evaluated: {told[-1] if told else 'there are none'}"
        )
    figures = {
        name: figures_of(measure, count) for name, measure in measures.items()
    }
    if figures.get("reconstruction") and opened.own_phases:
        told.append(
            f"SI-SNR: {opened.vocoder} makes phases of its own, so that "
            "samples cannot be compared"
        )
    told += _missing(figures, entries, opened, measures, asked, items)
    settings = {
        "source": str(getattr(source, "source", source)),
        "manifest": str(manifest),
        "abx_items_from": {c: one.source for c, one in items.items()},
        "utterances": count,
        "seconds": round(seconds, 2),
        "replicates": replicates,
        "seed": seed,
        "abx": abx,
        "abx_max_size_group": max_size_group,
        "abx_max_x_across": 5,
        "abx_items": {c: len(one.items) for c, one in items.items()},
        "abx_items_of": {c: one.of for c, one in items.items()},
        "abx_triples": {c: n for c, (n, _) in measures["abx"].triples.items()},
        "abx_triples_of": {
            c: n for c, (_, n) in measures["abx"].triples.items()
        },
        "abx_frames": "those whose middle is in the item, as fastabx",
        "segmentation_tolerance": measures["segmentation"].tolerance,
        "judges": [
            j if isinstance(j, str) else name
            for name, j in zip(asked, judges, strict=True)
        ],
    }
    if isinstance(opened, Model):
        settings["vocoder"] = opened.vocoder
    if {"reconstruction", "conversion"} & measures.keys():
        settings["seconds_heard"] = f"the first {LONGEST:g} of an utterance"
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


def _open(source, codebook_size, options):
    if not isinstance(source, str | os.PathLike):
        return Model(source)
    path = pathlib.Path(source)
    if path.suffix == ".jsonl":
        if not path.is_file():
            raise FileNotFoundError(f"{source}: there is no such file.")
        return TokenFile(source, codebook_size)
    if not path.is_dir() and (path.is_file() or path.suffix in _NO_TOKENS):
        raise ValueError(
            f"{source}: of tokens only .jsonl is taken, as `tokenize` writes "
            "it with --out=NAME.jsonl; a model is a folder, or org/name."
        )
    from speechbrain_vq.inference import VQTokenizer

    return Model(VQTokenizer.from_hparams(str(source), **options))


def _judges(judges):
    found = [load_judge(judge) for judge in judges]
    names = [judge_name(judge) for judge in found]
    if len(set(names)) < len(names):
        raise ValueError(f"Judges need different names, not {names}.")
    return dict(zip(names, found, strict=True))


def _missing(figures, entries, opened, measures, asked, items):
    """What could not be measured, in words."""
    told = []
    if not any(entry["phones"] for entry in entries.values()):
        told.append(
            "phone information, boundaries and the phone probe: the manifest "
            "has no phones"
        )
    told += _missing_abx(figures["abx"], entries, items)
    if measures["abx"].dropped:
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


def _missing_abx(figures, entries, items):
    """Which conditions, and why."""
    spoken = [entry for entry in entries.values() if entry["phones"]]
    nameless = sum(not entry.get("spk_id") for entry in spoken)
    told = []
    if nameless:
        told.append(
            f"ABX items of {nameless} of {len(spoken)} utterances with phones: "
            "the manifest (spk_id) does not say who speaks"
        )
    for context, speaker in itertools.product(items, ("within", "across")):
        name = condition(speaker, context)
        if any(figure.startswith(f"abx_{name}_") for figure in figures):
            continue
        who = "one speaker" if speaker == "within" else "two speakers"
        where = " between the same neighbours" if context == "within" else ""
        why = (
            f"no phone is said twice by {who}{where}, beside another phone of "
            "the same speaker"
        )
        if not items[context].items:
            why = (
                f"there are no items ({items[context].source}, of utterances "
                "with phones and a speaker)"
            )
        told.append(f"ABX {name.replace('_', ' ')}: {why}")
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
