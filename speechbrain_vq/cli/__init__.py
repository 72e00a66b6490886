"""Command line ``speechbrain-vq``, with one file per group of verbs."""

import click

from .common import Verbs
from .evaluation import evaluate, report
from .inference import convert, reconstruct, tokenize
from .listing import config, list_all
from .publishing import export, push
from .training import demo, train


@click.group(
    cls=Verbs,
    context_settings={
        "help_option_names": ["-h", "--help"],
        # Recipe options are spelled with underscores.
        "token_normalize_func": lambda name: name.replace("_", "-"),
    },
)
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(package_name="speechbrain-vq")
@click.pass_context
def main(context, debug) -> None:
    """Train, evaluate, publish and use vector-quantized bottlenecks.

    Start with `speechbrain-vq train FOLDER_OF_RECORDINGS`.
    """
    context.meta["debug"] = debug or context.meta.get("debug", False)


for command in (
    *(demo, train, list_all, config, export, push),
    *(tokenize, reconstruct, convert, evaluate, report),
):
    main.add_command(command)
