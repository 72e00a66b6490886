"""Users, repos and refs on the loopback Hub."""

from tests.hub.loopback.calls import (
    Refusal,
    at,
    gate,
    owner,
    pusher,
    readable,
    reply,
    route,
    url_of,
    writer,
)
from tests.hub.loopback.storage import MAIN, now


@route("GET", "/api/whoami-v2")
def whoami(call):
    user = call.user
    if user is None:
        raise Refusal(401, None, "Invalid username or password.")
    token = {"displayName": "test", "role": user.role}
    return reply(
        {
            "type": "user",
            "id": user.name,
            "name": user.name,
            "fullname": user.name.title(),
            "orgs": [{"type": "org", "name": name} for name in user.orgs],
            "auth": {"type": "access_token", "accessToken": token},
        }
    )


@route("GET", "/api/agent-harnesses")
def agents(call):
    """Asked once a day by the command line, which looks who runs it."""
    return reply({"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/repos/create")
def create(call):
    wanted = call.json()
    user = writer(call)
    namespace = wanted.get("organization") or user.name
    kind = wanted.get("type") or "model"
    owner(call, namespace, f"create a {kind}")
    repo_id = f"{namespace}/{wanted['name']}"
    url = url_of(call, kind, repo_id)
    if (kind, repo_id) in call.hub.repos:
        message = f"You already created this {kind} repo"
        return reply(
            {"error": message, "url": url}, 409, {"X-Error-Message": message}
        )
    private = wanted.get("visibility") == "private"
    call.hub.put(repo_id, repo_type=kind, private=private)
    return reply({"url": url, "name": repo_id, "id": repo_id})


@route("DELETE", "/api/repos/delete")
def delete(call):
    wanted = call.json()
    user = writer(call)
    namespace = wanted.get("organization") or user.name
    kind = wanted.get("type") or "model"
    repo = readable(call, kind + "s", f"{namespace}/{wanted['name']}")
    owner(call, namespace, f"delete {repo.id}")
    del call.hub.repos[kind, repo.id]
    return reply({})


@route("PUT", "{api}/settings")
def settings(call, repo):
    owner(call, repo.namespace, f"change {repo.id}")
    wanted = call.json()
    if "visibility" in wanted:
        repo.private = wanted["visibility"] == "private"
    if "gated" in wanted:
        repo.gated = wanted["gated"]
    return reply({})


@route("GET", "{api}/auth-check")
def auth_check(call, repo):
    gate(call, repo)
    return reply({})


@route("GET", "{api}/auth-check/write")
def auth_check_write(call, repo):
    pusher(call, repo)
    return reply({})


@route("GET", "/api/(?P<kind>models|datasets)")
def listing(call, kind):
    author = call.query.get("author", [None])[0]
    found = []
    for repo in call.hub.repos.values():
        known = call.user and call.user.owns(repo.namespace)
        if repo.type + "s" == kind and (known or not repo.private):
            if author in (None, repo.namespace):
                found.append({"id": repo.id, "private": repo.private})
    return reply(found)


@route("GET", "{api}/refs")
def refs(call, repo):
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/"}
    if "include_prs" in call.query:
        kinds["pullRequests"] = "refs/pr/"
    found = {"converts": []}
    for kind, prefix in kinds.items():
        found[kind] = [
            {"name": ref.removeprefix(prefix), "ref": ref, "targetCommit": oid}
            for ref, oid in repo.refs.items()
            if ref.startswith(prefix)
        ]
    return reply(found)


def new_ref(repo, ref, revision):
    if ref in repo.refs:
        raise Refusal(409, None, f"Reference {ref} exists already")
    repo.refs[ref] = at(repo, revision).oid
    return reply({})


def drop_ref(repo, ref):
    if ref not in repo.refs or ref == MAIN:
        raise Refusal(404, "RevisionNotFound", f"No reference {ref}")
    del repo.refs[ref]
    return reply({})


@route("POST", "{api}/tag/{revision}")
def create_tag(call, repo, revision):
    pusher(call, repo)
    return new_ref(repo, f"refs/tags/{call.json()['tag']}", revision)


@route("DELETE", "{api}/tag/{tag}")
def delete_tag(call, repo, tag):
    pusher(call, repo)
    return drop_ref(repo, f"refs/tags/{tag}")


@route("POST", "{api}/branch/{branch}")
def create_branch(call, repo, branch):
    pusher(call, repo)
    if branch.startswith("refs/"):
        raise Refusal(400, None, f"Invalid reference for a branch: {branch}")
    start = call.json().get("startingPoint", "main")
    return new_ref(repo, f"refs/heads/{branch}", start)


@route("DELETE", "{api}/branch/{branch}")
def delete_branch(call, repo, branch):
    pusher(call, repo)
    return drop_ref(repo, f"refs/heads/{branch}")


@route("POST", "{api}/discussions")
def discuss(call, repo):
    user, wanted = writer(call), call.json()
    if not wanted.get("pullRequest"):
        raise Refusal(400, None, "This server has pull requests only")
    number = repo.new_pull_request()
    repo.refs[f"refs/pr/{number}"] = repo.head()
    repo.discussions[number] = (wanted["title"], user.name, now())
    return reply({"num": number})


@route("GET", "{api}/discussions/{number}")
def discussion(call, repo, number):
    if int(number) not in repo.discussions:
        raise Refusal(404, None, f"No discussion {number}")
    title, author, date = repo.discussions[int(number)]
    return reply(
        {
            "num": int(number),
            "title": title,
            "author": {"name": author},
            "createdAt": date,
            "status": "draft",
            "repo": {"name": repo.id, "type": repo.type},
            "isPullRequest": True,
            "changes": {"base": MAIN},
            "filesWithConflicts": [],
            "events": [],
        }
    )
