"""From an exported folder to the Hub, in one commit or none.

Authors
 * speechbrain_vq authors 2026
"""

import pathlib

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import (
    HFValidationError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash

from .card import with_source
from .download import COMMIT
from .errors import LOG_IN, HubError, in_words
from .folder import CARD, PICKLES, find_file
from .load import load_pretrained
from .refusals import push_in_words


def push_to_hub(
    folder: str | pathlib.Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tag: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
) -> str:
    """Puts an exported model on the Hub.

    The folder must load first. The repository is made if there is none. All
    files go in one commit, so that nobody ever sees half of them; where none
    has changed there is no commit. Other files of the repository stay, as
    nobody who loads the model reads them. Pull requests are not looked at:
    each call with ``create_pr`` opens another one.

    Arguments
    ---------
    folder : path
        What ``export_pretrained`` wrote.
    repo_id : str
        Where to, ``organisation/name``.
    private : bool, optional
        Whether a repository that is made here is private; absent: as the
        organisation has it.
    token : str or bool, optional
        Absent: ``HF_TOKEN`` or the stored login.
    revision : str, optional
        The branch; one that is not there is made. Absent: ``main``.
    create_pr : bool
        Whether to open a pull request instead, a new one each time.
    tag : str, optional
        A name for this commit. Where it names another, or would have to be
        moved as files have changed, nothing is pushed.
    commit_message, commit_description : str, optional
        Of the commit.

    Returns
    -------
    str
        The address of the commit (of the one that is there already, if
        nothing has changed), or of the pull request.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is not one to push, or the arguments contradict each
        other.
    HubError
        If the Hub refuses or cannot be reached; the message says why.
    """
    _check_names(repo_id, revision, create_pr, tag)
    operations = _operations(pathlib.Path(folder), repo_id)
    if token is False or token is None and get_token() is None:
        raise HubError(f"Pushing needs a token that may write: {LOG_IN}.")
    api = HfApi(token=token, library_name="speechbrain_vq")
    with push_in_words(api, repo_id, revision):
        api.create_repo(repo_id, private=private, exist_ok=True)
        head = _head(api, repo_id, revision, private, create_pr)
        tagged = _tagged(api, repo_id, tag)
        if tagged is not None and (
            tagged != head or _has_changed(api, repo_id, operations, head)
        ):
            raise HubError(
                f"Nothing was pushed. {_tag_is_taken(repo_id, tag, tagged)}"
            )
        try:
            commit = api.create_commit(
                repo_id,
                operations,
                commit_message=commit_message or "Upload model",
                commit_description=commit_description,
                revision=revision,
                create_pr=create_pr,
                # Files that are there already are left out of the commit, so
                # it must follow the one that was looked at.
                parent_commit=head,
            )
        except RuntimeError as error:
            # The client wraps what an upload ended with.
            raise error.__cause__ or ConnectionError(str(error)) from None
    if tag is not None:
        try:
            if tagged is None:
                with in_words(repo_id):
                    api.create_tag(repo_id, tag=tag, revision=commit.oid)
        except HubError as error:
            raise HubError(
                f"Pushed as {commit.commit_url}, but not tagged. {error}"
            ) from error
    return commit.pr_url or commit.commit_url


def _check_names(repo_id, revision, create_pr, tag):
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"'{repo_id}' cannot be a name: {error}") from error
    if "/" not in repo_id:
        raise ValueError(f"Say whose '{repo_id}' is: 'organisation/{repo_id}'.")
    if create_pr and tag is not None:
        raise ValueError("A pull request is tagged once it is merged.")
    if revision is not None and COMMIT.fullmatch(revision):
        raise ValueError(f"revision '{revision}' is a commit; name a branch.")


def _operations(folder, repo_id):
    """The files of a folder that loads, the card with the model's new name."""
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder '{folder}'.")
    load_pretrained(folder)
    card = find_file(folder, CARD).read_text(encoding="utf-8")
    operations = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        # What file managers, git and the Hub's client leave behind.
        if name.startswith(".") or "/." in name or not path.is_file():
            continue
        if name.endswith((".py", *PICKLES)):
            raise ValueError(
                f"{path} can hold code, which nobody is to run who loads the "
                "model: take it out of the folder."
            )
        content = find_file(folder, name)
        if name == CARD:
            content = with_source(card, repo_id).encode()
        operations.append(CommitOperationAdd(name, content))
    return operations


def _head(api, repo_id, revision, private, create_pr):
    """The commit to build on; a branch that is not there is made."""
    info = api.model_info(repo_id)
    if private and not info.private:
        raise HubError(
            f"'{repo_id}' exists and is public, so nothing was pushed: make "
            f"it private at {constants.ENDPOINT}/{repo_id}/settings, or push "
            "without private."
        )
    if revision is None:
        return info.sha
    try:
        return api.model_info(repo_id, revision=revision).sha
    except RevisionNotFoundError:
        if create_pr:
            raise
        api.create_branch(repo_id, branch=revision)
        return info.sha


def _tagged(api, repo_id, tag):
    """The commit that a tag names, if there is one."""
    tags = [] if tag is None else api.list_repo_refs(repo_id).tags
    return {t.name: t.target_commit for t in tags}.get(tag)


def _has_changed(api, repo_id, operations, head):
    """Whether a commit of the files would differ from the one that is there,
    judged by the hashes that the Hub keeps: of large files their own, of the
    others those of git."""
    names = [operation.path_in_repo for operation in operations]
    infos = api.get_paths_info(repo_id, names, revision=head)
    there = {info.path: info for info in infos}
    for operation in operations:
        info = there.get(operation.path_in_repo)
        if info is None:
            return True
        if info.lfs:
            theirs, ours = info.lfs.sha256, operation.upload_info.sha256.hex()
        else:
            with operation.as_file() as file:
                theirs, ours = info.blob_id, git_hash(file.read())
        if theirs != ours:
            return True
    return False


def _tag_is_taken(repo_id, tag, commit):
    return (
        f"'{repo_id}' has a tag '{tag}' already, for commit {commit}: choose "
        "another, or delete that one."
    )
