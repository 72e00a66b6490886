"""A Hugging Face Hub on loopback, for the real client to talk to.

Models, users and roles, and faults on demand: what the package's calls of the
client need, without Xet.

How long the client waits on a fault (huggingface_hub 2.4.0, measured), so that
tests choose cheap ones, or use the fixture `no_waiting`:

- Not at all: any 4xx but 408 and 429. Any fault on repos/create,
  validate-yaml, commit, tag, branch, refs, revision (repo info); and on a
  file's HEAD if the file is in the cache. A reset download. Of a server that is
  gone: create_repo, repo info, snapshot_download.
- 1, 2, 4, 8, 8 s, then it gives up: 408, 429, 5xx, a cut connection or a server
  that is gone, on preupload, LFS batch, LFS PUT, tree, and on a file's HEAD if
  the file is not in the cache; 429 on a file's GET."""

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
import traceback
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

MAIN = "refs/heads/main"
BINARY = re.compile(r"\.(safetensors|ckpt|pt|npz|wav|flac|zip|png|jpg)$")
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"
ROUTES = []


# ---- what is kept


@dataclass(frozen=True)
class User:
    """Who a token stands for; owns the namespaces of the name and the orgs."""

    name: str
    orgs: tuple = ()
    role: str = "write"

    def owns(self, namespace):
        return namespace == self.name or namespace in self.orgs


@dataclass(frozen=True)
class Entry:
    content: bytes
    lfs: bool

    @property
    def etag(self):
        """SHA-256 of large files, else the id of git's object."""
        if self.lfs:
            return sha256(self.content)
        header = b"blob %d\0" % len(self.content)
        return hashlib.sha1(header + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """A commit; `files` maps each path to its `Entry`."""

    oid: str
    parent: str | None
    files: dict
    title: str
    message: str


@dataclass
class Repo:
    """A model; tests may change `private`, `gated`, `granted`."""

    id: str
    private: bool = False
    gated: bool = False
    granted: set = field(default_factory=set)
    refs: dict = field(default_factory=dict)
    history: dict = field(default_factory=dict)

    @property
    def namespace(self):
        return self.id.split("/")[0]

    def resolve(self, revision="main"):
        for prefix in ("", "refs/heads/", "refs/tags/"):
            if prefix + revision in self.refs:
                return self.history[self.refs[prefix + revision]]
        return self.history.get(revision)

    def head(self, revision="main"):
        return self.resolve(revision).oid

    def files(self, revision="main"):
        files = self.resolve(revision).files
        return {path: entry.content for path, entry in files.items()}

    def commits(self, revision="main"):
        commit, found = self.resolve(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.history.get(commit.parent)
        return found

    def write(self, files):
        """Commit the content of each path, None deletes it; return the sha."""
        new = dict(self.resolve().files)
        for path, content in files.items():
            content = content.encode() if isinstance(content, str) else content
            new[path] = content and Entry(content, is_lfs(path, content))
        new = {path: entry for path, entry in new.items() if entry}
        return self.commit(new, "Write")

    def commit(self, files, title, message="", ref=MAIN, parent=None):
        """Append a commit to `ref` (or to `parent`, for a new ref)."""
        parent = parent or self.refs.get(ref)
        # Random: a sha never comes back, whatever a cache remembers of it.
        oid = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        self.history[oid] = Commit(oid, parent, files, title, message)
        self.refs[ref] = oid
        return oid


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def is_lfs(path, sample):
    return bool(sample) and (bool(BINARY.search(path)) or b"\0" in sample)


@dataclass
class Fault:
    method: str | None
    path: str
    times: int
    answer: "Answer | None" = None
    cut: int | None = None
    action: Callable | None = None


class LoopbackHub:
    """A Hub on 127.0.0.1; `users` by token."""

    def __init__(self, users):
        self.users = dict(users)
        self.lock = threading.RLock()
        self.server = None
        # The port is held from now on, also while the server is stopped.
        self._socket = _bound(0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.reset()

    def reset(self):
        with self.lock:
            self.repos, self.uploads = {}, {}
            self.log, self.faults = [], []
            # What went wrong here, and not in what was asked.
            self.errors = []

    def start(self):
        if self.server is None:
            self.server = Server(self, self._socket)
            threading.Thread(
                target=self.server.serve_forever, args=(0.02,), daemon=True
            ).start()
        return self

    def stop(self):
        """Be gone: connections are closed and new ones refused."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server.close_connections()
            self.server = None
            self._socket = _bound(self.port)

    def repo(self, repo_id):
        return self.repos[repo_id]

    def put(self, repo_id, files=(), **options):
        """Write files, unchecked, into a repo, made if it is missing with
        `private` and `gated` of the options; return the sha of the commit."""
        with self.lock:
            if repo_id not in self.repos:
                repo = self.repos[repo_id] = Repo(repo_id, **options)
                repo.commit({}, "initial commit")
                repo.write({".gitattributes": GITATTRIBUTES})
            repo = self.repo(repo_id)
            return repo.write(dict(files)) if files else repo.head()

    def calls(self, method=None, path=""):
        """The logged (method, path) whose path has `path` in it."""
        return [c for c in self.log if method in (None, c[0]) and path in c[1]]

    def fail(self, status, method=None, path="", times=1):
        """Answer the next requests of a method (None: any), whose path has
        `path` in it, with an error."""
        self.faults.append(Fault(method, path, times, error(status)))

    def cut(self, path="", after=0, times=1, method="GET"):
        """Reset the connection after `after` bytes of the answer's body."""
        self.faults.append(Fault(method, path, times, cut=after))

    def before(self, path, action):
        """Do something once, before the next request with `path` in it."""
        self.faults.append(Fault(None, path, 1, action=action))

    def fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.method in (None, method) and fault.path in path:
                    fault.times -= 1
                    if not fault.times:
                        self.faults.remove(fault)
                    return fault
        return None


def _bound(port):
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound


# ---- HTTP


@dataclass
class Answer:
    status: int = 200
    body: bytes = b""
    headers: dict = field(default_factory=dict)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, hub, bound):
        super().__init__(bound.getsockname(), Handler, bind_and_activate=False)
        self.socket.close()
        self.socket, self.hub, self.connections = bound, hub, set()
        self.server_activate()

    def process_request(self, request, client_address):
        self.connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request):
        self.connections.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request, client_address):
        """Say nothing: clients that hang up are part of the tests."""

    def close_connections(self):
        for connection in list(self.connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body are two packets; waiting for the first costs 40 ms.
    disable_nagle_algorithm = True

    def answer(self):
        hub = self.server.hub
        hub.log.append((self.command, self.path))
        fault = hub.fault(self.command, self.path)
        size = int(self.headers.get("Content-Length", 0))
        if fault and fault.action:
            fault.action()
        try:
            body = self.rfile.read(size)
            answer = (fault and fault.answer) or self._call(hub, body)
            self._send(answer, fault and fault.cut)
        except ConnectionError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def _call(self, hub, body):
        split = urlsplit(self.path)
        query = parse_qs(split.query)
        call = Call(hub, self.command, split.path, query, self.headers, body)
        try:
            with hub.lock:
                return answer(call)
        except Refusal as refusal:
            return refusal.answer
        except Exception:
            hub.errors.append(traceback.format_exc())
            return error(500, None, "A mistake of the loopback Hub")

    def _send(self, answer, cut):
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, str(value))
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[:cut])
            if cut is not None:
                self._reset()

    def _reset(self):
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        # Without the farewell that the server would send first.
        os.close(self.connection.detach())
        raise ConnectionError

    def log_message(self, *_):
        """Say nothing: the log is `hub.log`."""


# ---- calls


class Refusal(Exception):
    """Ends a call with an error."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.answer = error(*arguments)


@dataclass
class Call:
    hub: LoopbackHub
    method: str
    path: str
    query: dict
    headers: object
    body: bytes

    def json(self):
        return json.loads(self.body or b"{}")

    @property
    def user(self):
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            message = "Invalid credentials in Authorization header"
            raise Refusal(401, None, message)
        return self.hub.users.get(token)


def reply(data, status=200, headers=None):
    headers = {"Content-Type": "application/json", **(headers or {})}
    return Answer(status, json.dumps(data).encode(), headers)


def error(status, code=None, message=None):
    """An answer that the client makes an exception of."""
    message = message or f"Error {status}"
    headers = {"X-Error-Message": message}
    if code:
        headers["X-Error-Code"] = code
    return reply({"error": message}, status, headers)


def route(method, pattern):
    """Enter a function for requests with this method and path; names in braces
    are its arguments."""
    pattern = pattern.replace("{api}", "/api/models{web}")
    pattern = pattern.replace("{web}", r"/(?P<name>[^/]+/[^/]+)")
    pattern = pattern.replace("{path}", r"(?P<path>.+)")
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
            if "name" in found:
                found["repo"] = readable(call, found.pop("name"))
            return function(call, **found)
    raise Refusal(404, None, f"No such call: {call.method} {call.path}")


def readable(call, name):
    """The repo, if the user may know of it."""
    repo, user = call.hub.repos.get(name), call.user
    owned = user and user.owns(name.split("/")[0])
    if repo is None or (repo.private and not owned):
        raise Refusal(404 if user else 401, "RepoNotFound", "Not found")
    return repo


def writer(call):
    user = call.user
    if user is None:
        raise Refusal(401, None, "Invalid username or password.")
    if user.role != "write":
        raise Refusal(403, None, "This token is read-only")
    return user


def owner(call, namespace):
    user = writer(call)
    if not user.owns(namespace):
        raise Refusal(403, None, f"You have no rights to {namespace}")
    return user


def pusher(call, repo, revision=""):
    """The user, who may push to a repo; to open a pull request, anyone."""
    if revision.startswith("refs/pr/") or "create_pr" in call.query:
        return writer(call)
    return owner(call, repo.namespace)


def at(repo, revision):
    commit = repo.resolve(revision)
    if commit is None:
        raise Refusal(404, "RevisionNotFound", f"Invalid rev id: {revision}")
    return commit


# ---- users, repos and refs


@route("POST", "/api/repos/create")
def create(call):
    wanted = call.json()
    namespace = wanted.get("organization") or writer(call).name
    owner(call, namespace)
    repo_id = f"{namespace}/{wanted['name']}"
    url = f"{call.hub.url}/{repo_id}"
    if repo_id in call.hub.repos:
        message = "You already created this model repo"
        return reply({"url": url}, 409, {"X-Error-Message": message})
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


def new_ref(call, repo, ref, revision):
    pusher(call, repo)
    if ref in repo.refs:
        raise Refusal(409, None, f"Reference {ref} exists already")
    repo.refs[ref] = at(repo, revision).oid
    return reply({})


@route("POST", "{api}/tag/{revision}")
def create_tag(call, repo, revision):
    return new_ref(call, repo, f"refs/tags/{call.json()['tag']}", revision)


@route("POST", "{api}/branch/{branch}")
def create_branch(call, repo, branch):
    start = call.json().get("startingPoint", "main")
    return new_ref(call, repo, f"refs/heads/{branch}", start)


# ---- reading


@route("GET", "{api}")
@route("GET", "{api}/revision/{revision}")
def info(call, repo, revision="main"):
    commit = at(repo, revision)
    data = {"id": repo.id, "sha": commit.oid, "private": repo.private}
    data["siblings"] = [{"rfilename": path} for path in sorted(commit.files)]
    return reply(data, headers={"X-Repo-Commit": commit.oid})


def items(repo, revision):
    found = {}
    for path, entry in sorted(at(repo, revision).files.items()):
        size = len(entry.content)
        item = {"type": "file", "path": path, "oid": entry.etag, "size": size}
        if entry.lfs:
            item["lfs"] = {"oid": entry.etag, "size": size, "pointerSize": 130}
        found[path] = item
    return found


@route("GET", "{api}/tree/{revision}")
def tree(call, repo, revision):
    return reply(list(items(repo, revision).values()))


@route("GET HEAD", "{web}/resolve/{revision}/{path}")
def resolve(call, repo, revision, path):
    user = call.user
    name = user and user.name
    if repo.gated and name not in repo.granted:
        raise Refusal(403 if user else 401, "GatedRepo", "Access is restricted")
    commit = at(repo, revision)
    headers = {"X-Repo-Commit": commit.oid}
    if path not in commit.files:
        refusal = Refusal(404, "EntryNotFound", "Entry not found")
        refusal.answer.headers |= headers
        raise refusal
    entry = commit.files[path]
    headers["ETag"] = f'"{entry.etag}"'
    return Answer(200, entry.content, headers)


# ---- uploads and commits


@route("POST", "/api/validate-yaml")
def validate_yaml(call):
    front = re.match(r"---\n(.*?)^---$", call.json()["content"], re.S | re.M)
    errors = []
    try:
        yaml.safe_load(front[1] if front else "")
    except yaml.YAMLError as problem:
        errors.append({"message": f"The metadata is not valid YAML: {problem}"})
    return reply({"errors": errors, "warnings": []}, 400 if errors else 200)


@route("POST", "{api}/preupload/{revision}")
def preupload(call, repo, revision):
    pusher(call, repo, revision)
    files, found = at(repo, revision).files, []
    for file in call.json()["files"]:
        path = file["path"]
        lfs = is_lfs(path, base64.b64decode(file["sample"]))
        mode = "lfs" if lfs else "regular"
        item = {"path": path, "uploadMode": mode, "shouldIgnore": False}
        if path in files:
            item["oid"] = files[path].etag
        found.append(item)
    return reply({"files": found})


@route("POST", "{web}.git/info/lfs/objects/batch")
def lfs_batch(call, repo):
    # The call does not say whether a pull request will follow.
    writer(call)
    found = []
    for item in call.json()["objects"]:
        item = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in call.hub.uploads:
            href = f"{call.hub.url}/presigned/{item['oid']}"
            item["actions"] = {"upload": {"href": href, "header": {}}}
        found.append(item)
    return reply({"transfer": "basic", "objects": found})


@route("PUT", "/presigned/{oid}")
def lfs_upload(call, oid):
    if sha256(call.body) != oid:
        raise Refusal(400, None, "The content does not have this sha256")
    call.hub.uploads[oid] = call.body
    return Answer()


@route("POST", "{api}/commit/{revision}")
def commit(call, repo, revision):
    pusher(call, repo, revision)
    parent = at(repo, revision)
    lines = [json.loads(line) for line in call.body.splitlines() if line]
    header = lines[0]["value"]
    if not parent.oid.startswith(header.get("parentCommit") or ""):
        raise Refusal(412, None, "A commit has happened since. Please refresh.")
    files = dict(parent.files)
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            content = base64.b64decode(value["content"])
            files[value["path"]] = Entry(content, lfs=False)
        elif line["key"] == "lfsFile":
            content = call.hub.uploads[value["oid"]]
            files[value["path"]] = Entry(content, lfs=True)
        else:
            del files[value["path"]]
    number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
    new = "create_pr" in call.query
    ref = f"refs/pr/{number}" if new else f"refs/heads/{revision}"
    if not new and ref not in repo.refs:
        raise Refusal(400, None, f"{revision} is no branch")
    text = header["summary"], header.get("description", "")
    oid = repo.commit(files, *text, ref=ref, parent=parent.oid)
    url = f"{call.hub.url}/{repo.id}"
    data = {"success": True, "commitOid": oid}
    data["commitUrl"] = f"{url}/commit/{oid}"
    if new:
        data["pullRequestUrl"] = f"{url}/discussions/{number}"
    return reply(data)
