"""The card of a model: what it is, how it is used and how good it is.

Authors
 * speechbrain_vq authors 2026
"""

import json
import math
import pathlib
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .corpus import Corpus

TEMPLATE = pathlib.Path(__file__).with_name("card_template.md")
LICENSE = "apache-2.0"
# Numbers of results.json that say nothing of how good a model is.
NO_METRIC = (
    "seed",
    "steps",
    "loss",
    "vectors",
    "nonfinite_batches",
    "codebook_drift",
    "vq_loss",
)
TITLES = {
    "bits_per_sample": "bits for a sample of the waveform",
    "bits_per_second": "bit rate by the entropy of the codes",
    "dead_codes": "codes never used",
    "pnmi": "phone information (PNMI, 0 to 1)",
    "quantization_error": "quantization error over the latents' variance",
    "reconstruction_error": "reconstruction error",
    "used_codes_percent": "used codes, %",
}
OWN = " on recordings of its maker's own"
CODE = """\
from speechbrain_vq import VQTokenizer

tokenizer = VQTokenizer.from_hparams("{source}")
tokens = tokenizer.encode_file("speech.wav")  # [T], {rate:g} a second
wavs = tokenizer.decode_batch(tokens.unsqueeze(0))  # the average voice
tokenizer.reconstruct_file("speech.wav", "from_tokens.wav")  # its own voice"""
CONVERTING = """\
from speechbrain_vq import VoiceConverter

converter = VoiceConverter.from_hparams("{source}")
# What speech.wav says, in the voice of {whose}
converter.convert_file("speech.wav", {target}, "converted.wav")
tokens = converter.encode_file("speech.wav")  # [T], {rate:g} a second"""
LOADING = """\
from {module} import {name}

model = {name}.from_hparams("{source}")"""


def make_card(
    source: str,
    config: dict[str, Any],
    corpus: Corpus,
    results: dict[str, Any],
    problems: list[str],
    files: dict[str, str],
    more: dict[str, Any],
    section: dict[str, Any],
) -> ModelCard:
    """Writes the card.

    Arguments
    ---------
    source : str
        What the card's code loads: a folder's name, or ``org/name``.
    config : dict
        What ``config.json`` says.
    corpus : Corpus
        What the model was trained on.
    results : dict
        Of the test, as in ``results.json``; none if there was no test.
    problems : list of str
        What speaks against the model, where it was exported by force.
    files : dict
        The names of the ``example``, its ``tokens`` and the ``plots``.
    more : dict
        Front matter to add or to replace: ``license``, ``language``, ...
    section : dict
        What the yaml of the training says under ``inference``.

    Returns
    -------
    ModelCard
        The card.
    """
    name = source.rsplit("/", 1)[-1]
    data = card_data(name, config, corpus, results, {**section["card"], **more})
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name,
        summary=section["summary"] or _summary(config),
        code=_code(source, config),
        figures=_figures(config, results),
        measured=_measured(corpus, results),
        training=_training(config, corpus, results, section["recipe"]),
        limits=_limits(config, corpus, problems),
        **files,
    )


def card_data(
    name: str,
    config: dict[str, Any],
    corpus: Corpus,
    results: dict[str, Any],
    more: dict[str, Any],
) -> ModelCardData:
    """The front matter; see ``make_card``."""
    metrics = _metrics(results)
    task = more.get("pipeline_tag", "feature-extraction")
    dataset = more.get("datasets") or corpus.name or "unnamed"
    dataset = dataset if isinstance(dataset, str) else dataset[0]
    evaluation = [
        EvalResult(
            task_type=task,
            dataset_type=dataset if "/" in dataset else dataset.lower(),
            dataset_name=corpus.name or dataset,
            dataset_split="test",
            metric_type=key,
            metric_name=TITLES.get(key, key.replace("_", " ")),
            metric_value=value,
        )
        for key, value in metrics.items()
    ]
    tags = ["speechbrain", "speechbrain_vq", "vector-quantization"]
    if "sample_rate" in config:
        tags += ["audio", "speech", "tokenizer"]
    data = {
        "library_name": "speechbrain",
        "pipeline_tag": task,
        "license": LICENSE,
        "language": list(corpus.languages) or None,
        "tags": tags,
        "metrics": list(metrics) or None,
        **more,
    }
    if evaluation:
        data |= {"model_name": name, "eval_results": evaluation}
    return ModelCardData(**data)


def with_source(text: str, source: str) -> str:
    """A card whose code loads the model from elsewhere, as after a push.

    Arguments
    ---------
    text : str
        The card.
    source : str
        ``org/name``, or a folder.

    Returns
    -------
    str
        The card, the rest of it as it was.

    Example
    -------
    >>> with_source('VQTokenizer.from_hparams("model")', "org/name")
    'VQTokenizer.from_hparams("org/name")'
    """
    text = text.replace("import VQTokenizer, bundled\n", "import VQTokenizer\n")
    return re.sub(
        r'(\.from_hparams\()(?:"[^"]*"|bundled\("[^"]*"\))',
        rf'\1"{source}"',
        text,
    )


def _metrics(results):
    return {
        key: value
        for key, value in results.items()
        if isinstance(value, int | float)
        and math.isfinite(value)
        and key not in NO_METRIC
    }


def _is_tokenizer(config):
    interface = config["speechbrain_interface"]
    known = interface in ("VQTokenizer", "VoiceConverter")
    return known and "token_rate" in config


def _summary(config):
    if not _is_tokenizer(config):
        return "A model with a vector-quantized bottleneck."
    books = config.get("num_codebooks", 1)
    of = "" if books == 1 else f" from each of {books} codebooks"
    return (
        f"A speech tokenizer: {config['token_rate']:g} tokens a second{of}, "
        f"out of {config.get('codebook_size', '?')}, and back to speech. It is "
        "a convolutional autoencoder of log-mel spectrograms with a "
        "vector-quantized bottleneck, whose decoder is told the speaker."
    )


def _code(source, config):
    interface = config["speechbrain_interface"]
    if _is_tokenizer(config) and interface == "VoiceConverter":
        known = config.get("speakers", [])
        return CONVERTING.format(
            source=source,
            rate=config["token_rate"],
            # In quotes, whatever is in the name.
            target=json.dumps(
                known[0] if known else "target.wav", ensure_ascii=False
            ),
            whose=f"one of {len(known)}" if known else "a recording",
        )
    if _is_tokenizer(config):
        return CODE.format(source=source, rate=config["token_rate"])
    module, _, name = f"speechbrain_vq.inference.{interface}".rpartition(".")
    if "." in interface:
        module, _, name = interface.rpartition(".")
    return LOADING.format(module=module, name=name, source=source)


def _figures(config, results):
    """Rows of the table: what the model is, then how well it does."""
    rows = [("parameters", f"{config['parameters']:,}")]
    rate, size = config.get("token_rate"), config.get("codebook_size")
    if rate is not None:
        rows += [("tokens a second", f"{rate:g}")]
    if size is not None:
        books = config["num_codebooks"]
        of = f"{size} codes of {config['codebook_dim']} dimensions"
        rows += [("codebook", f"{books} x {of}" if books > 1 else of)]
        if rate is not None:
            bits = rate * books * math.log2(size)
            rows += [("bit rate by the number of codes", f"{bits:.4g}")]
    metrics = _metrics(results)
    if not metrics:
        # Of the checkpoint, which were seen in validation.
        metrics = {
            f"{TITLES.get(key, key)} (validation)": value
            for name, value in config["checkpoint"].items()
            if name.startswith("valid_")
            and (key := name.removeprefix("valid_")) not in NO_METRIC
        }
    return rows + [
        (TITLES.get(key, key.replace("_", " ")), f"{value:.4g}")
        for key, value in metrics.items()
    ]


def _measured(corpus, results):
    if not results:
        return "This model was not tested."
    if corpus.name == "MiniSpeech":
        return (
            "Measured on the test set of MiniSpeech, whose voices and "
            "sentences were not trained on. The reconstruction error is the "
            "mean absolute one of normalized log-mels; PNMI is the share of "
            "what there is to know about the phone that its token tells. Bit "
            "rates are in bits a second."
        )
    return (
        "Measured on the test set of the corpus it was trained on. Bit rates "
        "are in bits a second."
    )


def _training(config, corpus, results, recipe):
    data, unknown = "", ""
    if corpus.known:
        data = f" on {corpus.name}" if corpus.name else OWN
    if corpus.name and corpus.minutes is not None:
        data = f" on {corpus.minutes:g} minutes of {corpus.name}"
    if not corpus.known and "sample_rate" in config:
        unknown = " The training data is unknown."
    by = f" by the recipe `{recipe}`" if recipe else ""
    arm = f", arm `{config['arm']}`" if config.get("arm") else ""
    seed = f", seed {config['seed']}" if "seed" in config else ""
    steps = f", {results['steps']} steps" if "steps" in results else ""
    return (
        f"Trained{by} of speechbrain_vq {config['speechbrain_vq']}{data}{arm}"
        f"{seed}{steps}.{unknown}"
    )


def _limits(config, corpus, problems):
    limits = [f"Exported by force. {problem}" for problem in problems]
    if corpus.name == "MiniSpeech":
        limits += [
            "MiniSpeech is synthetic English, a few voices of espeak-ng "
            "without noise or room. On recordings of people, in other "
            "languages, on noise and music the tokens tell less, and nobody "
            "has measured how much less."
        ]
    if config["speechbrain_interface"] == "VoiceConverter":
        limits += [
            "It speaks with the voices that it was trained on, and no others."
            if config.get("speakers")
            else "Voices that were not trained on are caught less well.",
            "Convert to a voice only with the consent of the one whose it is.",
        ]
    if _is_tokenizer(config):
        limits += [
            "Waveforms are made of log-mels by Griffin-Lim: they can be "
            "understood, and sound like it."
        ]
    return limits or ["They have not been looked for."]
