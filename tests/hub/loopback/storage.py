"""What the loopback Hub keeps: users, repos, commits, refs and blobs.

Commits and refs live in memory, the content of files in a folder, by sha256.
"""

import hashlib
import pathlib
import re
import uuid
from dataclasses import dataclass, field
from datetime import datetime, timezone

MAIN = "refs/heads/main"
TEN_MEGABYTES = 10 * 1024**2
BINARY = re.compile(
    r"\.(safetensors|ckpt|pt|pth|bin|npy|npz|parquet|arrow|wav|flac|mp3|ogg"
    r"|zip|gz|png|jpg)$"
)
GITATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


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
    """A file of a commit; its content is in `Blobs`, under `sha256`."""

    sha256: str
    size: int
    lfs: bool
    oid: str
    pointer_size: int = 0

    @property
    def etag(self):
        return self.sha256 if self.lfs else self.oid


@dataclass(frozen=True)
class Commit:
    """A commit; `files` maps each path to its `Entry`."""

    oid: str
    parent: str | None
    files: dict
    title: str
    message: str
    author: str
    date: str


def now():
    """The time, as the Hub writes it."""
    return datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def is_lfs(path, size, sample):
    """Whether the Hub stores such a file by LFS."""
    return size > 0 and bool(
        BINARY.search(path.lower()) or size > TEN_MEGABYTES or b"\0" in sample
    )


def blob_oid(content):
    """The git object id of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Blobs:
    """Contents of files, in a folder, by sha256."""

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)

    def __contains__(self, sha256):
        return (self.folder / sha256).exists()

    def add(self, content):
        sha256 = hashlib.sha256(content).hexdigest()
        if sha256 not in self:
            (self.folder / sha256).write_bytes(content)
        return sha256

    def read(self, sha256):
        return (self.folder / sha256).read_bytes()

    def entry(self, sha256, lfs):
        """The `Entry` of a stored content.

        The git object of an LFS file is its pointer, not its content.
        """
        content = self.read(sha256)
        if not lfs:
            return Entry(sha256, len(content), False, blob_oid(content))
        pointer = (
            "version https://git-lfs.github.com/spec/v1\n"
            f"oid sha256:{sha256}\nsize {len(content)}\n"
        ).encode()
        return Entry(
            sha256, len(content), True, blob_oid(pointer), len(pointer)
        )


@dataclass
class Repo:
    """A model; tests may change `private`, `gated`, `granted`."""

    id: str
    blobs: Blobs
    private: bool = False
    gated: bool = False
    granted: set = field(default_factory=set)
    refs: dict = field(default_factory=dict)
    history: dict = field(default_factory=dict)

    @property
    def namespace(self):
        return self.id.split("/")[0]

    def resolve(self, revision="main"):
        """The commit a revision stands for, or None."""
        for name in (
            revision,
            f"refs/heads/{revision}",
            f"refs/tags/{revision}",
        ):
            if name in self.refs:
                return self.history[self.refs[name]]
        return self.history.get(revision)

    def ref(self, revision):
        """The full name of the ref that a commit to `revision` moves."""
        name = revision if revision in self.refs else f"refs/heads/{revision}"
        return name if name in self.refs else None

    def head(self, revision="main"):
        """The sha that a revision stands for."""
        return self.resolve(revision).oid

    def files(self, revision="main"):
        """The contents of all files of a commit, by path."""
        files = self.resolve(revision).files
        return {
            path: self.blobs.read(entry.sha256) for path, entry in files.items()
        }

    def commits(self, revision="main"):
        """The commits of a revision, newest first."""
        commit, found = self.resolve(revision), []
        while commit is not None:
            found.append(commit)
            commit = self.history.get(commit.parent)
        return found

    def write(self, files):
        """Commit the content of each path, None deletes it; return the sha."""
        new = dict(self.resolve().files)
        for path, content in files.items():
            if content is None:
                del new[path]
                continue
            if isinstance(content, str):
                content = content.encode()
            lfs = is_lfs(path, len(content), content[:512])
            new[path] = self.blobs.entry(self.blobs.add(content), lfs)
        return self.commit(new, "Write")

    def commit(
        self, files, title, message="", ref=MAIN, parent=None, author="server"
    ):
        """Append a commit to `ref` (or to `parent`, for a new ref)."""
        parent = parent or self.refs.get(ref)
        # Random: a sha never comes back, whatever a cache remembers of it.
        oid = hashlib.sha1(uuid.uuid4().bytes).hexdigest()
        self.history[oid] = Commit(
            oid, parent, files, title, message, author, now()
        )
        self.refs[ref] = oid
        return oid

    def new_pull_request(self):
        """The number of the next pull request, counted from 1."""
        return 1 + sum(name.startswith("refs/pr/") for name in self.refs)
