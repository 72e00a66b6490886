"""A file is written whole or not at all.

Authors
 * speechbrain_vq authors 2026
"""

import pytest

from speechbrain_vq.dataio.atomic import atomic_write


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
