"""What a folder holds is said shortly, and in one order.

Authors
 * speechbrain_vq authors 2026
"""

import pytest


@pytest.mark.parametrize(
    "names, said",
    [("", "nothing"), ("ba", "a, b"), ("edcba", "a, b, c, d, e")],
)
def test_all_of_it_where_it_is_little(names, said, tmp_path):
    for name in names:
        (tmp_path / name).touch()
    assert folder_contents(tmp_path) == said


def test_there_is_more(tmp_path):
    for name in "fedcba":
        (tmp_path / name).touch()
    assert folder_contents(tmp_path) == "a, b, c, d, e, ..."
    assert folder_contents(tmp_path, "[b-e]", most=3) == "b, c, d, ..."
