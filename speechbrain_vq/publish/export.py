"""Export a training run as a folder that ``from_hparams`` loads."""

import importlib.metadata
import logging
import math
import os
import pathlib
import pydoc
import shutil
from typing import Any

import torch
from hyperpyyaml import load_hyperpyyaml
from speechbrain.utils.checkpoints import Checkpoint

from speechbrain_vq import inference
from speechbrain_vq.dataio.atomic import atomic_folder
from speechbrain_vq.dataio.manifests import read_manifest, write_json
from speechbrain_vq.evaluation.bitrate import BitRate
from speechbrain_vq.evaluation.phone_units import PhoneInformation
from speechbrain_vq.evaluation.utterances import EvaluatedModel
from speechbrain_vq.hub import UnsafeHparamsError, load_pretrained
from speechbrain_vq.hub.download import check_repo_id
from speechbrain_vq.hub.folder import (
    CARD,
    CONFIG,
    FORMAT,
    HPARAMS,
    save_weights,
    split_tensors,
)
from speechbrain_vq.presets import preset_names, quantizer_options

from .card import make_card
from .example import write_example
from .hparams import inference_section, inference_yaml
from .run import Run, read_state
from .validate import (
    ExportRefused,
    check_finite,
    check_output_folder,
    find_problems,
    find_quantizers,
)

logger = logging.getLogger(__name__)


def export_pretrained(
    run_folder: str | pathlib.Path,
    output: str | pathlib.Path,
    min_key: str | None = None,
    max_key: str | None = None,
    checkpoint: str | pathlib.Path | None = None,
    force: bool = False,
    *,
    example: str | pathlib.Path | None = None,
    repo_id: str | None = None,
    card: dict[str, Any] | None = None,
    results: dict[str, Any] | None = None,
) -> pathlib.Path:
    """Export a training run as a folder that ``from_hparams`` loads.

    The folder contains the yaml of the modules, ``model.safetensors``,
    ``config.json`` and the model card ``README.md``. If there is an example, it
    also contains ``example.wav`` and ``example.tokens.json``, and if matplotlib
    is installed, plots. It is written under a temporary name, loaded as users
    will load it, and then renamed.

    The section ``inference`` of a recipe's yaml lists what the model requires
    besides the modules; see ``publish.hparams.inference_section``.

    Arguments
    ---------
    run_folder : path
        Output folder of a recipe. Its checkpoints must contain each of the
        yaml's ``modules`` by name.
    output : path
        Folder to write; an exported model there is replaced.
    min_key, max_key : str, optional
        Metric in the checkpoints' meta to minimize or maximize.
    checkpoint : path, optional
        Name or path of the checkpoint; by default the latest.
    force : bool
        Whether to export the model even if it is in warm-up or its codebook is
        dead.
    example : path, optional
        Recording to publish with the model. The default is an utterance of the
        test set for MiniSpeech, and none for other corpora, which contain human
        speech.
    repo_id : str, optional
        Repository on the Hub, ``org/name``, that the card's code loads; by
        default the folder.
    card : dict, optional
        Front matter to add to or replace in the card: ``license``
        (``"apache-2.0"``), ``language``, ``datasets`` (on the Hub), ``tags``.
    results : dict, optional
        Test metrics, by default those in the run's ``results.json``. Their key
        ``checkpoint`` names the tested checkpoint, by default the latest. Any
        other checkpoint is tested on ``test.json``.

    Returns
    -------
    pathlib.Path
        Path of the folder.

    Raises
    ------
    FileNotFoundError
        If the run or checkpoint does not exist.
    ExportRefused
        If the model is unusable and ``force`` is not set, or if it has NaN or
        infinite weights or a yaml that is not plain data.
    FileExistsError
        If ``output`` exists and is not an exported model.
    ValueError
        If the yaml lacks a required key, a file is damaged, or ``repo_id`` is not
        a name on the Hub.

    Example
    -------
    >>> export_pretrained("results/units", "model")  # doctest: +SKIP
    """
    place = pathlib.Path(os.path.abspath(output))
    check_output_folder(place)
    if repo_id is not None:
        check_repo_id(repo_id)
    run = Run.open(run_folder)
    section = inference_section(run.hparams)
    chosen = run.find_checkpoint(min_key, max_key, checkpoint)
    yaml = inference_yaml(run.hparams, section["keys"])
    modules = load_hyperpyyaml(yaml)["modules"]
    states = {name: read_state(chosen, name) for name in modules}
    check_finite(states)
    problems = find_problems(find_quantizers(modules), states, chosen)
    if problems and not force:
        raise ExportRefused(
            f"{' '.join(problems)} To export it anyway, use `speechbrain-vq "
            "export --force` (or force=True in Python)."
        )
    for problem in problems:
        logger.warning("Exported by force. %s", problem)
    for name, module in modules.items():
        tensors, _ = split_tensors(states[name])
        _, extra = split_tensors(module.state_dict())
        module.load_state_dict({**tensors, **extra})
    config = _make_config(run, section, modules, chosen)

    with atomic_folder(place) as folder:
        (folder / HPARAMS).write_text(yaml, encoding="utf-8")
        save_weights(modules, folder)
        write_json(folder / CONFIG, config, indent=2)
        for name in section["files"]:
            extra = chosen.path.parent / name
            if not extra.is_file():
                raise FileNotFoundError(f"{extra.parent} lacks {name}.")
            shutil.copyfile(extra, folder / name)
        # The SSL encoder is in the run's copy or in its own repository.
        encoder = run.hparams.get("ssl_folder") or run.hparams.get("ssl_source")
        options = {"ssl_encoder": encoder} if encoder else {}
        interface = section["interface"]
        loader = getattr(inference, interface, None) or pydoc.locate(interface)
        if loader is None:
            raise ValueError(
                f"inference: interface: {interface} cannot be imported: give a "
                "class of speechbrain_vq.inference, or a dotted name."
            )
        # The yaml must be plain data even if the interface accepts more.
        try:
            load_pretrained(folder)
        except UnsafeHparamsError as error:
            raise ExportRefused(str(error)) from error
        model = loader.from_hparams(folder, **options)
        recording = example or run.corpus.example
        files = write_example(model, folder, chosen, recording)
        metrics = run.results if results is None else results
        tested = metrics.get("checkpoint", run.latest.path.name)
        if tested != chosen.path.name:
            metrics = {}
        if not (metrics or problems):
            metrics = _test(model, run)
        source, card = repo_id or place.name, card or {}
        about = config, run.corpus, metrics, problems, files, card, section
        text = make_card(source, *about)
        (folder / CARD).write_text(f"{text}\n", encoding="utf-8")
    return pathlib.Path(output)


def _make_config(
    run: Run,
    section: dict[str, Any],
    modules: dict[str, torch.nn.Module],
    checkpoint: Checkpoint,
) -> dict[str, Any]:
    """Return the content of ``config.json``: interface, sizes, training,
    metrics."""
    sizes = {
        name: {
            "num_codebooks": quantizer.num_codebooks,
            "codebook_size": quantizer.codebook_size,
            "codebook_dim": quantizer.codebook_dim,
        }
        for name, quantizer in find_quantizers(modules).items()
    }
    one = len(sizes) == 1
    # A SpeakerTable has the names of the training speakers.
    speakers = getattr(modules.get("speaker"), "names", None)
    network = torch.nn.ModuleDict(modules)
    # Yamls of version 0.1 have the preset under ``arm``.
    settings = {"arm": run.hparams.get("preset"), **run.hparams}
    return {
        # The Hub counts downloads by this key.
        "speechbrain_interface": section["interface"],
        "speechbrain_vq": importlib.metadata.version("speechbrain-vq"),
        "format": FORMAT,
        **_plain_values(settings, section["keys"]),
        **(next(iter(sizes.values())) if one else {"quantizers": sizes}),
        **({"speakers": speakers} if speakers else {}),
        "parameters": sum(p.numel() for p in network.parameters()),
        **_plain_values(settings, ["arm", "seed"]),
        "changed_options": _changed_options(run.hparams),
        "checkpoint": {
            key: value
            for key, value in checkpoint.meta.items()
            if isinstance(value, int | float) and math.isfinite(value)
        },
    }


def _changed_options(hparams: dict[str, Any]) -> dict[str, Any]:
    """Return the quantizer options that differ from the preset."""
    used, preset = hparams.get("vq"), hparams.get("preset")
    if preset not in preset_names() or not isinstance(used, dict):
        return {}
    return {
        key: used[key]
        for key, value in quantizer_options(preset).items()
        if used.get(key, value) != value
    }


def _plain_values(hparams: dict[str, Any], keys: list[str]) -> dict[str, Any]:
    """Return the values of ``keys`` that are strings or numbers."""
    values = {key: hparams.get(key) for key in keys}
    return {k: v for k, v in values.items() if isinstance(v, str | int | float)}


def _test(model: Any, run: Run) -> dict[str, float]:
    """Compute code usage and PNMI of a speech model on the test set, for a
    checkpoint that the run did not test."""
    files = [folder / "test.json" for folder in run.manifest_folders()]
    manifest = next((path for path in files if path.is_file()), None)
    if manifest is None or not isinstance(model, inference.VQTokenizer):
        logger.warning(
            "The card has no results: the run did not test this checkpoint, "
            "and its test set was not found."
        )
        return {}
    logger.info("Testing the checkpoint on %s ...", manifest)
    metrics = BitRate(model.codebook_size), PhoneInformation()
    encoder = EvaluatedModel(model)
    for utterance in encoder.utterances(read_manifest(manifest)):
        for metric in metrics:
            metric.update(utterance, torch.ones(1, dtype=torch.int))
    estimates = metrics[0].compute() | metrics[1].compute()
    keys = "used_codes_percent", "perplexity", "pnmi"
    return {key: estimates[key].value for key in keys if key in estimates}
