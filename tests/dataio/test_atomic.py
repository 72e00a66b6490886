"""A file is written whole or not at all."""

import subprocess
import sys

import pytest

from speechbrain_vq.dataio.atomic import (
    atomic_folder,
    atomic_write,
    exclusive,
    replace_folder,
)


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
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_where_nothing_was_written(tmp_path):
    with pytest.raises(OSError), atomic_write(tmp_path / "no" / "a.txt") as new:
        new.write_text("x")
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_the_place_of_another(tmp_path):
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert (tmp_path / "old/file").read_text() == "new"
    replace_folder(tmp_path / "old", tmp_path / "other")
    assert (tmp_path / "other/file").read_text() == "new"
    assert not (tmp_path / "old").exists()


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


LOCK = """
import sys
from speechbrain_vq.dataio.atomic import exclusive
with exclusive(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("killed", [False, True])
def test_a_second_writer_is_refused_until_the_first_has_ended(tmp_path, killed):
    path = tmp_path / "a.txt"
    with subprocess.Popen(
        [sys.executable, "-c", LOCK, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as first:
        assert first.stdout.readline() == b"locked\n"
        with pytest.raises(BlockingIOError, match="a.txt is being written"):
            with exclusive(path):
                pass
        if killed:
            first.kill()
        first.stdin.close()
        first.wait()
    with exclusive(path):
        with pytest.raises(BlockingIOError), exclusive(path):
            pass
    assert not list(tmp_path.iterdir())
