"""What every test starts from."""

import importlib
import logging
import os
import pathlib
import shutil
import sys
import tempfile

import pytest
import torch

from tests.hub.loopback import LoopbackHub, User

# Sums depend on the number of threads, and some tests compare bits. Fixtures of
# a module run before those of its first test.
torch.set_num_threads(1)

# huggingface_hub reads these once, when it is imported; so here, before any
# test or doctest imports it. The port is held from now on, and refuses until a
# test asks for `hub`: no test reaches the real Hub by mistake, and no token or
# setting of whoever runs the tests counts.
_FOLDER = tempfile.TemporaryDirectory(prefix="hub_", ignore_cleanup_errors=True)
_HOME = pathlib.Path(_FOLDER.name, "home")
_HUB = LoopbackHub(
    {
        "hf_alice": User("alice", orgs=("lab",)),
        "hf_alice_read": User("alice", orgs=("lab",), role="read"),
        "hf_bob": User("bob"),
    }
)
for _name in list(os.environ):
    if _name.startswith(("HF_", "HUGGING", "TRANSFORMERS_")):
        del os.environ[_name]
os.environ.update(
    HF_ENDPOINT=_HUB.url,
    HF_HOME=str(_HOME),
    HF_HUB_DISABLE_TELEMETRY="1",
    HF_HUB_DISABLE_UPDATE_CHECK="1",
    HF_HUB_DISABLE_XET="1",
    NO_PROXY="127.0.0.1",
    no_proxy="127.0.0.1",
)

# Hypothesis asks each module for its file, and those that SpeechBrain registers
# under former names then import packages that are not installed.
importlib.import_module("speechbrain")
for _name, _module in list(sys.modules.items()):
    if type(_module).__name__ == "DeprecatedModuleRedirect":
        del sys.modules[_name]


@pytest.fixture(autouse=True)
def torch_state():
    """Start each test from the same state, whatever ran before it."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")


@pytest.fixture(autouse=True)
def loggers():
    """SpeechBrain's experiments set up logging for all of the process, those in
    fixtures of a module before its first test."""
    root = logging.getLogger()
    root.setLevel(logging.WARNING)
    handlers = list(root.handlers)
    yield
    root.handlers = handlers


@pytest.fixture(scope="session")
def hub_server():
    """The loopback Hub, started once for the whole run."""
    yield _HUB.start()
    _HUB.stop()


@pytest.fixture
def hub(hub_server):
    """The loopback Hub, empty, and the client's cache and login with it.

    Tokens: "hf_alice" writes to alice/ and lab/, "hf_alice_read" only reads
    there, "hf_bob" writes to bob/. Nobody is logged in: pass `token=`, or set
    HF_TOKEN by monkeypatch."""
    shutil.rmtree(_HOME, ignore_errors=True)
    hub_server.start()
    hub_server.reset()
    _forget_listings()
    yield hub_server
    assert not hub_server.errors, hub_server.errors[0]


@pytest.fixture
def no_waiting(monkeypatch):
    """The client tries again at once; how long it waits is not tested."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)


def _forget_listings():
    """Empty what the client remembers of repos as long as it runs."""
    client = sys.modules.get("huggingface_hub")
    if client is not None:
        client.HfFileSystem.clear_instance_cache()
