"""The command line, in this process."""

from click.testing import CliRunner

from speechbrain_vq.cli import main


def cli(*arguments, code=0):
    """What the command answers to arguments; it must end with the code."""
    result = CliRunner().invoke(main, list(map(str, arguments)))
    assert code in (None, result.exit_code), result.output
    return result
