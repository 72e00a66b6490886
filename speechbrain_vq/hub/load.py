"""A model of anyone's, built without running anything of theirs.

Authors
 * speechbrain_vq authors 2026
"""

import pathlib
from typing import Any

from speechbrain_vq.precision import fp32_by_default

from .download import download
from .folder import HPARAMS, WEIGHTS, find_file, load_weights

# What building a model may ask for in all, given back or not. Most ask for once
# the size of their weights, twice that where the file is in half precision;
# recurrent layers for twice, and SpeechBrain's CRDNN, which tries its layers on
# made-up input, for 4.6 times, or 370 MiB if it is small.
BYTES_PER_BYTE, BYTES_AT_LEAST = 8, 2**30


def load_pretrained(
    source: str | pathlib.Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | pathlib.Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    savedir: str | pathlib.Path | None = None,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """What a pretrained model's yaml describes, with its weights, on the CPU.

    Arguments
    ---------
    source : str or path
        A folder, or a model on the Hub (``org/name``).
    revision, token, cache_dir, local_files_only, force_download, savedir
        See ``speechbrain_vq.hub.download.download``.
    trust_remote_code : bool
        Whether the yaml may build and call anything. The weights are read
        from safetensors all the same.

    Returns
    -------
    dict
        The hyperparameters; ``modules`` are loaded.

    Raises
    ------
    UnsafeHparamsError
        If the yaml asks for what no quantizer needs.
    HubError, FileNotFoundError, ValueError
        If the files cannot be had, or the weights do not fit the modules.

    Example
    -------
    >>> hparams = load_pretrained("results/model")  # doctest: +SKIP
    >>> hparams["modules"]["quantizer"].codebook_size  # doctest: +SKIP
    512
    """
    folder = download(
        source,
        revision=revision,
        token=token,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        force_download=force_download,
        savedir=savedir,
        trust_remote_code=trust_remote_code,
    )
    weights = find_file(folder, WEIGHTS)
    hparams = build_hparams(folder, weights, trust_remote_code)
    load_weights(_modules(hparams, find_file(folder, HPARAMS)), weights)
    return hparams


def build_hparams(
    folder: str | pathlib.Path,
    weights: pathlib.Path,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """What a pretrained model's yaml describes, without its weights.

    Arguments
    ---------
    folder : path
        With the yaml.
    weights : pathlib.Path
        The file with the weights, whose size bounds that of the model.
    trust_remote_code : bool
        Whether the yaml may build and call anything, of any size.

    Returns
    -------
    dict
        The hyperparameters.

    Raises
    ------
    UnsafeHparamsError
        If the yaml asks for what no quantizer needs.
    FileNotFoundError, ValueError
        If there is no yaml, or nothing can be built of it.
    """
    size = BYTES_PER_BYTE * weights.stat().st_size + BYTES_AT_LEAST
    path = find_file(folder, HPARAMS)
    return _build(path, None if trust_remote_code else size)


def _build(path, max_bytes):
    """What the yaml describes, guarded if it has a limit."""
    from hyperpyyaml import load_hyperpyyaml

    from .guard import UnsafeHparamsError, load_hparams_safely

    try:
        with fp32_by_default():
            if max_bytes is not None:
                return load_hparams_safely(path, max_bytes=max_bytes)
            with open(path, encoding="utf-8") as file:
                return load_hyperpyyaml(file)
    except UnsafeHparamsError:
        raise
    # It may be no yaml, or ask for a layer that no one can build: whatever it
    # is, it is the file's.
    except Exception as error:
        raise ValueError(
            f"{path} cannot be built: {type(error).__name__}: {error}"
        ) from error


def _modules(hparams, path):
    from torch import nn

    modules = hparams.get("modules") if isinstance(hparams, dict) else None
    if not isinstance(modules, dict) or not all(
        isinstance(module, nn.Module) for module in modules.values()
    ):
        raise ValueError(f"{path} has no 'modules', each of them built there.")
    return modules
