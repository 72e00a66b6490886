"""From a folder or a name on the Hub to the files of one commit."""

import contextlib
import os
import pathlib
import re
import warnings

from huggingface_hub import HfApi, constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError
from huggingface_hub.utils import validate_repo_id

from speechbrain_vq._names import suggestion
from speechbrain_vq.presets import bundled, bundled_names

from .errors import HubError, in_words, is_unreachable
from .folder import (
    CONFIG,
    HPARAMS,
    LABELS,
    WEIGHTS,
    find_file,
    is_folder_name,
    pickles_hint,
)
from .plain import ModelYaml
from .savedir import place

# Of a stranger's repository nothing else is fetched. Names in full: a pattern
# with a star would reach into subfolders.
FILES = (HPARAMS, CONFIG, WEIGHTS, LABELS)
# Of a self-supervised encoder.
ENCODER_CONFIGS = (CONFIG, "preprocessor_config.json")
# The first one that there is. transformers reads the second as tensors only.
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
    """Fetch a model's files, all of one commit, and return their folder.

    Files that can hold code are not fetched; a vocoder beside the yaml, which
    that names, is. A commit that is in the cache is not asked for again. When
    the Hub cannot be reached, what the cache has of the revision is used, with
    a warning that names its commit.

    Arguments
    ---------
    source : str or path
        A folder, which is used as it is, a bundled model (``speech``), or a
        model on the Hub (``org/name``).
    revision : str, optional
        Branch, tag or commit on the Hub; absent: ``main``.
    token, cache_dir, local_files_only, force_download
        As of ``huggingface_hub.snapshot_download``.
    savedir : path, optional
        Folder for a copy of the files: a new or empty one, or one that an
        earlier call filled.
    trust_remote_code : bool
        Whether to fetch every file of the repository.
    weights : tuple of str
        Possible names of the weights, of which one must exist.
    subfolder : str, optional
        Path of the model in the folder or repository.

    Returns
    -------
    pathlib.Path
        The folder; it has the yaml and the weights.

    Raises
    ------
    FileNotFoundError
        If the source is neither a folder nor a name on the Hub, or the folder
        lacks a file.
    ValueError
        If there is no source, the revision is empty, the arguments contradict
        each other, or a file is a link out of the folder.
    HubError
        If the Hub does not give the files; the message says why.
    """
    if not isinstance(source, str | os.PathLike) or source == "":
        raise ValueError(
            f"The source is {source!r}; give the folder of a model, or the "
            "name of one on the Hub ('organisation/name')."
        )
    if revision == "":
        raise ValueError(
            "The revision is empty: leave it out, or name a branch, tag or "
            "commit."
        )
    inner = pathlib.PurePosixPath(subfolder or ".")
    if inner.is_absolute() or ".." in inner.parts:
        raise ValueError(
            f"The subfolder is '{subfolder}': give one within the model's "
            "folder or repository."
        )
    # Each name once.
    names = list(dict.fromkeys([*FILES, *weights]))
    if trust_remote_code:
        # What is in it is up to SpeechBrain's loader.
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
        mark = {"source": os.fspath(folder.resolve())}
        for name in (HPARAMS, *_present(folder, weights)):
            find_file(folder, name)
        if savedir is not None:
            names = _with_vocoder(folder, names)
    else:
        repo_id = as_repo_id(source)
        if trust_remote_code and not COMMIT.fullmatch(revision or ""):
            warnings.warn(
                f"'{repo_id}' may run its code here, and whoever owns it can "
                "change it at any time: read it, and give the commit that you "
                "read as revision, all 40 characters.",
                stacklevel=2,
            )
        where = (repo_id, token, cache_dir, local_files_only, force_download)
        try:
            root = _snapshot(*where, revision, _within(inner, names))
        except HubError as error:
            raise HubError(f"{error}{_nearby(folder)}") from error
        folder = root / inner
        mark = {"source": repo_id, "commit": root.name}
        if subfolder is not None:
            mark["subfolder"] = inner.as_posix()
        _check(repo_id, root, inner, token, local_files_only, weights)
        more = _with_vocoder(folder, names)
        if more != names:
            # Of the same commit, whatever the branch says by now.
            _snapshot(*where, root.name, _within(inner, more))
            names = more
    if savedir is None:
        return folder
    return place(folder, pathlib.Path(savedir), names, mark, force_download)


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
    the others are those of ``download``. A HubError says why the Hub does not
    give the files."""
    where = (as_repo_id(source), token, cache_dir, local_files_only)
    for name in ENCODER_WEIGHTS:
        names = [*ENCODER_CONFIGS, name]
        folder = _snapshot(*where, force_download, revision, names)
        if (folder / name).is_file():
            return folder
    raise HubError(
        f"'{source}' at commit {revision} has no "
        f"{' or '.join(ENCODER_WEIGHTS)}."
    )


def _with_vocoder(folder, names):
    """Add the files of the vocoder that the model's yaml names."""
    if names is None:
        return None
    vocoder = ModelYaml(find_file(folder, HPARAMS)).scalar("vocoder")
    if not is_folder_name(vocoder):
        return names
    return [*names, f"{vocoder}/{HPARAMS}", f"{vocoder}/{WEIGHTS}"]


def _within(inner, names):
    """Return the paths in a repository of files in a subfolder."""
    if names is None:
        return None
    return [(inner / name).as_posix() for name in names]


def as_repo_id(source: str | pathlib.Path) -> str:
    """Return a source as a name on the Hub; what looks like a path is none.

    Raises
    ------
    FileNotFoundError
        If it is no name on the Hub.
    """
    text = os.fspath(source)
    if pathlib.Path(text).is_file():
        raise FileNotFoundError(
            f"'{text}' is a file; give the folder of a model, or the name of "
            "one on the Hub ('organisation/name')."
        )
    try:
        check_repo_id(text)
    except ValueError as error:
        raise FileNotFoundError(
            f"There is no folder '{text}', and the name of a model on the Hub "
            f"is 'organisation/name'.{_nearby(pathlib.Path(text))}"
        ) from error
    return text


def check_repo_id(repo_id: str) -> None:
    """Refuse what cannot be a repository on the Hub, ``organisation/name``."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(
            f"'{repo_id}' cannot be a repository: {error}"
        ) from error
    # The Hub has some without, from before there were organisations.
    if "/" not in repo_id:
        raise ValueError(
            f"'{repo_id}' lacks its owner: give 'organisation/{repo_id}'."
        )


def _nearby(path):
    """Return a hint at a folder or a bundled model of nearly that name, or at
    a run that is not complete."""
    run = path.parent
    # Beside a bare name there may be anything.
    beside = run.glob("*") if run.name and run.is_dir() else ()
    folders = [str(one) for one in beside if one.is_dir()]
    hint = suggestion(str(path), [*folders, *bundled_names()])
    if not hint and (run / HPARAMS).is_file():
        hint = (
            f" The run in {run} has no model yet: its training ends with "
            "that, and the same command goes on with it."
        )
    return hint


def _snapshot(
    repo_id, token, cache_dir, local_files_only, force, revision, patterns
):
    if local_files_only and force:
        raise ValueError(
            "local_files_only and force_download contradict each other."
        )

    def fetch(**how):
        options = {"cache_dir": cache_dir, "allow_patterns": patterns}
        options |= {"token": token, "library_name": "speechbrain_vq", **how}
        return pathlib.Path(
            snapshot_download(repo_id, revision=revision, **options)
        )

    with in_words(repo_id, revision):
        if local_files_only or constants.HF_HUB_OFFLINE:
            return fetch(local_files_only=True)
        if not COMMIT.fullmatch(revision or ""):
            # The client alone would serve its cache for whatever goes wrong,
            # a refused token too, and not say so.
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
    why = "is in trouble" if isinstance(error, HfHubHTTPError) else "is away"
    warnings.warn(
        f"The Hub {why}: '{repo_id}' at revision '{revision or 'main'}' is "
        f"loaded from the cache, as of commit {folder.name}.",
        stacklevel=2,
    )
    return folder


def _present(folder, weights):
    """Return, in a list, the first name that exists, else the first one."""
    present = [name for name in weights if (folder / name).is_file()]
    return (present or list(weights))[:1]


def _check(repo_id, root, inner, token, offline, weights):
    """Name a file that a repository, or the cache of it, lacks."""
    for name in (HPARAMS, *_present(root / inner, weights)):
        try:
            find_file(root / inner, name)
        except FileNotFoundError as error:
            what = f"'{repo_id}' at commit {root.name}"
            if inner.parts:
                what += f", folder '{inner}',"
            names = ()
            with contextlib.suppress(HTTPError, ConnectionError):
                if not offline:
                    api = HfApi(token=token)
                    names = api.list_repo_files(repo_id, revision=root.name)
            if not names or (inner / name).as_posix() in names:
                raise HubError(
                    f"The cache has {what}, but not its {name}: load it once "
                    "with a connection."
                ) from error
            paths = map(pathlib.PurePosixPath, names)
            beside = [path.name for path in paths if path.parent == inner]
            hint = pickles_hint(beside) if name == WEIGHTS else ""
            raise HubError(
                f"{what} is no model that can be loaded: it has no {name}."
                f"{hint}"
            ) from error
