"""Read and write the folder of a pretrained model."""

import json
import pathlib
import re
import shutil
from collections.abc import Iterable
from typing import Any

import torch
from huggingface_hub import constants
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from speechbrain_vq._compat import upgrade_state_dict
from speechbrain_vq.dataio.atomic import atomic_write
from speechbrain_vq.dataio.manifests import read_json
from speechbrain_vq.versions import check_format

# Of the model folders written here. One of a later format is refused.
FORMAT = 1
CONFIG, HPARAMS = "config.json", "hyperparams.yaml"
WEIGHTS = "model.safetensors"
CARD, LABELS = "README.md", "label_encoder.txt"
# Says what a savedir holds, and that it was made here.
MARK = ".speechbrain_vq.json"
# Bytes of the names and shapes of a weights file; of a model of 1000 tensors
# they are 150 kB.
MAX_HEADER = 2**20
MAX_CONFIG = 2**20
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def find_file(folder: str | pathlib.Path, name: str) -> pathlib.Path:
    """Find a file of a model folder.

    Links to places outside the folder are refused, those that the Hub's client
    makes into its cache excepted. A FileNotFoundError says what is there
    instead of a missing file.
    """
    folder = pathlib.Path(folder)
    path = folder / name
    check_exists(path)
    target, snapshot = path.resolve(), snapshot_of(folder)
    homes = [folder.resolve(), pathlib.Path(constants.HF_HUB_CACHE).resolve()]
    if snapshot is not None:
        # In a cache elsewhere: the blobs of the repository, or of all.
        homes += [up / "blobs" for up in snapshot.resolve().parents[1:3]]
    if not any(target.is_relative_to(home) for home in homes):
        raise ValueError(
            f"{path} is a link to {target}, outside its folder. It was not "
            "read: put a copy of the file there if it is meant."
        )
    return path


def check_exists(path: pathlib.Path) -> None:
    """Raise a FileNotFoundError for a missing file of a model."""
    if path.is_file():
        return
    folder, hint = path.parent, ""
    if path.name == WEIGHTS and folder.is_dir():
        hint = pickles_hint([other.name for other in folder.iterdir()])
        if (folder / "model").is_dir():
            hint = f" It may be a run, whose model is {folder / 'model'}."
    raise FileNotFoundError(
        f"'{folder}' is not a folder with a pretrained model: there is no "
        f"{path.name} in it.{hint}"
    )


def check_config(folder: pathlib.Path) -> None:
    """Refuse a ``config.json`` that is no json object, or of a later format.

    The model loads without it, but the Hub and other programs read it.
    """
    if not (folder / CONFIG).exists():
        return
    path = find_file(folder, CONFIG)
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it has over {MAX_CONFIG} bytes")
        config = read_json(path)
        if not isinstance(config, dict):
            raise ValueError("it is another value")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is no json object ({error}): get it again, or delete it."
        ) from error
    number = config.get("format", 0)  # Versions before 0.2 wrote none.
    check_format(folder, number, FORMAT, config.get("speechbrain_vq"))


def is_folder_name(name: Any) -> bool:
    """Return whether a value is the plain name of a subfolder.

    Example
    -------
    >>> [is_folder_name(n) for n in ("vocoder", "../a", "a/b", "~", None)]
    [True, False, False, False, False]
    """
    plain = r"\w[\w.-]{0,99}"
    return isinstance(name, str) and bool(re.fullmatch(plain, name, re.ASCII))


def snapshot_of(folder: str | pathlib.Path) -> pathlib.Path | None:
    """Return the snapshot of a Hub cache, named by its commit, that contains a
    folder."""
    folder = pathlib.Path(folder)
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots":
            return place
    return None


def pickles_hint(names: Iterable[str]) -> str:
    """Describe how to convert weights in files that can run code: the last
    sentence of an error message, empty without such files."""
    pickles = sorted(n for n in names if n.endswith(PICKLES))
    if not pickles:
        return ""
    return (
        f" It has {', '.join(pickles[:3])}, but such files can run code and are "
        "not read. If you trust where they come from, load the model with "
        "SpeechBrain's own from_hparams and write its weights with "
        f"safetensors.torch.save_file(model.mods.state_dict(), '{WEIGHTS}')."
    )


def read_weights(path: str | pathlib.Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file; a ValueError tells if it is none."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    try:
        if size > MAX_HEADER:
            raise SafetensorError(f"a header of {size} bytes")
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged, or not a safetensors file whatever its name "
            f"({error}). Get it again."
        ) from error


def load_weights(
    modules: dict[str, nn.Module],
    weights: dict[str, torch.Tensor],
    path: str | pathlib.Path,
    assign: bool = False,
) -> None:
    """Load the weights of a file, named ``module.tensor``, into modules, all of
    them and no others; nothing is loaded unless everything fits.

    With ``assign`` they replace the modules' own, which may then be on the meta
    device. A ValueError names a tensor that is missing, unknown, of another
    shape or kind, or has values that are NaN or infinite."""
    model, weights = nn.ModuleDict(modules), dict(weights)
    upgrade_state_dict(model, weights)
    expected, others = split_tensors(model.state_dict())
    wrong = _differences(expected, weights)
    if wrong:
        more = f"; and {len(wrong) - 5} more" if len(wrong) > 5 else ""
        raise ValueError(
            f"{path} does not fit the model of {HPARAMS} beside it: "
            f"{'; '.join(wrong[:5])}{more}."
        )
    _check_finite(path, weights)
    if assign:
        # A copy, for the file may be written over while the model is in use.
        weights = {
            name: value.to(expected[name].dtype, copy=True)
            for name, value in weights.items()
        }
    model.load_state_dict({**others, **weights}, assign=assign)


def save_weights(modules: dict[str, nn.Module], folder: pathlib.Path) -> None:
    """Write the weights of modules by name into the folder of their yaml."""
    state, _ = split_tensors(nn.ModuleDict(modules).state_dict())
    # safetensors takes no tensors that share memory. That there is no warm-up
    # need not be said.
    tensors = {
        name: value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if not name.endswith(".in_warmup") or value > 0.5
    }
    # The file may be the one that the modules were loaded from.
    with atomic_write(folder / WEIGHTS) as partial:
        save_file(tensors, partial, {"format": "pt"})
        # safetensors makes the file readable by its owner only.
        shutil.copymode(folder / HPARAMS, partial)


def split_tensors(state: dict) -> tuple[dict, dict]:
    """Split a state into tensors and what a weights file does not hold."""
    tensors = {k: v for k, v in state.items() if torch.is_tensor(v)}
    return tensors, {k: v for k, v in state.items() if k not in tensors}


def read_checkpoint(path: pathlib.Path, name: str) -> dict[str, torch.Tensor]:
    """Read a module's state from a file of ``torch.save``, without running code
    in it, as ``read_weights`` reads it where the module has a name. A
    ValueError tells if the file is not of tensors only."""
    try:
        # Explicit, as TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD changes the default.
        state = torch.load(path, map_location="cpu", weights_only=True)
        tensors, others = split_tensors(state)
    # For damaged files the reader may raise anything. PyTorch's own message
    # proposes to load the file with its code.
    except Exception as error:
        raise ValueError(
            f"{path} was not loaded: {path.name} cannot be read as a file of "
            f"tensors ({type(error).__name__}), and what else is in it was "
            "not run. Is it whole, and its maker's own?"
        ) from error
    if others:
        raise ValueError(f"{path} was not loaded: it holds more than tensors.")
    # Weight norm has other names since PyTorch 2.0.
    new = {"weight_g": "original0", "weight_v": "original1"}
    return {
        re.sub(
            r"\bweight_[gv]$",
            lambda old: f"parametrizations.weight.{new[old[0]]}",
            f"{name}.{key}",
        ): value
        for key, value in tensors.items()
    }


def find_nonfinite(weights: dict[str, Any]) -> list[str]:
    """List the tensors that have values that are NaN or infinite."""
    return [
        key
        for key, value in weights.items()
        # By way of fp32, as the smallest floats cannot be asked.
        if torch.is_tensor(value)
        and value.is_floating_point()
        and value.numel()
        # In one pass; NaN is both.
        and not all(map(torch.isfinite, value.float().aminmax()))
    ]


def _check_finite(path, weights):
    broken = find_nonfinite(weights)
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise ValueError(
            f"{path} is of no use: {', '.join(map(repr, broken[:5]))}{more} "
            "have values that are NaN or infinite. Its maker must train it "
            "again."
        )


def _differences(expected, actual):
    """Describe missing, unknown and unfit tensors."""
    wrong = [f"'{k}' is missing" for k in expected if k not in actual]
    wrong += [f"'{k}' is unknown" for k in actual if k not in expected]
    for key in expected.keys() & actual.keys():
        tensor, stored = expected[key], actual[key]
        is_float = stored.is_floating_point()
        if tensor.shape != stored.shape:
            wrong.append(
                f"'{key}' has the shape {list(stored.shape)}, not "
                f"{list(tensor.shape)}"
            )
        elif tensor.is_floating_point() != is_float:
            kind = "floating point numbers" if is_float else "integers"
            wrong.append(f"'{key}' holds {kind}, not {tensor.dtype}")
    return wrong


def commit_of(folder: str | pathlib.Path) -> str | None:
    """Return the commit on the Hub that a folder's files are of, or None."""
    mark = pathlib.Path(folder) / MARK
    if mark.is_file():
        return json.loads(mark.read_text(encoding="utf-8")).get("commit")
    snapshot = snapshot_of(folder)
    return snapshot.name if snapshot is not None else None


def copy_files(
    folder: pathlib.Path, output: pathlib.Path, names: Iterable[str]
) -> None:
    """Copy those files of a model folder that there are."""
    for name in names:
        if (folder / name).is_file():
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(find_file(folder, name), output / name)


def copy_folder(
    folder: pathlib.Path,
    output: str | pathlib.Path,
    modules: dict[str, nn.Module],
) -> None:
    """Copy a model folder, with the weights that its modules have now."""
    output = pathlib.Path(output)
    if folder.resolve() != output.resolve():
        inner = [
            p for kind in (HPARAMS, WEIGHTS) for p in folder.glob(f"*/{kind}")
        ]
        inner = [path.relative_to(folder).as_posix() for path in inner]
        copy_files(folder, output, (HPARAMS, CONFIG, CARD, LABELS, *inner))
    save_weights(modules, output)
