"""Find or download the files of a model."""

import os
import pathlib
import re
import shutil
import warnings

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from speechbrain_vq._names import suggestion
from speechbrain_vq.dataio.atomic import atomic_folder
from speechbrain_vq.dataio.manifests import read_json, write_json
from speechbrain_vq.presets import bundled, bundled_names

from .errors import HubError, in_words, is_unreachable
from .folder import (
    CONFIG,
    HPARAMS,
    LABELS,
    MARK,
    WEIGHTS,
    copy_files,
    find_file,
    is_folder_name,
)
from .plain import ModelYaml

# The only files fetched from a repository, since others may contain code. A
# pattern with a star would also match files in subfolders.
FILES = (HPARAMS, CONFIG, WEIGHTS, LABELS)
# Files of a self-supervised encoder.
ENCODER_CONFIGS = (CONFIG, "preprocessor_config.json")
# The first that exists is used. From the second, transformers loads tensors
# only.
ENCODER_WEIGHTS = (WEIGHTS, "pytorch_model.bin")
COMMIT = re.compile("[0-9a-f]{40}")


def download(
    source: str | pathlib.Path,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | pathlib.Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
    savedir: str | pathlib.Path | None = None,
    trust_remote_code: bool = False,
    weights: tuple[str, ...] = (WEIGHTS,),
    subfolder: str | None = None,
) -> pathlib.Path:
    """Find or fetch the files of one commit of a model; return their folder.

    Files that can contain code are not fetched. If the yaml names a vocoder in
    a subfolder, its files are fetched, too. A cached commit is used without a
    request. If the Hub cannot be reached, the cached commit of the revision is
    used, with a warning.

    Arguments
    ---------
    source : str or path
        Local folder, bundled model (``speech``), or model on the Hub
        (``org/name``).
    revision : str, optional
        Branch, tag or commit on the Hub; by default ``main``.
    token, cache_dir, local_files_only, force_download
        Arguments of ``huggingface_hub.snapshot_download``.
    savedir : path, optional
        Folder to copy the files to: new, empty, or written by an earlier call.
    trust_remote_code : bool
        Whether to fetch every file of the repository.
    weights : tuple of str
        Possible names of the weights file; one must exist.
    subfolder : str, optional
        Path of the model within the folder or repository.

    Returns
    -------
    pathlib.Path
        Folder that contains the yaml and the weights.

    Raises
    ------
    FileNotFoundError
        If the source is neither a folder nor a name on the Hub, or a file is
        missing in the folder.
    ValueError
        If arguments contradict each other, or a file is a link to a file
        outside the folder.
    HubError
        If the Hub does not provide the files; the message explains why.
    """
    inner = pathlib.PurePosixPath(subfolder or ".")
    # The default weights are among the files.
    names = list(dict.fromkeys([*FILES, *weights]))
    if trust_remote_code:
        # Fetch all files, since SpeechBrain's loader may require any of them.
        names, weights = None, ()
    folder = pathlib.Path(source).expanduser()
    if not folder.is_dir() and str(source) in bundled_names():
        folder = pathlib.Path(bundled(str(source)))
    if folder.is_dir():
        if revision is not None:
            raise ValueError(
                f"'{source}' is a folder, which has no revision "
                f"'{revision}': leave revision out, or give a model on the Hub."
            )
        folder = folder / inner
        origin = {"source": os.fspath(folder.resolve())}
        for name in (HPARAMS, *_first_existing(folder, weights)):
            find_file(folder, name)
        if savedir is not None and names is not None:
            names += vocoder_files(folder)
    else:
        repo_id = as_repo_id(source)
        if trust_remote_code and not COMMIT.fullmatch(revision or ""):
            warnings.warn(
                f"'{repo_id}' may run its code here, and its owner can change "
                "it at any time. Read the code, and pass the commit that you "
                "read (all 40 characters) as the revision.",
                stacklevel=2,
            )
        request = (repo_id, token, cache_dir, local_files_only, force_download)
        try:
            root = _snapshot(*request, revision, _in_subfolder(inner, names))
        except HubError as error:
            raise HubError(f"{error}{_suggest(folder)}") from error
        folder = root / inner
        origin = {"source": repo_id, "commit": root.name}
        if subfolder is not None:
            origin["subfolder"] = inner.as_posix()
        for name in (HPARAMS, *_first_existing(folder, weights)):
            try:
                find_file(folder, name)
            except FileNotFoundError as error:
                raise HubError(
                    f"'{repo_id}' at commit {root.name} has no {inner / name}. "
                    "If only the cache lacks it, load it once with a "
                    "connection."
                ) from error
        if names is not None and (more := vocoder_files(folder)):
            # From the same commit, even if the branch has moved since.
            names += more
            _snapshot(*request, root.name, _in_subfolder(inner, names))
    if savedir is None:
        return folder
    mark = {**origin, "files": names}
    return _copy(folder, pathlib.Path(savedir), mark, force_download)


def _copy(folder, savedir, mark, fresh):
    """Copy the ``files`` in ``mark``, or all, of a model to ``savedir``, which
    must be new, empty, or an earlier copy. Return its path. An earlier copy of
    the same commit stays, unless ``fresh`` is set."""
    savedir = savedir.expanduser().resolve()
    if savedir == folder.resolve():
        return folder
    if (savedir / MARK).is_file():
        is_same = read_json(savedir / MARK) == mark
        if "commit" in mark and is_same and not fresh:
            return savedir
    elif savedir.exists():
        if not savedir.is_dir() or any(savedir.iterdir()):
            raise FileExistsError(
                f"savedir {savedir} is a file, or contains other files, which "
                "would be lost: choose a new or an empty folder."
            )
    with atomic_folder(savedir) as new:
        if mark["files"] is None:
            shutil.copytree(folder, new, dirs_exist_ok=True)
        copy_files(folder, new, mark["files"] or ())
        write_json(new / MARK, mark)
    return savedir


def download_encoder(
    source: str,
    revision: str,
    token: str | bool | None = None,
    cache_dir: str | pathlib.Path | None = None,
    local_files_only: bool = False,
    force_download: bool = False,
) -> pathlib.Path:
    """Fetch the files of an encoder for ``SSLFeatures.load_encoder``, without
    code, and return their folder in the Hub's cache.

    ``source`` is a repository, and ``revision`` a commit of 40 hexadecimal
    digits. The other arguments and the HubError are those of ``download``."""
    request = (as_repo_id(source), token, cache_dir, local_files_only)
    for name in ENCODER_WEIGHTS:
        names = [*ENCODER_CONFIGS, name]
        folder = _snapshot(*request, force_download, revision, names)
        if (folder / name).is_file():
            return folder
    raise HubError(
        f"'{source}' at commit {revision} has no "
        f"{' or '.join(ENCODER_WEIGHTS)}."
    )


def vocoder_files(folder: pathlib.Path) -> list[str]:
    """List the files of the vocoder, if a model's yaml names a subfolder."""
    vocoder = ModelYaml(find_file(folder, HPARAMS)).scalar("vocoder")
    if not is_folder_name(vocoder):
        return []
    return [f"{vocoder}/{HPARAMS}", f"{vocoder}/{WEIGHTS}"]


def _in_subfolder(inner, names):
    """Return the repository paths of files in the subfolder ``inner``."""
    if names is None:
        return None
    return [(inner / name).as_posix() for name in names]


def as_repo_id(source: str | pathlib.Path) -> str:
    """Return a source that is not a folder as a name on the Hub. Raises
    FileNotFoundError if it is not a valid name."""
    text = os.fspath(source)
    if pathlib.Path(text).is_file():
        raise FileNotFoundError(
            f"'{text}' is a file; give the folder of a model, or the name of "
            "one on the Hub ('organization/name')."
        )
    try:
        check_repo_id(text)
    except ValueError as error:
        raise FileNotFoundError(
            f"There is no folder '{text}', and a name on the Hub has the form "
            f"'organization/name'.{_suggest(pathlib.Path(text))}"
        ) from error
    return text


def check_repo_id(repo_id: str) -> None:
    """Raise ValueError unless ``repo_id`` is ``organization/name``."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"'{repo_id}' cannot be a repository: {error}"
        ) from error
    # The Hub has legacy repositories without an owner.
    if "/" not in repo_id:
        raise ValueError(
            f"'{repo_id}' lacks its owner: give 'organization/{repo_id}'."
        )


def _suggest(path):
    """Return a hint for an error message: a folder or bundled model with a
    similar name."""
    parent = path.parent
    # Folders in the working directory are unrelated to a bare name.
    siblings = parent.glob("*") if parent.name else ()
    folders = [str(sibling) for sibling in siblings if sibling.is_dir()]
    return suggestion(str(path), [*folders, *bundled_names()])


def _snapshot(
    repo_id, token, cache_dir, local_files_only, force, revision, patterns
):
    if local_files_only and force:
        raise ValueError(
            "local_files_only and force_download contradict each other."
        )

    def fetch(**changes):
        """Download the files."""
        options = {"cache_dir": cache_dir, "allow_patterns": patterns}
        options |= {"token": token, "library_name": "speechbrain_vq", **changes}
        return pathlib.Path(
            snapshot_download(repo_id, revision=revision, **options)
        )

    with in_words(repo_id, revision):
        if local_files_only or constants.HF_HUB_OFFLINE:
            return fetch(local_files_only=True)
        if not COMMIT.fullmatch(revision or ""):
            # After any error, even a rejected token, the client would silently
            # use its cache.
            try:
                HfApi(token=token).model_info(repo_id, revision=revision)
            except (HTTPError, ConnectionError) as error:
                if force or not is_unreachable(error):
                    raise
                return _cached(fetch, repo_id, revision, error)
        return fetch(force_download=force)


def _cached(fetch, repo_id, revision, error):
    """Return the cached snapshot of a revision, with a warning."""
    try:
        folder = fetch(local_files_only=True)
    except FileNotFoundError:
        raise error from None
    warnings.warn(
        f"The Hub cannot be reached: '{repo_id}' at revision "
        f"'{revision or 'main'}' is loaded from the cache, as of commit "
        f"{folder.name}.",
        stacklevel=2,
    )
    return folder


def _first_existing(folder, weights):
    """Return the first existing weights file, else the first, in a list."""
    present = [name for name in weights if (folder / name).is_file()]
    return (present or list(weights))[:1]
