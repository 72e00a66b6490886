"""A file is written whole or not at all."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys

import pytest

from speechbrain_vq.dataio import atomic
from speechbrain_vq.dataio.atomic import atomic_folder, atomic_write, exclusive


def test_the_new_takes_the_place_of_the_old_only_when_whole(tmp_path):
    path = tmp_path / "a.b.txt"
    path.write_text("old")
    with pytest.raises(ValueError), atomic_write(path) as partial:
        partial.write_text("ne")
        raise ValueError
    assert path.read_text() == "old"
    with atomic_write(path) as partial:
        assert partial.suffix == ".txt"
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    with pytest.raises(OSError), atomic_write(tmp_path / "no/a.txt") as partial:
        partial.write_text("x")
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "sub/model"
    with atomic_folder(path) as partial:
        (partial / "old").touch()
    with pytest.raises(ValueError), atomic_folder(path) as partial:
        (partial / "new").touch()
        raise ValueError
    assert [p.name for p in path.iterdir()] == ["old"]
    with atomic_folder(path) as partial:
        (partial / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(path.parent.iterdir()) == [path]


def replace_and_die(path, step):
    """Write a folder in another process, which is killed at a step of those
    that it takes in the module; return whether it was."""
    child = os.fork()
    if child == 0:
        steps = itertools.count(1)

        def follow(frame, event, argument):
            if frame.f_code.co_filename != atomic.__file__:
                return None
            if event in ("line", "return") and next(steps) == step:
                os.kill(os.getpid(), signal.SIGKILL)
            return follow

        sys.settrace(follow)
        with atomic_folder(path) as partial:
            (partial / "new").touch()
        os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_kill_anywhere_leaves_the_old_or_the_new(tmp_path):
    path = tmp_path / "model"
    with atomic_folder(path) as partial:
        (partial / "old").touch()
    names, step = [["old"]], 1
    while replace_and_die(path, step):
        names.append([p.name for p in path.iterdir()])
        step += 1
    # It changes once.
    assert [name for name, _ in itertools.groupby(names)] == [["old"], ["new"]]
    assert step > 20


LOCK = """
import sys
from speechbrain_vq.dataio.atomic import exclusive
with exclusive(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextlib.contextmanager
def locked(path):
    """A path that another process holds, which is given."""
    command = [sys.executable, "-c", LOCK, path]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == b"locked\n"
        yield first


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path, killed):
    path = tmp_path / "a.txt"
    with locked(path) as first:
        refused = pytest.raises(BlockingIOError, match="a.txt is being written")
        with refused, exclusive(path):
            pass
        if killed:
            first.kill()
        first.stdin.close()
        first.wait()
    with exclusive(path), pytest.raises(BlockingIOError), exclusive(path):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_place_without_room_for_files_is_held_by_nobody():
    refused = pytest.raises(OSError, match="cannot be written to")
    with refused as raised, exclusive("/proc/run"):
        pass
    assert not isinstance(raised.value, BlockingIOError)
