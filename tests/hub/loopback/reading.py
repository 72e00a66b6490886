"""What the loopback Hub tells of a repo, and its files."""

import hashlib
import re
from urllib.parse import parse_qs

from tests.hub.loopback import cards
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
    card = cards.front_matter(cards.text_of(repo, commit))
    tags = card.get("tags")
    tags = list(tags) if isinstance(tags, list) else []
    for key in ("library_name", "pipeline_tag"):
        tags += [card[key]] if key in card else []
    siblings = []
    for path, entry in sorted(commit.files.items()):
        sibling = {"rfilename": path}
        if "blobs" in call.query:
            sibling.update(size=entry.size, blobId=entry.oid)
            if entry.lfs:
                sibling["lfs"] = {
                    "sha256": entry.sha256,
                    "size": entry.size,
                    "pointerSize": entry.pointer_size,
                }
        siblings.append(sibling)
    data = {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.oid,
        "createdAt": repo.commits()[-1].date,
        "lastModified": commit.date,
        "private": repo.private,
        "gated": repo.gated,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "usedStorage": sum(entry.size for entry in commit.files.values()),
        "spaces": [],
        "tags": tags,
        "cardData": card,
        "siblings": siblings,
    }
    for key in ("library_name", "pipeline_tag", "model-index"):
        if key in card:
            data[key] = card[key]
    return reply(data, headers={"X-Repo-Commit": commit.oid})


def file_item(blobs, path, entry):
    item = {
        "type": "file",
        "path": path,
        "oid": entry.oid,
        "size": entry.size,
    }
    if entry.lfs:
        item["lfs"] = {
            "oid": entry.sha256,
            "size": entry.size,
            "pointerSize": entry.pointer_size,
        }
        if entry.sha256 in blobs.xet:
            item["xetHash"] = blobs.xet[entry.sha256]
    return item


def folder_item(path):
    oid = hashlib.sha1(path.encode()).hexdigest()
    return {"type": "directory", "path": path, "oid": oid, "size": 0}


def items(repo, commit, expand):
    """All files and folders of a commit, by path."""
    found = {}
    for path, entry in sorted(commit.files.items()):
        parts = path.split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            found.setdefault(folder, folder_item(folder))
        found[path] = file_item(repo.blobs, path, entry)
    if expand:
        last = {"id": commit.oid, "title": commit.title, "date": commit.date}
        for item in found.values():
            item["lastCommit"] = last
    return found


def is_true(values):
    return bool(values) and values[0].lower() in ("1", "true")


@route("GET", "{api}/tree/{revision}")
@route("GET", "{api}/tree/{revision}/{path}")
def tree(call, repo, revision, path=""):
    commit = at(repo, revision)
    found = items(repo, commit, is_true(call.query.get("expand")))
    if path and found.get(path, {}).get("type") != "directory":
        raise Refusal(404, "EntryNotFound", f"No folder {path}")
    prefix = f"{path}/" if path else ""
    below = [i for p, i in found.items() if p.startswith(prefix)]
    if not is_true(call.query.get("recursive")):
        below = [i for i in below if "/" not in i["path"][len(prefix) :]]
    return reply(below)


@route("POST", "{api}/paths-info/{revision}")
def paths_info(call, repo, revision):
    form = parse_qs(call.body.decode())
    found = items(repo, at(repo, revision), is_true(form.get("expand")))
    paths = [path.rstrip("/") for path in form.get("paths", [])]
    return reply([found[path] for path in paths if path in found])


@route("GET", "{api}/commits/{revision}")
def commits(call, repo, revision):
    at(repo, revision)
    return reply(
        [
            {
                "id": commit.oid,
                "title": commit.title,
                "message": commit.message,
                "date": commit.date,
                "authors": [{"user": commit.author}],
            }
            for commit in repo.commits(revision)
        ]
    )


@route("GET HEAD", "{web}/resolve/{revision}/{path}")
def resolve(call, repo, revision, path):
    gate(call, repo)
    commit = at(repo, revision)
    entry = commit.files.get(path)
    if entry is None:
        refusal = Refusal(404, "EntryNotFound", "Entry not found")
        refusal.answer.headers["X-Repo-Commit"] = commit.oid
        raise refusal
    etag = f'"{entry.etag}"'
    headers = {
        "X-Repo-Commit": commit.oid,
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    if entry.lfs:
        headers["X-Linked-Etag"] = etag
        headers["X-Linked-Size"] = entry.size
    if call.hub.xet and entry.sha256 in repo.blobs.xet:
        headers["X-Xet-Hash"] = repo.blobs.xet[entry.sha256]
        headers["X-Xet-Refresh-Route"] = (
            f"{call.hub.url}/api/{repo.type}s/{repo.id}"
            f"/xet-read-token/{commit.oid}"
        )
    if call.headers.get("If-None-Match") == etag:
        return Answer(304, b"", headers)
    return ranged(call, repo.blobs.read(entry.sha256), headers)


def ranged(call, content, headers):
    """The content, or the range of it that was asked for."""
    wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", call.headers.get("Range", ""))
    if not wanted or wanted.groups() == ("", ""):
        return Answer(200, content, headers)
    first, last = wanted.groups()
    size = len(content)
    if first:
        start, end = int(first), min(int(last or size), size - 1)
    else:
        start, end = max(size - int(last), 0), size - 1
    if start > end:
        headers["Content-Range"] = f"bytes */{size}"
        return Answer(416, b"", headers)
    headers["Content-Range"] = f"bytes {start}-{end}/{size}"
    return Answer(206, content[start : end + 1], headers)
