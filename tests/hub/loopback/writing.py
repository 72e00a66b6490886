"""Uploads to the loopback Hub and the commits they end in."""

import base64
import hashlib
import json
import re
import time

import yaml

from tests.hub.loopback import xet
from tests.hub.loopback.calls import (
    Answer,
    Refusal,
    at,
    pusher,
    reply,
    route,
    writer,
)
from tests.hub.loopback.storage import is_lfs


@route("POST", "/api/validate-yaml")
def validate_yaml(call):
    front = re.match(r"---\n(.*?)^---$", call.json()["content"], re.S | re.M)
    errors = []
    try:
        yaml.safe_load(front[1] if front else "")
    except yaml.YAMLError as problem:
        errors.append({"message": f"The metadata is not valid YAML: {problem}"})
    data = {"errors": errors, "warnings": []}
    return reply(data, 400 if errors else 200)


@route("POST", "{api}/preupload/{revision}")
def preupload(call, repo, revision):
    pusher(call, repo, revision.startswith("refs/pr/"))
    commit = at(repo, revision)
    found = []
    for file in call.json()["files"]:
        path = file["path"]
        sample = base64.b64decode(file["sample"])
        lfs = is_lfs(path, file["size"], sample)
        item = {
            "path": path,
            "uploadMode": "lfs" if lfs else "regular",
            "shouldIgnore": False,
        }
        if path in commit.files:
            item["oid"] = commit.files[path].etag
        found.append(item)
    return reply({"files": found})


@route("POST", "{web}.git/info/lfs/objects/batch")
def lfs_batch(call, repo):
    # The call does not say whether a pull request will follow.
    writer(call)
    found = []
    for item in call.json()["objects"]:
        item = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in repo.blobs:
            href = f"{call.hub.url}/presigned/{item['oid']}"
            item["actions"] = {"upload": {"href": href, "header": {}}}
        found.append(item)
    return reply({"transfer": "basic", "objects": found})


@route("PUT", "/presigned/{oid}")
def lfs_upload(call, oid):
    if hashlib.sha256(call.body).hexdigest() != oid:
        raise Refusal(400, None, "The content does not have this sha256")
    call.hub.blobs.add(call.body)
    return Answer()


@route("POST", "{api}/commit/{revision}")
def commit(call, repo, revision):
    user = pusher(call, repo, revision.startswith("refs/pr/"))
    parent = at(repo, revision)
    lines = [json.loads(line) for line in call.body.splitlines() if line]
    header = lines[0]["value"]
    if not parent.oid.startswith(header.get("parentCommit") or ""):
        raise Refusal(412, None, "A commit has happened since. Please refresh.")
    files = dict(parent.files)
    for line in lines[1:]:
        if line["key"] == "lfsFile":
            fetch_xet(call, **line["value"])
        OPERATIONS[line["key"]](repo.blobs, files, **line["value"])
    number = repo.new_pull_request()
    new = "create_pr" in call.query
    ref = f"refs/pr/{number}" if new else repo.ref(revision)
    if ref is None:
        raise Refusal(400, None, f"{revision} is no branch")
    oid = repo.commit(
        files,
        header["summary"],
        header.get("description", ""),
        ref=ref,
        parent=parent.oid,
        author=user.name,
    )
    url = f"{call.hub.url}/{repo.id}"
    data = {
        "success": True,
        "commitOid": oid,
        "commitUrl": f"{url}/commit/{oid}",
    }
    if new:
        data["pullRequestUrl"] = f"{url}/discussions/{number}"
    return reply(data)


def add_file(blobs, files, path, content, encoding):
    assert encoding == "base64"
    sha256 = blobs.add(base64.b64decode(content))
    files[path] = blobs.entry(sha256, lfs=False)


def add_lfs_file(blobs, files, path, oid, algo="sha256", size=None):
    if oid not in blobs:
        raise Refusal(400, None, f"LFS object {oid} was never uploaded")
    files[path] = blobs.entry(oid, lfs=True)


def delete_file(blobs, files, path):
    if path not in files:
        raise Refusal(
            404, "EntryNotFound", "A file with this name doesn't exist"
        )
    del files[path]


OPERATIONS = {
    "file": add_file,
    "lfsFile": add_lfs_file,
    "deletedFile": delete_file,
}


@route("GET", "{api}/xet-{access}-token/{revision}")
def xet_token(call, repo, access, revision):
    if not call.hub.xet:
        raise Refusal(404, None, "Xet is not available on this server")
    if access == "write":
        pusher(call, repo, revision.startswith("refs/pr/"))
    url = f"local://{call.hub.xet_folder}"
    expiry = int(time.time()) + 3600
    return reply(
        {"casUrl": url, "exp": expiry, "accessToken": "xet"},
        headers={
            "X-Xet-Cas-Url": url,
            "X-Xet-Token-Expiration": expiry,
            "X-Xet-Access-Token": "xet",
        },
    )


def fetch_xet(call, oid, size=0, **_):
    """Take over what the client has uploaded by Xet."""
    if call.hub.xet and oid not in call.hub.blobs:
        xet.fetch(call.hub.blobs, call.hub.xet_folder, oid, size)
