"""A call to the loopback Hub: who asks, for which repo, and what is answered.

The answers are functions in `repos`, `reading` and `writing`, found by method
and path. Names in braces are their arguments: the repo, which the asker may
know of, and parts of the path.
"""

import json
import re
from dataclasses import dataclass, field
from urllib.parse import unquote

PARTS = {
    "api": r"/api/models/(?P<name>[^/]+/[^/]+)",
    "web": r"/(?P<name>[^/]+/[^/]+)",
    "path": r"(?P<path>.+)",
}
ROUTES = []


@dataclass
class Answer:
    """What is sent back."""

    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)


class Refusal(Exception):
    """Ends a call with an error."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.answer = error(*arguments)


@dataclass
class Call:
    """A request."""

    hub: object
    method: str
    path: str
    query: dict
    headers: object
    body: bytes

    def json(self):
        return json.loads(self.body or b"{}")

    @property
    def user(self):
        """Who asks: a `User`, or None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise Refusal(
                401, None, "Invalid credentials in Authorization header"
            )
        return self.hub.users.get(token)


def reply(data, status=200, headers=None):
    """An answer in JSON."""
    headers = {"Content-Type": "application/json", **(headers or {})}
    return Answer(status, json.dumps(data).encode(), headers)


def error(status, code=None, message=None, headers=None):
    """An answer that the client makes an exception of."""
    message = message or f"Error {status}"
    headers = {"X-Error-Message": message, **(headers or {})}
    if code:
        headers["X-Error-Code"] = code
    return reply({"error": message}, status, headers)


def route(method, pattern):
    """Enters a function for requests with this method and path."""
    for name, part in PARTS.items():
        pattern = pattern.replace(f"{{{name}}}", part)
    pattern = re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", pattern)

    def enter(function):
        ROUTES.append((method.split(), re.compile(pattern + "/?"), function))
        return function

    return enter


def answer(call):
    """The answer to a call; raises `Refusal`."""
    for methods, pattern, function in ROUTES:
        match = pattern.fullmatch(call.path)
        if match and call.method in methods:
            arguments = match.groupdict()
            found = {key: unquote(v) for key, v in arguments.items() if v}
            if "name" in arguments:
                found["repo"] = readable(call, found.pop("name"))
            return function(call, **found)
    raise Refusal(404, None, f"No such call: {call.method} {call.path}")


def readable(call, name):
    """The repo, if the user may know of it."""
    repo = call.hub.repos.get(name)
    user = call.user
    owned = user and user.owns(name.split("/")[0])
    if repo is None or (repo.private and not owned):
        if user is None:
            message = "Invalid username or password."
            raise Refusal(401, "RepoNotFound", message)
        raise Refusal(404, "RepoNotFound", "Repository not found")
    return repo


def gate(call, repo):
    """Refuse the files of a gated repo to who has not been let in."""
    user = call.user
    if not repo.gated or (
        user and (user.owns(repo.namespace) or user.name in repo.granted)
    ):
        return
    message = f"Access to model {repo.id} is restricted."
    raise Refusal(403 if user else 401, "GatedRepo", message)


def writer(call):
    """The user, who must have a token that may write."""
    user = call.user
    if user is None:
        raise Refusal(401, None, "Invalid username or password.")
    if user.role != "write":
        raise Refusal(
            403, None, "This token is read-only: use one with the write role"
        )
    return user


def owner(call, namespace, what):
    """The user, who must own a namespace."""
    user = writer(call)
    if not user.owns(namespace):
        raise Refusal(
            403,
            None,
            f"You don't have the rights to {what} under the namespace "
            f'"{namespace}"',
        )
    return user


def pusher(call, repo, is_pull_request=False):
    """The user, who may push to a repo; to open a pull request, anyone."""
    if is_pull_request or "create_pr" in call.query:
        return writer(call)
    return owner(call, repo.namespace, f"push to {repo.id}")


def at(repo, revision):
    """The commit of a revision."""
    commit = repo.resolve(revision)
    if commit is None:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit
