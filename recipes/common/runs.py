"""How a recipe's run begins and ends.

Authors
 * speechbrain_vq authors 2026
"""

import json
import logging
import math
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import speechbrain as sb
from filelock import FileLock
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.distributed import ddp_init_group, run_on_main

from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.audio import read_audio
from speechbrain_vq.presets import parse_arguments
from speechbrain_vq.publish import ExportRefused, Run, export_pretrained
from speechbrain_vq.recipes.common.earlier import check_earlier
from speechbrain_vq.versions import versions

logger = logging.getLogger(__name__)


def start(argv: list[str]) -> tuple[dict, dict]:
    """From a command line to a folder for the run.

    Arguments
    ---------
    argv : list of str
        What follows the name of the script: the yaml file, run options and
        overrides.

    Returns
    -------
    tuple
        The hyperparameters and the run options.

    Raises
    ------
    ValueError
        If the folder holds a run with other hyperparameters.
    """
    hparams_file, run_opts, overrides = parse_arguments(argv)
    with open(hparams_file, encoding="utf-8") as fin:
        hparams = load_hyperpyyaml(fin, overrides, overrides_must_match=False)
    ddp_init_group(run_opts)
    run_on_main(check_earlier, args=[hparams_file, overrides, hparams])
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
    )
    # SpeechBrain keeps a copy of the file that calls it, which is this one.
    script = sys.modules["__main__"].__file__
    run_on_main(shutil.copy, args=[script, hparams["output_folder"]])
    return hparams, run_opts


def prepared(prepare: Callable[..., pathlib.Path], hparams: dict):
    """Has the manifests written, and says where.

    Arguments
    ---------
    prepare : callable
        Writes the manifests, and gives their folder; finds it done, if it
        is. It gets what the yaml has under ``corpus``.
    hparams : dict
        The hyperparameters.

    Returns
    -------
    pathlib.Path
        The folder.
    """
    run_on_main(_prepare_alone, args=[prepare, hparams])
    return prepare(**hparams["corpus"])


def fit_features(
    features: Any,
    items: dict[str, dict],
    longest: float | None = None,
    number: int = 200,
) -> None:
    """Finds the normalization of the features, on every so many-th utterance.

    Arguments
    ---------
    features : LogMel
        What is fitted.
    items : dict
        Utterances by name, ``wav`` in each.
    longest : float, optional
        Seconds to hear of an utterance.
    number : int
        Of utterances, about.
    """
    names = sorted(items)[:: max(len(items) // number, 1)]
    features.fit(
        read_audio(
            items[name]["wav"], features.sample_rate, duration=longest
        ).unsqueeze(0)
        for name in names
    )


def fit_and_test(
    brain: sb.Brain,
    datasets: dict,
    valid_batch_size: int,
    min_key: str | None = None,
    **training: Any,
) -> None:
    """Trains, and tests what came of it.

    Arguments
    ---------
    brain : sb.Brain
        What is trained. Its hyperparameters have ``epoch_counter`` and
        ``num_workers``.
    datasets : dict
        ``train``, ``valid`` and ``test``.
    valid_batch_size : int
        Of the batches of the latter two.
    min_key : str, optional
        The checkpoint with the least of this is tested; absent: the latest.
    **training
        Options of the loader of the training set, such as ``batch_size``.
    """
    workers = {"num_workers": brain.hparams.num_workers}
    whole = {"batch_size": valid_batch_size, **workers}
    brain.fit(
        brain.hparams.epoch_counter,
        datasets["train"],
        datasets["valid"],
        train_loader_kwargs={**training, **workers},
        valid_loader_kwargs=whole,
    )
    brain.evaluate(datasets["test"], min_key=min_key, test_loader_kwargs=whole)


def end_epoch(
    brain: sb.Brain, epoch: int, stats: dict, least: str = "loss"
) -> None:
    """Logs the training and the validation of an epoch, and saves.

    Arguments
    ---------
    brain : sb.Brain
        What is trained; its ``train_stats`` are those of the training.
    epoch : int
        Its number.
    stats : dict
        Those of the validation.
    least : str
        The checkpoint with the least of this is kept beside the latest.
    """
    brain.hparams.train_logger.log_stats(
        {"epoch": epoch, "step": brain.optimizer_step},
        train_stats={**brain.train_stats, **use_of_codes(brain, "train")},
        valid_stats={**stats, **use_of_codes(brain, "valid")},
    )
    brain.checkpointer.save_and_keep_only(meta=stats, min_keys=[least])


def use_of_codes(brain: sb.Brain, stage: str) -> dict[str, float]:
    """Return the codebook usage of a stage, without the numbers that are NaN
    as nothing was quantized; all ranks must ask.

    Arguments
    ---------
    brain : sb.Brain
        What is trained; one without ``vq_stats`` has no codes.
    stage : str
        ``"train"``, ``"valid"`` or ``"test"``.

    Returns
    -------
    dict
        Numbers by name.
    """
    stats = getattr(brain, "vq_stats", {}).get(stage, {})
    return {k: v for k, v in stats.items() if not math.isnan(v)}


def finish(hparams: dict, *results: dict) -> None:
    """Exports the model and writes the results of the test.

    Arguments
    ---------
    hparams : dict
        The hyperparameters.
    *results : dict
        What was found.
    """
    # In yamls of 0.2 and before, the preset is under ``arm``.
    preset = hparams.get("preset", hparams.get("arm"))
    found = {"arm": preset, "seed": hparams["seed"]}
    for part in results:
        found.update(part)
    folder = pathlib.Path(hparams["output_folder"])
    try:
        model = export_pretrained(folder, folder / "model", results=found)
        interface = hparams["inference"]["interface"]
        logger.info('%s.from_hparams("%s") loads the model', interface, model)
    except ExportRefused as refusal:
        logger.warning("No model was exported. %s", refusal)
    write_results(folder, found)


def write_results(folder: str | pathlib.Path, results: dict) -> None:
    """Writes ``results.json``, and in it the versions of what made them. It is
    last: where it is, a run is complete.

    Arguments
    ---------
    folder : path
        Of the run.
    results : dict
        Of numbers and names.
    """
    path = pathlib.Path(folder) / "results.json"
    told = {**results, "versions": versions()}
    text = json.dumps(told, indent=2) + "\n"
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
    logger.info("The results are in %s", path)


def _prepare_alone(prepare, hparams):
    """Runs side by side may share their manifests: the first writes them."""
    folder = pathlib.Path(hparams["corpus"]["save_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        prepare(**hparams["corpus"])
    # Here, where the paths of the yaml hold.
    Run.open(hparams["output_folder"]).write_corpus()
