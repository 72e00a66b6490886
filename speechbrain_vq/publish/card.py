"""Write the model card: description, usage, metrics, training, limitations."""

import json
import math
import pathlib
import re
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from speechbrain_vq.evaluation.bitrate import BitRate
from speechbrain_vq.evaluation.metric import USAGE, Quantity
from speechbrain_vq.evaluation.phone_units import PhoneInformation

from .run import Corpus

TEMPLATE = pathlib.Path(__file__).with_name("card_template.md")
LICENSE = "apache-2.0"
# Numbers in results.json that do not measure quality.
NO_METRIC = frozenset(
    "seed steps loss vectors nonfinite_batches codebook_drift vq_loss".split()
)
QUANTITIES = USAGE | PhoneInformation.quantities | BitRate.quantities
# Marks the line of the card's code that loads the model, so that a push
# replaces the source only there.
MARK = "  # this model"


def make_card(
    source: str,
    config: dict[str, Any],
    corpus: Corpus,
    results: dict[str, Any],
    problems: list[str],
    files: dict[str, Any],
    front_matter: dict[str, Any],
    section: dict[str, Any],
) -> ModelCard:
    """Write the model card for a ``config.json``.

    ``source`` is the folder name or repository that the card's code loads.
    ``results`` are the test metrics, or empty. ``problems`` are the reasons not
    to export the model, if ``force`` was given. ``files`` is the result of
    ``write_example``. ``section`` is the ``inference`` section of the training
    yaml, and ``front_matter`` overrides its ``card``."""
    name = source.rsplit("/", 1)[-1]
    # Convert through JSON, since the card would name ruamel.yaml's classes.
    front_matter = {**json.loads(json.dumps(section["card"])), **front_matter}
    dotted_name = config["speechbrain_interface"]
    module, _, interface = dotted_name.rpartition(".")
    is_speech = dotted_name in ("VQTokenizer", "VoiceConverter")
    return ModelCard.from_template(
        _card_data(name, config, corpus, results, front_matter),
        template_path=str(TEMPLATE),
        name=name,
        source=source,
        config=config,
        module=module or "speechbrain_vq.inference",
        interface=interface,
        tokenizer=is_speech and "token_rate" in config,
        rate=f"{config.get('token_rate', 0):g}",
        books=config.get("num_codebooks", 1),
        corpus=corpus,
        results=results,
        metrics=_metrics_table(config, results),
        problems=problems,
        section=section,
        mark=MARK,
        quote=json.dumps,  # Names may contain any characters.
        **files,
    )


def replace_source(card: str, source: str, repo_id: str) -> str:
    """Replace the source of the card's own model with a repository.

    The folder name in the title and metrics is replaced, too; other models in
    the card are not.

    Example
    -------
    >>> card = 'VQTokenizer.from_hparams("model")  # this model'
    >>> replace_source(card, "model", "org/name")
    'VQTokenizer.from_hparams("org/name")  # this model'
    """
    call = f".from_hparams({json.dumps(repo_id)})"
    name = repo_id.rsplit("/", 1)[-1]
    for before in ("- name: ", "# "):
        title = rf"^{before}{re.escape(source)}$"
        card = re.sub(title, before + name, card, count=1, flags=re.MULTILINE)
    marked = rf"\.from_hparams\(.*\)(?={MARK}$)"
    return re.sub(marked, lambda _: call, card, flags=re.MULTILINE)


def _card_data(name, config, corpus, results, front_matter):
    """Write the front matter of a card."""
    metrics = _metrics(results)
    task = front_matter.get("pipeline_tag", "feature-extraction")
    dataset = front_matter.get("datasets") or corpus.name or "unnamed"
    dataset = dataset if isinstance(dataset, str) else dataset[0]
    evaluation = [
        EvalResult(
            task_type=task,
            dataset_type=dataset if "/" in dataset else dataset.lower(),
            dataset_name=corpus.name or dataset,
            dataset_split="test",
            metric_type=key,
            metric_name=_title(key),
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
        **front_matter,
    }
    if evaluation:
        data |= {"model_name": name, "eval_results": evaluation}
    return ModelCardData(**data)


def _title(key):
    return str(QUANTITIES.get(key) or Quantity(key.replace("_", " ")))


def _metrics(results):
    return {
        key: value
        for key, value in results.items()
        if isinstance(value, int | float)
        and math.isfinite(value)
        and key not in NO_METRIC
    }


def _metrics_table(config, results):
    """Return the rows of the table: model sizes, then metrics."""
    rows = [("parameters", f"{config['parameters']:,}")]
    rate, size = config.get("token_rate"), config.get("codebook_size")
    if rate is not None:
        rows += [("tokens per second", f"{rate:g}")]
    if size is not None:
        books = config["num_codebooks"]
        shape = f"{size} codes of {config['codebook_dim']} dimensions"
        rows += [("codebook", f"{books} x {shape}" if books > 1 else shape)]
        if rate is not None:
            bits = rate * books * math.log2(size)
            rows += [
                ("bit rate, by the number of codes (bits/s)", f"{bits:.4g}")
            ]
    metrics = {_title(k): value for k, value in _metrics(results).items()}
    if not metrics:
        # Without a test, show the checkpoint's validation metrics.
        metrics = {
            f"{_title(key)} (validation)": value
            for name, value in config["checkpoint"].items()
            if name.startswith("valid_")
            and (key := name.removeprefix("valid_")) not in NO_METRIC
        }
    return rows + [(title, f"{x:.4g}") for title, x in metrics.items()]
