"""What the loopback Hub tells of a repo, and its files."""

from urllib.parse import parse_qs

from tests.hub.loopback.calls import (
    Answer,
    Refusal,
    at,
    gate,
    reply,
    route,
)


@route("GET", "{api}")
@route("GET", "{api}/revision/{revision}")
def info(call, repo, revision="main"):
    commit = at(repo, revision)
    data = {
        "id": repo.id,
        "sha": commit.oid,
        "private": repo.private,
        "gated": repo.gated,
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
    }
    return reply(data, headers={"X-Repo-Commit": commit.oid})


def items(repo, revision):
    """All files of a revision, by path."""
    found = {}
    for path, entry in sorted(at(repo, revision).files.items()):
        found[path] = {
            "type": "file",
            "path": path,
            "oid": entry.oid,
            "size": entry.size,
        }
        if entry.lfs:
            found[path]["lfs"] = {
                "oid": entry.sha256,
                "size": entry.size,
                "pointerSize": entry.pointer_size,
            }
    return found


@route("GET", "{api}/tree/{revision}")
def tree(call, repo, revision):
    """The files, whatever their folders."""
    return reply(list(items(repo, revision).values()))


@route("POST", "{api}/paths-info/{revision}")
def paths_info(call, repo, revision):
    found = items(repo, revision)
    paths = parse_qs(call.body.decode()).get("paths", [])
    return reply([found[path] for path in paths if path in found])


@route("GET HEAD", "{web}/resolve/{revision}/{path}")
def resolve(call, repo, revision, path):
    gate(call, repo)
    commit = at(repo, revision)
    entry = commit.files.get(path)
    if entry is None:
        refusal = Refusal(404, "EntryNotFound", "Entry not found")
        refusal.answer.headers["X-Repo-Commit"] = commit.oid
        raise refusal
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": f'"{entry.etag}"',
        "Content-Type": "application/octet-stream",
    }
    return Answer(200, repo.blobs.read(entry.sha256), headers)
