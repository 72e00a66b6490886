"""Read and write the folder of a pretrained model."""

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
from speechbrain_vq.dataio.manifests import read_json, write_json
from speechbrain_vq.versions import check_format

# Version of the folder format; later versions are rejected.
FORMAT = 1
CONFIG, HPARAMS = "config.json", "hyperparams.yaml"
WEIGHTS = "model.safetensors"
CARD, LABELS = "README.md", "label_encoder.txt"
EXAMPLE, EXAMPLE_TOKENS = "example.wav", "example.tokens.json"
USAGE, SPECTROGRAM = "codebook_usage.png", "spectrogram.png"
# The card and the files that it shows.
CARD_FILES = (CARD, EXAMPLE, EXAMPLE_TOKENS, USAGE, SPECTROGRAM)
# File that identifies a savedir as ours, and records its source.
MARK = ".speechbrain_vq.json"
# In bytes. The header of a weights file with 1000 tensors has 150 kB.
MAX_HEADER = 2**20
MAX_CONFIG = 2**20
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl")


def find_file(folder: str | pathlib.Path, name: str) -> pathlib.Path:
    """Find a file of a model folder.

    Raises ValueError if it is a link to a file outside the folder, except in
    the cache of the Hub's client. Raises FileNotFoundError if it does not
    exist, with a hint if the weights are missing."""
    folder = pathlib.Path(folder)
    path = folder / name
    check_exists(path)
    target, snapshot = path.resolve(), snapshot_of(folder)
    allowed = [folder.resolve(), pathlib.Path(constants.HF_HUB_CACHE).resolve()]
    if snapshot is not None:
        # Other caches keep blobs per repository, or for all repositories.
        allowed += [up / "blobs" for up in snapshot.resolve().parents[1:3]]
    if not any(target.is_relative_to(place) for place in allowed):
        raise ValueError(
            f"{path} is a link to {target}, outside its folder, and was not "
            "read. If that file is intended, put a copy of it there."
        )
    return path


def check_exists(path: pathlib.Path) -> None:
    """Raise FileNotFoundError if a file of a model is missing."""
    if path.is_file():
        return
    folder, hint = path.parent, ""
    if path.name == WEIGHTS and (folder / "model").is_dir():
        hint = f" It may be a run, whose model is {folder / 'model'}."
    elif path.name == WEIGHTS and folder.is_dir():
        names = sorted(file.name for file in folder.iterdir())
        pickles = [name for name in names if name.endswith(PICKLES)]
        if pickles:
            hint = (
                f" It has {', '.join(pickles[:3])}, but such files can run "
                "code and are not read. If you trust their source, load the "
                "model with SpeechBrain's own from_hparams and write its "
                "weights with safetensors.torch.save_file("
                f"model.mods.state_dict(), '{WEIGHTS}')."
            )
    raise FileNotFoundError(
        f"'{folder}' is not a folder with a pretrained model: there is no "
        f"{path.name} in it.{hint}"
    )


def check_config(folder: pathlib.Path) -> None:
    """Raise ValueError if ``config.json`` is not a JSON object, or has a later
    format. The file is optional: only the Hub and other programs need it."""
    if not (folder / CONFIG).exists():
        return
    config = _read_object(folder, CONFIG)
    number = config.get("format", 0)  # Versions before 0.2 wrote no format.
    check_format(folder, number, FORMAT, config.get("speechbrain_vq"))


def _read_object(folder, name):
    """Read a small JSON object in a model folder."""
    path = find_file(folder, name)
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise ValueError(f"it has over {MAX_CONFIG} bytes")
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError(f"it is a {type(content).__name__}")
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a JSON object ({error}): download it again, or "
            "delete it."
        ) from error
    return content


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
    """Return the snapshot in a Hub cache that contains a folder, or None. The
    folder of a snapshot is named after its commit."""
    folder = pathlib.Path(folder)
    for place in (folder, *folder.parents):
        if place.parent.name == "snapshots":
            return place
    return None


def read_weights(path: str | pathlib.Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file. Raises ValueError if it is not one."""
    with open(path, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
    try:
        if size > MAX_HEADER:
            raise SafetensorError(f"a header of {size} bytes")
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged, or not a safetensors file ({error}). Download "
            "it again."
        ) from error


def load_weights(
    modules: dict[str, nn.Module],
    weights: dict[str, torch.Tensor],
    path: str | pathlib.Path,
    assign: bool = False,
) -> None:
    """Load the weights of a file, named ``module.tensor``, into modules.

    With ``assign`` they replace the tensors of the modules, which may then be
    on the meta device. If a tensor is missing, unknown, not finite, or of
    another shape, a ValueError is raised and nothing is loaded."""
    model, weights = nn.ModuleDict(modules), dict(weights)
    upgrade_state_dict(model, weights)
    expected, others = split_tensors(model.state_dict())
    problems = _differences(expected, weights)
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{path} does not fit the model in {HPARAMS} next to it: "
            f"{'; '.join(problems[:5])}{more}."
        )
    broken = find_nonfinite(weights)
    if broken:
        raise ValueError(
            f"{path} is unusable: {', '.join(map(repr, broken[:5]))} have "
            "values that are NaN or infinite. The model must be trained again."
        )
    if assign:
        # Copy, since the file may be overwritten while the model is in use.
        weights = {
            name: value.to(expected[name].dtype, copy=True)
            for name, value in weights.items()
        }
    model.load_state_dict({**others, **weights}, assign=assign)


def save_weights(modules: dict[str, nn.Module], folder: pathlib.Path) -> None:
    """Write the weights of modules by name into the folder of their yaml."""
    state, _ = split_tensors(nn.ModuleDict(modules).state_dict())
    # safetensors rejects tensors that share memory. The warm-up flag is stored
    # only if it is set.
    tensors = {
        name: value.cpu().clone(memory_format=torch.contiguous_format)
        for name, value in state.items()
        if not name.endswith(".in_warmup") or value > 0.5
    }
    # The modules may have been loaded from this file.
    with atomic_write(folder / WEIGHTS) as partial:
        save_file(tensors, partial, {"format": "pt"})
        # safetensors makes the file readable by its owner only.
        shutil.copymode(folder / HPARAMS, partial)


def split_tensors(state: dict) -> tuple[dict, dict]:
    """Split a state dict into tensors and other values, which a weights file
    cannot contain."""
    tensors = {k: v for k, v in state.items() if torch.is_tensor(v)}
    return tensors, {k: v for k, v in state.items() if k not in tensors}


def read_checkpoint(path: pathlib.Path, name: str) -> dict[str, torch.Tensor]:
    """Read a module's state dict from a ``torch.save`` file, without running
    code in it. As in ``read_weights``, the keys begin with the module's
    ``name``. Values that are not tensors are left out."""
    try:
        # Explicit because TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD changes the default.
        state = torch.load(path, map_location="cpu", weights_only=True)
        tensors, _ = split_tensors(state)
    # A damaged file may raise any error. PyTorch's message would suggest
    # running the code in the file.
    except Exception as error:
        raise ValueError(
            f"{path} was not loaded: {path.name} cannot be read as a file of "
            f"tensors ({type(error).__name__}), and no code in it was run. It "
            "may be damaged, or not the original."
        ) from error
    # PyTorch 2.0 renamed the parameters of weight norm.
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
    """Return the names of tensors with NaN or infinite values."""
    return [
        key
        for key, value in weights.items()
        if torch.is_tensor(value)
        and value.is_floating_point()
        and value.numel()
        # 8-bit floats have no aminmax, which returns NaN if any value is NaN.
        and not all(map(torch.isfinite, value.float().aminmax()))
    ]


def _differences(expected, actual):
    """Describe tensors that are missing, unknown, or of another shape."""
    wrong = [f"'{k}' is missing" for k in expected if k not in actual]
    wrong += [f"'{k}' is unknown" for k in actual if k not in expected]
    for key in expected.keys() & actual.keys():
        tensor, stored = expected[key], actual[key]
        if tensor.shape != stored.shape:
            wrong.append(
                f"'{key}' has the shape {list(stored.shape)}, not "
                f"{list(tensor.shape)}"
            )
    return wrong


def commit_of(folder: str | pathlib.Path) -> str | None:
    """Return the Hub commit that a folder's files come from, or None."""
    folder = pathlib.Path(folder)
    if (folder / MARK).is_file():
        commit = _read_object(folder, MARK).get("commit")
        is_commit = re.fullmatch(r"[0-9a-f]{40}", str(commit))
        return commit if is_commit else None
    snapshot = snapshot_of(folder)
    return snapshot.name if snapshot is not None else None


def copy_files(
    folder: pathlib.Path, output: pathlib.Path, names: Iterable[str]
) -> None:
    """Copy those of the files ``names`` that a model folder contains."""
    names = [name for name in names if (folder / name).is_file()]
    # All are checked before any is copied.
    for name, path in [(name, find_file(folder, name)) for name in names]:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, output / name)


def copy_folder(
    folder: pathlib.Path,
    output: str | pathlib.Path,
    modules: dict[str, nn.Module],
    is_changed: bool,
) -> None:
    """Copy a model folder, with the current weights of its modules. The card
    and its files, which describe the original weights, are copied only if the
    weights have not changed."""
    output = pathlib.Path(output)
    if folder.resolve() != output.resolve():
        inner = [
            p for kind in (HPARAMS, WEIGHTS) for p in folder.glob(f"*/{kind}")
        ]
        inner = [path.relative_to(folder).as_posix() for path in inner]
        names = [HPARAMS, CONFIG, LABELS, *inner]
        if not is_changed:
            names += CARD_FILES
        copy_files(folder, output, names)
    config = output / CONFIG
    if is_changed and config.is_file():
        write_json(config, {**read_json(config), "checkpoint": {}}, indent=2)
    save_weights(modules, output)
