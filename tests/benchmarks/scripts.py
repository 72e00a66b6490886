"""The scripts of benchmarks/, for their tests."""

import importlib
import pathlib

import pytest

FOLDER = pathlib.Path(__file__).parents[2] / "benchmarks"


def import_script(name):
    """Import a script by its name, with its neighbours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        return importlib.import_module(name)
