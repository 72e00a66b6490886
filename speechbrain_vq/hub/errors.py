"""Explain errors of the Hub and its client."""

import contextlib
from collections.abc import Iterator

from huggingface_hub import constants, errors

LOG_IN = "log in with `hf auth login`, set HF_TOKEN or give a token"


class HubError(RuntimeError):
    """Error of the Hub: rejected request, missing file, or no connection."""


def is_unreachable(error: Exception) -> bool:
    """Return whether the same request may succeed later."""
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        return status == 429 or status >= 500
    return isinstance(error, errors.HTTPError | ConnectionError)


@contextlib.contextmanager
def in_words(repo_id: str, revision: str | None = None) -> Iterator[None]:
    """Convert errors of the Hub's client to a ``HubError`` with an explanation
    and the original error as its cause."""
    try:
        yield
    # Other errors, such as a full disk, need no explanation.
    except (
        errors.HTTPError,
        errors.EntryNotFoundError,
        errors.FileMetadataError,
        errors.XetDownloadError,
        ConnectionError,
    ) as error:
        raise HubError(_explain(error, repo_id, revision)) from error
    # For example, a file name that leads out of the folder.
    except ValueError as error:
        raise HubError(f"'{repo_id}' was not accepted: {error}") from error


def _explain(error, repo_id, revision):
    page = f"{constants.ENDPOINT}/{repo_id}"
    if isinstance(error, errors.GatedRepoError):
        return f"'{repo_id}' is gated: ask for access at {page}, then {LOG_IN}."
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"'{repo_id}' has no revision '{revision or 'main'}': see "
            f"{page}/commits."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"There is no model '{repo_id}' at {constants.ENDPOINT}, or it is "
            f"private and you have no access: {LOG_IN} with access to it."
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        reason = error.server_message or _cause(error)
        hint = f": {LOG_IN} that is valid" if status == 401 else ""
        return (
            f"{constants.ENDPOINT} answered the request for '{repo_id}' with "
            f"error {status} ({reason}){hint}."
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"'{repo_id}' at revision '{revision or 'main'}' is not completely "
            "in the cache, and the Hub was not contacted or did not answer "
            f"({_cause(error)}). Try again with a connection and without "
            "local_files_only or HF_HUB_OFFLINE."
        )
    return (
        f"{constants.ENDPOINT} cannot be reached ({_cause(error)}). Check the "
        "connection and try again."
    )


def _cause(error):
    """Return the first line of the innermost error."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
