"""A Hugging Face Hub on loopback, for the real client to talk to.

Models, users and roles, and faults on demand: what the package's calls of the
client need. The store is in `storage`, what is answered in `repos`,
`reading` and `writing`.

How long the client waits on a fault (huggingface_hub 2.4.0, measured), so that
tests choose cheap ones, or use the fixture `no_waiting`:

- Not at all: any 4xx but 408 and 429. Any fault on whoami, repos/create,
  validate-yaml, commit, tag, branch, refs, settings, revision (repo info); and
  on a file's HEAD if the file is in the cache. A reset download. Of a server
  that is gone: whoami, create_repo, repo info, snapshot_download.
- 1, 2, 4, 8, 8 s, then it gives up: 408, 429, 5xx, a cut connection or a server
  that is gone, on preupload, LFS batch, LFS PUT, tree, and on a file's HEAD if
  the file is not in the cache; 429 on a file's GET. With Xet, commit as well.
  `Retry-After: n` makes each of them n + 1 s. One failure costs 1 s.
- 1 s, five times: a file's GET cut in the middle. Bytes that arrived count
  only in whole pieces of `huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE`,
  10 MiB: a smaller file starts again from zero.
"""

import shutil
import socket
import threading
from dataclasses import dataclass
from pathlib import Path

from tests.hub.loopback import calls
from tests.hub.loopback.storage import GITATTRIBUTES, Blobs, Repo
from tests.hub.loopback.transport import Server


@dataclass
class Fault:
    """What happens to the next requests that match."""

    method: str | None
    path: str
    times: int
    answer: calls.Answer | None = None
    cut: int | None = None
    cut_upload: int | None = None
    reset: bool = False


class LoopbackHub:
    """A Hub on 127.0.0.1 that keeps files in a folder; `users` by token."""

    def __init__(self, folder, users):
        self.folder = Path(folder)
        self.users = dict(users)
        self.lock = threading.RLock()
        self.server = None
        # The port is held from now on, also while the server is stopped.
        self._socket = _bound(0)
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.reset()

    def reset(self):
        """Forget repos, log and faults; the server goes on running."""
        with self.lock:
            self.repos = {}
            self.log = []
            self.faults = []
            # What went wrong here, and not in what was asked.
            self.errors = []
            # Whether uploads by Xet work; without, they meet a 404.
            self.xet = False
            shutil.rmtree(self.folder, ignore_errors=True)
            self.blobs = Blobs(self.folder / "blobs")
            self.xet_folder = self.folder / "xet"

    # ---- running

    def start(self):
        """Serve, at the same port as before if it was stopped."""
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

    def close(self):
        """Stop, and free the port."""
        self.stop()
        self._socket.close()

    def __enter__(self):
        return self.start()

    def __exit__(self, *_):
        self.close()

    # ---- what tests look at and prepare

    def repo(self, repo_id):
        """The `Repo`; KeyError if there is none."""
        return self.repos[repo_id]

    def put(self, repo_id, files=(), **options):
        """Write files, unchecked, into a repo, made if it is missing with
        `private` and `gated` of the options; return the sha of the commit."""
        with self.lock:
            if repo_id not in self.repos:
                repo = Repo(repo_id, self.blobs, **options)
                repo.commit({}, "initial commit")
                repo.write({".gitattributes": GITATTRIBUTES})
                self.repos[repo_id] = repo
            repo = self.repo(repo_id)
            return repo.write(dict(files)) if files else repo.head()

    def calls(self, method=None, path=""):
        """The logged (method, path) whose path has `path` in it."""
        return [
            call
            for call in self.log
            if method in (None, call[0]) and path in call[1]
        ]

    # ---- faults

    def fail(self, status, method=None, path="", times=1, headers=None):
        """Answer the next requests of a method (None: any), whose path has
        `path` in it, with an error."""
        answer = calls.error(status, headers=headers)
        self.faults.append(Fault(method, path, times, answer))

    def cut(self, path="", after=0, times=1, method="GET", reset=False):
        """Close the connection after `after` bytes of the answer's body, or
        reset it, after which the client does not retry a download."""
        self.faults.append(Fault(method, path, times, cut=after, reset=reset))

    def cut_upload(self, path="", after=0, times=1, method=None):
        """Close the connection after `after` bytes of the request's body."""
        self.faults.append(Fault(method, path, times, cut_upload=after))

    def fault(self, method, path):
        """The fault that this request meets, or None; it counts as used."""
        with self.lock:
            for fault in self.faults:
                if fault.method in (None, method) and fault.path in path:
                    fault.times -= 1
                    if not fault.times:
                        self.faults.remove(fault)
                    return fault
        return None


def _bound(port):
    """A socket that holds a port; it refuses until it listens."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind(("127.0.0.1", port))
    return bound
