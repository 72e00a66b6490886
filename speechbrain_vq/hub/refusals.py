"""What goes wrong when pushing, in words.

Authors
 * speechbrain_vq authors 2026
"""

import contextlib
import json
import re
from collections.abc import Iterator

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    RepositoryNotFoundError,
)

from .errors import HubError, in_words, is_unreachable

AGAIN = (
    "The repository is as it was, or has all of it. Run the same again: what "
    "has arrived is not sent twice."
)


@contextlib.contextmanager
def push_in_words(
    api: HfApi, repo_id: str, revision: str | None = None
) -> Iterator[None]:
    """Turns what the Hub's client raises while writing into a ``HubError``.

    Arguments
    ---------
    api : HfApi
        The client, to ask who the user is.
    repo_id, revision : str
        Where to.

    Yields
    ------
    None

    Raises
    ------
    HubError
        With the client's error as its cause.
    """
    try:
        with in_words(repo_id, revision):
            yield
    except HubError as error:
        raise HubError(_explain(api, repo_id, error)) from error.__cause__


def _explain(api, repo_id, error):
    cause = error.__cause__
    if isinstance(cause, HfHubHTTPError):
        status = cause.response.status_code
        if status == 412:
            return (
                f"Someone else pushed to '{repo_id}' in the meantime. Nothing "
                "was committed; run the same again to replace what they pushed."
            )
        if status == 403 or isinstance(cause, RepositoryNotFoundError):
            if not isinstance(cause, GatedRepoError):
                return _no_right(api, repo_id) or str(error)
    elif "README.md" in str(cause):
        return f"The Hub refused the card, and nothing was committed. {cause}"
    elif re.search("404.*/xet-write-token", str(cause)):
        return (
            f"{constants.ENDPOINT} does not speak Xet, with which the client "
            "uploads large files: set HF_HUB_DISABLE_XET=1 in the environment "
            "and run the same again. Nothing was committed."
        )
    # Anything else would be refused again. What is no JSON came from something
    # between here and the Hub.
    later = is_unreachable(cause) or isinstance(cause, json.JSONDecodeError)
    return f"{error} {AGAIN}" if later else str(error)


def _no_right(api, repo_id):
    """Why this user may not write there."""
    with in_words(repo_id):
        user = api.whoami()
    owner = repo_id.split("/")[0]
    mine = [user["name"], *(org["name"] for org in user.get("orgs", []))]
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        return (
            f"The token of '{user['name']}' may only read: make one that may "
            f"write at {constants.ENDPOINT}/settings/tokens."
        )
    if owner in mine:
        return None
    why = f"there is no organisation '{owner}', or it is not yours"
    if _is_visible(api, repo_id):
        why = (
            f"it exists and belongs to '{owner}', to whom you may propose it "
            "as a pull request (--create-pr, create_pr=True)"
        )
    return (
        f"You are '{user['name']}' and have no right to write to '{repo_id}': "
        f"{why}. You may push to {', '.join(mine)}."
    )


def _is_visible(api, repo_id):
    try:
        api.model_info(repo_id)
    except (HTTPError, ConnectionError):
        return False
    return True
