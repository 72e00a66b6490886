"""The folder of a pretrained model: what is in it, and how it is read.

Authors
 * speechbrain_vq authors 2026
"""

import json
import pathlib
from collections.abc import Iterable

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file

from speechbrain_vq.nnet.quantizers import VectorQuantizer, upgrade_state_dict

CONFIG, HPARAMS = "config.json", "hyperparams.yaml"
WEIGHTS = "model.safetensors"
CARD = "README.md"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def find_file(folder: str | pathlib.Path, name: str) -> pathlib.Path:
    """A file of a model's folder, which must lie in it.

    A stranger's folder may hold links to the reader's own files. Links into
    the cache of the Hub are as the Hub's client makes them, and pass.

    Arguments
    ---------
    folder : path
        The folder.
    name : str
        The file's name.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    FileNotFoundError
        If there is no such file; the message says what is there instead.
    ValueError
        If it is a link to a place outside.
    """
    folder = pathlib.Path(folder)
    path = folder / name
    if not path.is_file():
        hint = ""
        if name == WEIGHTS and folder.is_dir():
            hint = pickles_hint([path.name for path in folder.iterdir()])
        raise FileNotFoundError(
            f"'{folder}' is not a folder with a pretrained model: there is no "
            f"{name} in it.{hint}"
        )
    target = path.resolve()
    if not any(target.is_relative_to(home) for home in _homes(folder)):
        raise ValueError(
            f"{path} is a link to {target}, outside its folder. It was not "
            "read: put a copy of the file there if it is meant."
        )
    return path


def _homes(folder):
    """Where the files of a folder may really lie."""
    folder = folder.resolve()
    homes = [folder, pathlib.Path(constants.HF_HUB_CACHE).resolve()]
    if folder.parent.name == "snapshots":
        # In a cache elsewhere: the blobs of the repository, or of all.
        homes += [up / "blobs" for up in folder.parents[1:3]]
    return homes


def pickles_hint(names: Iterable[str]) -> str:
    """The way out for who has weights in files that can run code.

    Arguments
    ---------
    names : iterable of str
        What files there are.

    Returns
    -------
    str
        A sentence to end a message with; empty if there are no such files.
    """
    found = sorted(n for n in names if n.endswith(PICKLES))
    if not found:
        return ""
    return (
        f" It has {', '.join(found[:3])}, but such files can run code and are "
        "not read. If you trust where they come from, load the model with "
        "SpeechBrain's own from_hparams and write its weights with "
        f"safetensors.torch.save_file(model.mods.state_dict(), '{WEIGHTS}')."
    )


def load_weights(
    modules: dict[str, torch.nn.Module], path: str | pathlib.Path
) -> None:
    """Loads weights into modules, all of them and no others.

    Nothing is loaded unless everything fits.

    Arguments
    ---------
    modules : dict
        Modules by name.
    path : path
        A safetensors file; its tensors are named ``module.tensor``.

    Raises
    ------
    ValueError
        If the file is damaged or no safetensors file, or a tensor is missing,
        unknown, of another shape or kind, or has values that are NaN or
        infinite; the message names it.
    """
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged, or not a safetensors file whatever its name "
            f"({error}). Get it again."
        ) from error
    model = torch.nn.ModuleDict(modules)
    state = model.state_dict()
    # What safetensors does not hold stays as the yaml made it.
    kept = {k: v for k, v in state.items() if not torch.is_tensor(v)}
    expected = {k: v for k, v in state.items() if k not in kept}
    wrong = _differences(expected, _renamed(model, weights))
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{path} does not fit the model of {HPARAMS} beside it: "
            f"{'; '.join(wrong[:5])}{more}."
        )
    _check_finite(path, weights)
    # By the names that they came with: quantizers know those of version 0.1.
    model.load_state_dict({**kept, **weights})


def load_checkpoint(
    module: torch.nn.Module, path: str | pathlib.Path, yaml: str
) -> None:
    """Loads weights that someone pickled, and runs no code among them.

    Arguments
    ---------
    module : torch.nn.Module
        What is loaded; of no use where they do not fit.
    path : path
        What ``torch.save`` wrote.
    yaml : str
        What the weights must fit, for the message.

    Raises
    ------
    ValueError
        If the file is not of tensors only, they do not fit, or have values
        that are NaN or infinite.
    """
    path = pathlib.Path(path)
    try:
        # Never a pickle that could run something, whatever the environment
        # says.
        state = torch.load(path, map_location="cpu", weights_only=True)
    # Of damaged files the reader may raise anything.
    except Exception as error:
        # PyTorch's own words would have it loaded with all that is in it.
        raise ValueError(
            f"{path} was not loaded: {path.name} cannot be read as a file of "
            f"tensors ({type(error).__name__}), and what else is in it was "
            "not run. Is it whole, and its maker's own?"
        ) from error
    try:
        # Takes the names that older versions of PyTorch gave, too.
        module.load_state_dict(state)
    except Exception as error:
        lines = str(error).splitlines()
        raise ValueError(
            f"{path} was not loaded: it does not fit {yaml}: "
            f"{' '.join(line.strip() for line in lines[:3])}"
        ) from error
    _check_finite(path, module.state_dict())


def _renamed(model, weights):
    """The weights under the names of today, those of version 0.1 included."""
    # Weights are tensors: what quantizers kept beside them is not expected.
    renamed = {k: v for k, v in weights.items() if not _is_extra(k)}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, VectorQuantizer):
            prefix = f"{name}." if name else ""
            upgrade_state_dict(renamed, prefix)
            for average in ("ema_sum", "ema_count"):
                renamed.pop(f"{prefix}embedding.{average}", None)
    return renamed | {k: v for k, v in weights.items() if _is_extra(k)}


def _is_extra(key):
    return key.endswith("_extra_state")


def _check_finite(path, weights):
    broken = [
        key
        for key, value in weights.items()
        # By way of fp32, as the smallest floats cannot be asked.
        if torch.is_tensor(value)
        and value.is_floating_point()
        and not value.float().isfinite().all()
    ]
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ValueError(
            f"{path} is of no use: {', '.join(map(repr, broken[:5]))}{more} "
            "have values that are NaN or infinite. Its maker must train it "
            "again."
        )


def _differences(expected, found):
    """What is wrong with the found tensors, in words."""
    wrong = [f"'{k}' is missing" for k in expected if k not in found]
    wrong += [f"'{k}' is unknown" for k in found if k not in expected]
    for key in expected.keys() & found.keys():
        want, got = expected[key], found[key]
        if want.shape != got.shape:
            wrong.append(
                f"'{key}' has the shape {list(got.shape)}, not "
                f"{list(want.shape)}"
            )
        elif want.is_floating_point() != got.is_floating_point():
            wrong.append(f"'{key}' is of {got.dtype}, not {want.dtype}")
    return wrong


def read_config(folder: str | pathlib.Path) -> dict:
    """What ``export_pretrained`` noted of a model: sizes, rates, training."""
    return json.loads(find_file(folder, CONFIG).read_text(encoding="utf-8"))
