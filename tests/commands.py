"""The command line, in this process, and a small model for it."""

import pathlib

from click.testing import CliRunner

from speechbrain_vq.cli import main

# Folder of a model of synthetic English; `make mini` trains it again.
MINI = str(pathlib.Path(__file__).parent / "mini")


def cli(*arguments, code=0):
    """What the command answers to arguments; it must end with the code."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert code in (None, result.exit_code), result.output
    return result
