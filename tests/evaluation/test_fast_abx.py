"""What is handed to fastabx, where it is installed.

Authors
 * speechbrain_vq authors 2026
"""

import math
import sys

import pytest
import torch

from speechbrain_vq.evaluation.abx import abx, identity
from speechbrain_vq.evaluation.fast_abx import fastabx_error

from .made_up import made_up, units_of


def test_where_it_is_not_installed_that_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastabx", None)
    with pytest.raises(ImportError, match=r"Python 3.12 .*\[eval\]"):
        fastabx_error(*made_up())


def test_codes_of_several_codebooks_are_compared_one_by_one():
    pytest.importorskip("fastabx")
    features, items = made_up(3)
    books = [torch.cat([one, one // 3], 1) for one in units_of(features)]
    for speaker in ("within", "across"):
        condition = speaker, "any"
        options = {"max_x_across": None}
        theirs = fastabx_error(books, items, *condition, "identical", **options)
        ours = abx(books, items, *condition, identity, **options)
        assert float(ours[0]) == pytest.approx(theirs, abs=1e-4)


def test_where_nothing_can_be_compared_there_is_no_figure():
    pytest.importorskip("fastabx")
    features, items = made_up()
    alone = [
        one
        for one in zip(features, items, strict=True)
        if one[1].speaker == "s0"
    ]
    features, items = zip(*alone, strict=True)
    assert math.isnan(fastabx_error(features, items, "across", "any"))
    assert fastabx_error(features, items, "within", "any") < 0.5
