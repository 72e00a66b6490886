"""Users, repos and refs on the loopback Hub."""

from tests.hub.loopback.calls import (
    Refusal,
    at,
    owner,
    pusher,
    reply,
    route,
    writer,
)


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


@route("POST", "/api/repos/create")
def create(call):
    wanted = call.json()
    user = writer(call)
    namespace = wanted.get("organization") or user.name
    owner(call, namespace, "create a model")
    repo_id = f"{namespace}/{wanted['name']}"
    url = f"{call.hub.url}/{repo_id}"
    if repo_id in call.hub.repos:
        message = "You already created this model repo"
        return reply(
            {"error": message, "url": url}, 409, {"X-Error-Message": message}
        )
    call.hub.put(repo_id, private=wanted.get("visibility") == "private")
    return reply({"url": url, "name": repo_id, "id": repo_id})


@route("GET", "{api}/refs")
def refs(call, repo):
    kinds = {"branches": "refs/heads/", "tags": "refs/tags/"}
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


@route("POST", "{api}/tag/{revision}")
def create_tag(call, repo, revision):
    pusher(call, repo)
    return new_ref(repo, f"refs/tags/{call.json()['tag']}", revision)


@route("POST", "{api}/branch/{branch}")
def create_branch(call, repo, branch):
    pusher(call, repo)
    start = call.json().get("startingPoint", "main")
    return new_ref(repo, f"refs/heads/{branch}", start)
