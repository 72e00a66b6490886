"""From a repository and a commit to the files of a self-supervised encoder."""

import pathlib

from .download import _snapshot, as_repo_id
from .errors import HubError

CONFIGS = ("config.json", "preprocessor_config.json")
# The first one that there is. transformers reads the second as tensors only.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def download_encoder(
    source: str,
    revision: str,
    token: str | bool | None = None,
    cache_dir: str | pathlib.Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> pathlib.Path:
    """Fetch the files of an encoder for ``SSLFeatures.load_encoder``, those of
    a commit and no code, and return their folder in the cache of the Hub.

    ``source`` is a repository, ``revision`` a commit, 40 hexadecimal digits;
    the others are those of ``speechbrain_vq.hub.download.download``. A
    HubError says why the Hub does not give the files."""
    where = (as_repo_id(source), token, cache_dir, local_files_only)
    for name in WEIGHTS:
        folder = _snapshot(*where, force_download, revision, [*CONFIGS, name])
        if (folder / name).is_file():
            return folder
    raise HubError(
        f"'{source}' at commit {revision} has no {' or '.join(WEIGHTS)}."
    )
