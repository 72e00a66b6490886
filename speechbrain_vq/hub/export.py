"""From a finished run to a folder that loads back.

Authors
 * speechbrain_vq authors 2026
"""

import json
import os
import pathlib
import tempfile

import ruamel.yaml
import torch
from hyperpyyaml import load_hyperpyyaml
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from safetensors.torch import save_file
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_vq.inference.tokenizer import CONFIG, HPARAMS, WEIGHTS

# What the inference yaml keeps of a training yaml beside the modules.
KEPT = ("sample_rate", "token_rate")


def export_pretrained(
    run_folder: str | pathlib.Path,
    output: str | pathlib.Path,
    min_key: str | None = None,
    max_key: str | None = None,
    force: bool = False,
) -> pathlib.Path:
    """Exports a run for ``from_hparams``.

    The folder gets a yaml with the modules and nothing of the training, the
    weights as safetensors, and a note of what the model is. It is written
    beside its place and renamed, so there is never half of it.

    Arguments
    ---------
    run_folder : path
        The output folder of a recipe: its ``hyperparams.yaml`` names
        ``modules``, its checkpoints hold each of them under that name.
    output : path
        The folder to make; one that is there is replaced.
    min_key, max_key : str, optional
        Take the checkpoint of the lowest or highest such number in its meta;
        by default the latest.
    force : bool
        Whether to export a model with weights that are not finite.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileNotFoundError
        If there is no such run, or it has no checkpoint beyond the warm-up.
    ValueError
        If the model cannot be used: still in its warm-up, weights not finite.
    """
    run_folder, output = pathlib.Path(run_folder), pathlib.Path(output)
    training = _read_yaml(run_folder / "hyperparams.yaml")
    checkpoint = _find_checkpoint(run_folder, training, min_key, max_key)
    text = _inference_yaml(training)
    modules = load_hyperpyyaml(text)["modules"]
    for name, module in modules.items():
        _load(module, checkpoint.path / f"{name}.ckpt", force)
    weights = {
        key: value.contiguous()
        for key, value in torch.nn.ModuleDict(modules).state_dict().items()
        if torch.is_tensor(value)
    }
    note = json.dumps(_config(training, modules, checkpoint), indent=2)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(
        prefix=f".{output.name}-", dir=output.parent
    ) as folder:
        partial = pathlib.Path(folder) / "model"
        partial.mkdir()
        (partial / HPARAMS).write_text(text, encoding="utf-8")
        save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
        (partial / CONFIG).write_text(note + "\n", encoding="utf-8")
        if output.exists():
            os.replace(output, pathlib.Path(folder) / "old")
        os.replace(partial, output)
    return output


def _read_yaml(path: pathlib.Path) -> CommentedMap:
    if not path.is_file():
        raise FileNotFoundError(
            f"{path.parent} is not the folder of a run: it has no {path.name}."
        )
    return ruamel.yaml.YAML().load(path.read_text(encoding="utf-8"))


def _find_checkpoint(run_folder, training, min_key, max_key):
    saved = pathlib.Path(training.get("save_folder", "save"))
    # A run that was moved takes its checkpoints along, and another one may
    # have taken its place since.
    folder = run_folder / saved.name
    if not folder.is_dir():
        folder = saved
    if folder.is_dir():
        found = Checkpointer(folder).find_checkpoint(
            min_key=min_key,
            max_key=max_key,
            ckpt_predicate=lambda c: not c.meta.get("vq_warmup", False),
        )
        if found is not None:
            return found
    raise FileNotFoundError(
        f"There is no checkpoint from after the warm-up in {folder}: train "
        "longer, or shorten the warm-up of reinit_schedule."
    )


def _inference_yaml(training: CommentedMap) -> str:
    missing = [key for key in (*KEPT, "modules") if key not in training]
    if missing:
        raise ValueError(
            f"The run's hyperparams.yaml lacks {', '.join(missing)}, which a "
            "tokenizer needs."
        )
    kept = CommentedMap({key: training[key] for key in KEPT})
    kept["modules"] = _plain(training["modules"], {})
    yaml = ruamel.yaml.YAML()
    text = ruamel.yaml.compat.StringIO()
    yaml.dump(kept, text)
    return "# A pretrained model of speechbrain_vq\n\n" + text.getvalue()


def _plain(node, done: dict):
    """A copy without comments and names of anchors; what was one node stays
    one. Reservoirs serve training only and stay behind."""
    if id(node) in done:
        return done[id(node)]
    if isinstance(node, CommentedMap):
        copy = done[id(node)] = CommentedMap()
        for key, value in node.items():
            copy[key] = 0 if key == "reservoir_size" else _plain(value, done)
    elif isinstance(node, CommentedSeq):
        copy = done[id(node)] = CommentedSeq()
        copy.extend(_plain(value, done) for value in node)
    else:
        return node
    if node.tag.value:
        copy.yaml_set_ctag(node.tag)
    return copy


def _load(module: torch.nn.Module, path: pathlib.Path, force: bool) -> None:
    if not path.is_file():
        raise FileNotFoundError(
            f"The checkpoint lacks {path.name}: give the Checkpointer every "
            "module as a recoverable of the module's name."
        )
    state = torch.load(path, map_location="cpu")
    for key, value in list(state.items()):
        if key.endswith("_extra_state"):
            if value.get("bypass"):
                raise ValueError(
                    f"The quantizer in {path} is still in its warm-up: train "
                    "past it."
                )
            del state[key]
        elif not torch.isfinite(value).all() and not force:
            raise ValueError(f"'{key}' in {path} is not finite.")
    extra = {
        key: value
        for key, value in module.state_dict().items()
        if key.endswith("_extra_state")
    }
    module.load_state_dict({**state, **extra})


def _config(training, modules, checkpoint) -> dict:
    quantizer = modules["quantizer"]
    numbers = {
        key: value
        for key, value in checkpoint.meta.items()
        if isinstance(value, int | float)
    }
    return {
        **{key: training[key] for key in KEPT},
        "num_codebooks": quantizer.num_codebooks,
        "codebook_size": quantizer.codebook_size,
        "codebook_dim": quantizer.codebook_dim,
        "arm": training.get("arm"),
        "checkpoint": numbers,
    }
