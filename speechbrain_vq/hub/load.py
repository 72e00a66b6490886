"""Load a model folder as data: plain values, registered classes, weights."""

import logging
import pathlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
from torch import nn

from speechbrain_vq.precision import fp32_by_default

from .download import download
from .folder import (
    HPARAMS,
    WEIGHTS,
    check_config,
    find_file,
    load_weights,
    read_checkpoint,
    read_weights,
)
from .plain import ModelYaml, UnsafeHparamsError
from .registry import leaves

logger = logging.getLogger(__name__)

# Limit on tensors that modules compute and do not save, such as windows.
MAX_UNSAVED_BYTES = 2**26


def load_pretrained(
    source: str | pathlib.Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Load the hyperparameters and modules of a pretrained model, on the CPU.

    Arguments
    ---------
    source : str or path
        Folder, or model on the Hub (``org/name``).
    overrides : mapping, optional
        Plain values that replace those of the yaml, nested as in the yaml.
    trust_remote_code : bool
        Whether to read the folder with SpeechBrain's own loader, which runs
        any code that the yaml names.
    **options
        ``revision``, ``token``, ``subfolder`` and others, see
        ``speechbrain_vq.hub.download.download``.

    Returns
    -------
    dict
        Hyperparameters, with the modules under ``modules``.

    Raises
    ------
    UnsafeHparamsError
        If the yaml is not plain data, or is too large.
    HubError, FileNotFoundError, ValueError
        If the files are unavailable, or the weights do not match the modules.

    Example
    -------
    >>> hparams = load_pretrained("results/model")  # doctest: +SKIP
    >>> hparams["modules"]["quantizer"].codebook_size  # doctest: +SKIP
    512
    """
    folder = download(source, trust_remote_code=trust_remote_code, **options)
    return load_folder(folder, overrides, trust_remote_code)


def load_folder(
    folder: str | pathlib.Path,
    overrides: Mapping[str, Any] | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Load the model of a folder; see ``load_pretrained``."""
    folder = pathlib.Path(folder)
    path = find_file(folder, HPARAMS)
    check_config(folder)
    with _isolated():
        if trust_remote_code:
            return _load_trusted(folder, path, overrides)
        file = find_file(folder, WEIGHTS)
        yaml = ModelYaml(path, overrides)
        hparams = _build(yaml, _modules, read_weights(file), file)
    _check_modules(hparams, hparams["modules"], yaml.file)
    return hparams


def load_named(
    folder: str | pathlib.Path, name: str, weights: pathlib.Path
) -> tuple[dict[str, Any], Any]:
    """Load one module of a folder by its name, which is at the top level or
    under ``modules`` of the yaml. The yaml may be one of SpeechBrain's.

    ``weights`` is a safetensors file with the weights of that module under its
    name, or a ``torch.save`` file with its state dict. Returns the plain values
    of the yaml, and the module, or None if there is no such module."""
    path = find_file(folder, HPARAMS)
    if weights.suffix == pathlib.Path(WEIGHTS).suffix:
        tensors = read_weights(weights)
    else:
        tensors = read_checkpoint(weights, name)

    def find(hparams: dict[str, Any], file: str) -> dict[str, nn.Module]:
        """Return the module by its name, if there is one."""
        for level in (hparams, hparams.get("modules")):
            module = level.get(name) if isinstance(level, dict) else None
            if isinstance(module, nn.Module):
                return {name: module}
        return {}

    with _isolated():
        hparams = _build(ModelYaml(path), find, tensors, weights)
    plain = {k: v for k, v in hparams.items() if not list(_modules_in(v))}
    return plain, find(hparams, "").get(name)


@contextmanager
def _isolated() -> Iterator[None]:
    """Build in fp32, and preserve the state of the random number generator."""
    with torch.random.fork_rng(devices=[]), fp32_by_default():
        yield


def _build(
    yaml: ModelYaml,
    find: Callable[[dict[str, Any], str], dict[str, nn.Module]],
    weights: dict[str, torch.Tensor],
    file: pathlib.Path,
) -> dict[str, Any]:
    """Build modules on the meta device and load their weights.

    If modules share parameters, or contain tensors that are not among the
    weights, they are built again on the CPU."""
    hparams = yaml.build("meta", len(weights))
    modules = find(hparams, yaml.file)
    if not modules:
        return hparams
    network = nn.ModuleDict(modules)
    names = list(network.named_parameters(remove_duplicate=False))
    is_tied = len(names) > len(list(network.parameters()))
    load_weights(modules, weights, file, assign=True)
    unsaved = _find_meta_tensors(modules)
    if not unsaved and not is_tied:
        return hparams
    size = sum(tensor.nbytes for tensor in unsaved)
    if size > MAX_UNSAVED_BYTES:
        raise UnsafeHparamsError(
            f"its modules compute tensors of {size} bytes that are not among "
            f"the weights (at most {MAX_UNSAVED_BYTES})",
            yaml.file,
        )
    # The size of modules without weights is not limited by the weights.
    _check_modules(hparams, modules, yaml.file)
    hparams = yaml.build("cpu", len(weights))
    load_weights(find(hparams, yaml.file), weights, file)
    return hparams


def _check_modules(
    hparams: dict[str, Any], modules: dict[str, nn.Module], file: str
) -> None:
    """Raise UnsafeHparamsError if there are modules without weights."""
    known = {id(module) for module in nn.ModuleDict(modules).modules()}
    for key, value in hparams.items():
        if any(id(module) not in known for module in _modules_in(value)):
            raise UnsafeHparamsError(
                f"'{key}' has a module that is not among 'modules', so it has "
                "no weights",
                file,
            )


def _load_trusted(folder, path, overrides):
    """Load a folder as SpeechBrain's ``Pretrained.from_hparams`` does."""
    from hyperpyyaml import load_hyperpyyaml

    logger.warning(
        "trust_remote_code=True: SpeechBrain's loader reads %s and may run "
        "any code of its publisher",
        path,
    )
    try:
        with open(path, encoding="utf-8") as file:
            hparams = load_hyperpyyaml(file, dict(overrides or {}))
    # Third-party code may raise any error.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be built: {type(error).__name__}: {error}"
        ) from error
    modules = _modules(hparams, path)
    if "pretrainer" in hparams:
        hparams["pretrainer"].collect_files(default_source=str(folder))
        hparams["pretrainer"].load_collected()
    else:
        file = find_file(folder, WEIGHTS)
        load_weights(modules, read_weights(file), file)
    return hparams


def _modules(hparams: Any, path: str | pathlib.Path) -> dict[str, nn.Module]:
    modules = hparams.get("modules") if isinstance(hparams, dict) else None
    if not (modules and isinstance(modules, dict)) or not all(
        isinstance(module, nn.Module) for module in modules.values()
    ):
        raise ValueError(f"{path} must have 'modules', a mapping of modules.")
    return modules


def _modules_in(value: Any) -> Iterator[nn.Module]:
    """Yield all modules in nested lists and mappings."""
    return (leaf for leaf in leaves(value) if isinstance(leaf, nn.Module))


def _find_meta_tensors(modules: Mapping[str, nn.Module]) -> list[torch.Tensor]:
    """Find tensors on the meta device in modules and their attributes."""
    todo, visited, on_meta = [modules], {}, []
    while todo:
        value = todo.pop()
        if id(value) in visited or isinstance(value, type | ModuleType):
            continue
        # The reference keeps the id from being reused.
        visited[id(value)] = value
        if torch.is_tensor(value):
            on_meta += [value] if value.is_meta else []
        elif isinstance(value, list | tuple | dict):
            todo += value.values() if isinstance(value, dict) else value
        elif hasattr(value, "__dict__"):
            todo += vars(value).values()
    return on_meta
