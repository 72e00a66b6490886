"""Push an exported model to the Hugging Face Hub, in one commit."""

import contextlib
import os
import pathlib
import re
from collections.abc import Iterator, Sequence

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_token,
)
from huggingface_hub.errors import (
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import ModelInfo

from speechbrain_vq.hub import load_pretrained
from speechbrain_vq.hub.download import check_repo_id, vocoder_files
from speechbrain_vq.hub.errors import LOG_IN, HubError, in_words, is_unreachable
from speechbrain_vq.hub.folder import CARD, HPARAMS, WEIGHTS, find_file

from .card import replace_source
from .validate import EXPORTED_FILES

Operation = CommitOperationAdd | CommitOperationDelete


def push_to_hub(
    folder: str | pathlib.Path,
    repo_id: str,
    *,
    files: Sequence[str] = (),
    update: bool = False,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> str:
    """Push an exported model to the Hugging Face Hub.

    The model is loaded first, as a check. All files are pushed in one commit,
    unless nothing has changed. The commit deletes files of an earlier export
    that this one lacks, and keeps other files in the repository. The code in
    the card is changed to load the model from the repository.

    Arguments
    ---------
    folder : path
        Folder that ``export_pretrained`` wrote.
    repo_id : str
        Repository on the Hub, ``organization/name``; created if it does not
        exist.
    files : sequence of str
        Further files and subfolders to push, such as ``LICENSE``. Of the
        others, only files that the export wrote are pushed.
    update : bool
        Whether the files are new weights of a model in the repository. The
        folder then needs no card, and the repository keeps its other files.
    private : bool, optional
        Whether a new repository is private; by default the organization's
        setting.
    token : str or bool, optional
        Access token; by default ``HF_TOKEN`` or the stored login.
    revision : str, optional
        Branch to push to, ``main`` by default. Without ``create_pr``, it is
        created if it does not exist.
    create_pr : bool
        Whether to open a new pull request instead.
    tag : str, optional
        Tag of the commit. If the repository has this tag already, nothing is
        pushed.
    commit_message, commit_description : str, optional
        Title and body of the commit.

    Returns
    -------
    str
        URL of the pull request or commit, or of the last commit if nothing has
        changed.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder cannot be loaded or lacks a file, or the arguments
        contradict each other.
    HubError
        If the Hub rejects a request or cannot be reached; the message explains
        why.

    Example
    -------
    >>> push_to_hub("model", "org/name")  # doctest: +SKIP
    'https://huggingface.co/org/name/commit/0123456789abcdef'
    """
    check_repo_id(repo_id)
    if create_pr and tag is not None:
        raise ValueError("A pull request is tagged once it is merged.")
    operations: list[Operation] = [*_additions(folder, repo_id, files, update)]
    if token is False or token is None and get_token() is None:
        raise HubError(f"Pushing requires a token with write access: {LOG_IN}.")
    api = HfApi(token=token, library_name="speechbrain_vq")
    with _explained(repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = _find_head(api, repo_id, revision, private, create_pr)
        present = {file.rfilename for file in head.siblings or []}
        # A repository without these two files is not an export.
        if not update and {HPARAMS, WEIGHTS} <= present:
            new = {addition.path_in_repo for addition in operations}
            obsolete = sorted(present & EXPORTED_FILES - new)
            operations += map(CommitOperationDelete, obsolete)
        tags = [] if tag is None else api.list_repo_refs(repo_id).tags
        if tag in [known.name for known in tags]:
            raise HubError(
                f"Nothing was pushed. '{repo_id}' has a tag '{tag}' already: "
                "choose another tag, or delete that one."
            )
        try:
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message or "Upload model",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                # The client skips files unchanged since this commit, so it must
                # be the parent.
                parent_commit=head.sha,
            )
        except RuntimeError as error:
            # The client wraps the cause of a failed upload.
            raise error.__cause__ or ConnectionError(str(error)) from None
        if tag is not None:
            api.create_tag(repo_id, tag=tag, revision=commit.oid)
    return commit.pr_url or commit.commit_url


def _additions(
    folder: str | pathlib.Path,
    repo_id: str,
    files: Sequence[str],
    update: bool,
) -> list[CommitOperationAdd]:
    """Return the files to push. Raises an error if the model cannot be loaded
    or a file is missing."""
    folder = pathlib.Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}'.")
    load_pretrained(folder)
    if not update:
        find_file(folder, CARD)
    names = {name for name in EXPORTED_FILES if os.path.lexists(folder / name)}
    names.update(vocoder_files(folder))
    for file in files:
        path = folder / file
        paths = path.rglob("*") if path.is_dir() else [find_file(folder, file)]
        found = {p.relative_to(folder).as_posix() for p in paths if p.is_file()}
        if path.is_dir():
            # Hidden files belong to file managers, git and the Hub's client.
            found = {name for name in found if not re.search(r"(^|/)\.", name)}
        if not found:
            raise FileNotFoundError(f"{folder} has no {file} to push.")
        names |= found
    additions = []
    for name in sorted(names):
        content: pathlib.Path | bytes = find_file(folder, name)
        if name == CARD:
            card = content.read_text(encoding="utf-8")
            source = folder.resolve().name
            content = replace_source(card, source, repo_id).encode()
        additions.append(CommitOperationAdd(name, content))
    return additions


def _find_head(api, repo_id, revision, private, create_pr) -> ModelInfo:
    """Return the commit to build on; create the branch if it is missing."""
    info = api.model_info(repo_id)
    if private and not info.private:
        raise HubError(
            f"'{repo_id}' exists and is public, so nothing was pushed: make "
            f"it private at {constants.ENDPOINT}/{repo_id}/settings, or push "
            "without private."
        )
    if revision is None:
        return info
    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        if create_pr:
            raise
        api.create_branch(repo_id, branch=revision)
        return info


@contextlib.contextmanager
def _explained(repo_id: str, revision: str | None) -> Iterator[None]:
    """Convert errors of the Hub's client during a push to a ``HubError``."""
    try:
        with in_words(repo_id, revision):
            yield
    except HubError as error:
        cause, hint = error.__cause__, ""
        if isinstance(cause, HfHubHTTPError):
            status = cause.response.status_code
            if status == 412:
                hint = (
                    " Someone else pushed in the meantime: push again to "
                    "replace their files."
                )
            elif status == 403 or isinstance(cause, RepositoryNotFoundError):
                hint = (
                    " Pushing requires a token with write access to the "
                    "repository. Without it, send a pull request "
                    "(--create-pr, create_pr=True)."
                )
        if is_unreachable(cause):
            hint = (
                " The repository is unchanged, or has all of the commit. Push "
                "again: uploaded files are not sent twice."
            )
        raise HubError(f"{error}{hint}") from cause
