"""From a finished run to a folder that others load.

Authors
 * speechbrain_vq authors 2026
"""

import importlib
import json
import logging
import math
import os
import pathlib
import shutil
import tempfile
from typing import Any

import torch
from hyperpyyaml import load_hyperpyyaml
from safetensors.torch import save_file

import speechbrain_vq

from .card import make_card
from .checks import (
    ExportRefused,
    check_finite,
    find_problems,
    find_quantizers,
)
from .corpus import find_corpus
from .download import FILES
from .example import EXAMPLE, EXAMPLE_TOKENS, PLOTS, show
from .folder import CARD, CONFIG, HPARAMS, WEIGHTS
from .hparams import inference_section, inference_yaml
from .load import load_pretrained
from .plain import UnsafeHparamsError
from .runs import find_checkpoint, read_results, read_state, read_training
from .swap import replace_folder

logger = logging.getLogger(__name__)

# What a recipe may add, and all that an exported folder may hold.
EXTRAS = set(FILES) - {CONFIG, HPARAMS, WEIGHTS}
OURS = {CARD, EXAMPLE, EXAMPLE_TOKENS, *PLOTS, *FILES}


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
    """Exports a run for ``from_hparams``.

    The folder gets ``hyperparams.yaml`` with the modules and nothing of the
    training, ``model.safetensors``, ``config.json``, the card ``README.md``
    and, with an example, ``example.wav`` and ``example.tokens.json``; with
    matplotlib also ``codebook_usage.png`` and ``spectrogram.png``. It is
    written beside its place, loaded back as its users will, and renamed.

    What a recipe's model needs beside its modules stands in its yaml under
    ``inference``, see ``speechbrain_vq.hub.hparams.inference_section``.

    Arguments
    ---------
    run_folder : path
        The output folder of a recipe: its ``hyperparams.yaml`` names
        ``modules``, its checkpoints hold each of them under that name.
    output : path
        The folder to make; an exported model that is there is replaced.
    min_key, max_key : str, optional
        Take the checkpoint of the lowest or highest such number in its meta;
        by default the latest.
    checkpoint : path, optional
        Take this one, by its name or path.
    force : bool
        Whether to export a model in its warm-up, with a dead codebook, or
        whose yaml is more than plain data.
    example : path, optional
        A recording to pass on with the model; by default an utterance of the
        test set where that is MiniSpeech, and none otherwise, for people's
        recordings are theirs.
    repo_id : str, optional
        ``org/name`` on the Hub, for the code of the card; by default it loads
        the folder.
    card : dict
        Front matter of the card to add or replace: ``license``
        (``"apache-2.0"``), ``language``, ``datasets`` (on the Hub), ``tags``,
        ...
    results : dict, optional
        Of the test; by default what ``results.json`` of the run says, where
        the checkpoint is the latest, which is the one tested, or the one that
        it names under ``checkpoint``.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileNotFoundError
        If there is no such run or checkpoint.
    ExportRefused
        If the model cannot be used, and ``force`` is not given; if it has
        values that are NaN or infinite, in any case.
    FileExistsError
        If there is something else than an exported model in its place.
    ValueError
        If the yaml lacks what an export needs, or a file is damaged.

    Example
    -------
    >>> export_pretrained("results/units", "model")  # doctest: +SKIP
    """
    run_folder, given = pathlib.Path(run_folder), pathlib.Path(output)
    output = pathlib.Path(os.path.abspath(given))
    _check_place(output)
    training = read_training(run_folder)
    section = inference_section(training)
    found, tested = find_checkpoint(
        run_folder, training, min_key, max_key, checkpoint
    )
    text = inference_yaml(training, section["keys"])
    modules = load_hyperpyyaml(text)["modules"]
    quantizers = find_quantizers(modules)
    states = {name: read_state(found.path, name) for name in modules}
    check_finite(states)
    problems = find_problems(quantizers, states, found)
    _refuse(problems, force)
    for name, module in modules.items():
        _load(module, states[name])
    tensors = _tensors(modules, states)
    config = _config(training, section, modules, quantizers, found)
    corpus = find_corpus(training, run_folder)
    results = read_results(run_folder) if results is None else results
    if results and results.get("checkpoint", tested) != found.path.name:
        logger.warning("The run's results are of another checkpoint: left out")
        results = {}

    prefix = f".{output.name}.partial-"
    output.parent.mkdir(parents=True, exist_ok=True)
    _sweep(output.parent, prefix)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=output.parent) as new:
        folder = pathlib.Path(new) / output.name
        folder.mkdir()
        (folder / HPARAMS).write_text(text, encoding="utf-8")
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})
        # safetensors lets its writer alone read.
        shutil.copymode(folder / HPARAMS, folder / WEIGHTS)
        note = json.dumps(config, indent=2)
        (folder / CONFIG).write_text(note + "\n", encoding="utf-8")
        for name in section["files"]:
            _copy(name, found.path.parent, folder)
        model = _load_back(section["interface"], folder, problems, force)
        files = show(model, folder, found, example or corpus.example)
        text = make_card(
            repo_id or output.name,
            config,
            corpus,
            results,
            problems,
            files,
            card or {},
            section,
        )
        (folder / CARD).write_text(f"{text}\n", encoding="utf-8")
        replace_folder(folder, output)
    return given


def _sweep(parent: pathlib.Path, prefix: str) -> None:
    """Removes what killed exports to the same place have left."""
    for path in parent.iterdir():
        if path.name.startswith(prefix):
            shutil.rmtree(path, ignore_errors=True)


def _check_place(output: pathlib.Path) -> None:
    """Nothing but an exported model is ever replaced."""
    if output.is_symlink() or (output.exists() and not output.is_dir()):
        raise FileExistsError(f"{output} is no folder: give another place.")
    foreign = set()
    if output.is_dir():
        foreign = {path.name for path in output.iterdir()} - OURS
    if foreign:
        raise FileExistsError(
            f"{output} holds {', '.join(sorted(foreign)[:3])}, which no export "
            "wrote and which would be lost: give another place."
        )


def _refuse(problems: list[str], force: bool) -> None:
    if problems and not force:
        raise ExportRefused(
            f"{' '.join(problems)} `speechbrain-vq export --force` "
            "(force=True) exports it all the same."
        )
    for problem in problems:
        logger.warning("Exported by force. %s", problem)


def _load(module: torch.nn.Module, state: dict[str, Any]) -> None:
    """All tensors; states that are none (warm-up, samples) stay behind."""
    extra = {
        key: value
        for key, value in module.state_dict().items()
        if key.endswith("_extra_state")
    }
    kept = {k: v for k, v in state.items() if not k.endswith("_extra_state")}
    module.load_state_dict({**kept, **extra})


def _tensors(
    modules: dict[str, torch.nn.Module], states: dict[str, dict]
) -> dict[str, torch.Tensor]:
    # safetensors takes no tensors that share memory.
    tensors = {
        key: value.clone(memory_format=torch.contiguous_format)
        for key, value in torch.nn.ModuleDict(modules).state_dict().items()
        if torch.is_tensor(value)
    }
    # The name that version 0.1 had for codebooks tells who loads it that their
    # latents are normalized as they were then.
    saved = {f"{m}.{key}" for m, state in states.items() for key in state}
    for name in find_quantizers(modules):
        for key in [k for k in tensors if k.startswith(f"{name}.embedding.")]:
            old = f"{name}.codewords.{key.rpartition('.')[2]}"
            if old in saved:
                tensors[old] = tensors.pop(key)
    return tensors


def _config(training, section, modules, quantizers, found) -> dict[str, Any]:
    sizes = {
        name: {
            "num_codebooks": quantizer.num_codebooks,
            "codebook_size": quantizer.codebook_size,
            "codebook_dim": quantizer.codebook_dim,
        }
        for name, quantizer in quantizers.items()
    }
    one = len(sizes) == 1
    # Those that a table knows by name.
    speakers = getattr(modules.get("speaker"), "names", None)
    network = torch.nn.ModuleDict(modules)
    return {
        # The Hub looks for this key.
        "speechbrain_interface": section["interface"],
        "speechbrain_vq": speechbrain_vq.__version__,
        **_plain_values({key: training[key] for key in section["keys"]}),
        **(next(iter(sizes.values())) if one else {"quantizers": sizes}),
        **({"speakers": speakers} if speakers else {}),
        "parameters": sum(p.numel() for p in network.parameters()),
        **_plain_values({k: training.get(k) for k in ("arm", "seed")}),
        "checkpoint": {
            key: value
            for key, value in found.meta.items()
            if isinstance(value, int | float) and math.isfinite(value)
        },
    }


def _plain_values(values: dict[str, Any]) -> dict[str, Any]:
    plain = str | int | float
    return {k: v for k, v in values.items() if isinstance(v, plain)}


def _copy(name: str, save_folder: pathlib.Path, folder: pathlib.Path) -> None:
    if name not in EXTRAS:
        raise ValueError(
            f"inference: files: {name} would not be fetched from the Hub, "
            f"only {', '.join(sorted(EXTRAS))} would."
        )
    if not (save_folder / name).is_file():
        raise FileNotFoundError(f"{save_folder} lacks {name}.")
    shutil.copyfile(save_folder / name, folder / name)


def _load_back(interface, folder, problems, force):
    """The model as its users get it; what does not load is no export."""
    module, _, name = interface.rpartition(".")
    try:
        home = importlib.import_module(module or "speechbrain_vq.inference")
        loader = getattr(home, name)
    except (AttributeError, ImportError) as error:
        raise ValueError(
            f"inference: interface: {interface} cannot be imported: {error}"
        ) from error
    try:
        # Whatever the interface does, this is what keeps others safe.
        load_pretrained(folder)
    except UnsafeHparamsError as error:
        problem = (
            "Loading it needs trust_remote_code=True, for its yaml asks for "
            f"more than plain data: {error}"
        )
        _refuse([problem], force)
        problems.append(problem)
        return loader.from_hparams(folder, trust_remote_code=True)
    return loader.from_hparams(folder)
