"""The command line ``speechbrain-vq``: one file per group of verbs."""

import click

from .common import Verbs
from .evaluation import evaluate
from .inference import convert, reconstruct, tokenize
from .publishing import export, push
from .report import report
from .training import demo, train


@click.group(cls=Verbs)
@click.version_option(package_name="speechbrain-vq")
def main() -> None:
    """Train, evaluate, publish and use vector-quantized bottlenecks."""


for command in (
    *(demo, train, export, push),
    *(tokenize, reconstruct, convert, evaluate, report),
):
    main.add_command(command)
