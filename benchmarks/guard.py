"""What a stranger's yaml does to a reader, with and without the guard.

To run it:
> python benchmarks/guard.py
or, to see the rows of some attacks without writing anything,
> python benchmarks/guard.py --only power --only "deep nesting"

Each attack is loaded by HyperPyYAML itself and by `load_hparams_safely`, in a
process of its own that may take so much memory and time and no more. Linux.
"""

import pathlib
import re
import sys

import click
from report import save

from speechbrain_vq.versions import versions

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.hub.attacks import (  # noqa: E402
    ATTACKS,
    MEMORY,
    SECONDS,
    play_all,
)

LIBRARIES = ("speechbrain", "HyperPyYAML", "ruamel.yaml", "PyYAML")


def page(stock: dict, guard: dict) -> list[str]:
    """The lines of the table of what both loaders did."""
    refused = sum(x["did"].startswith("refuses") for x in guard.values())
    most = max(x["megabytes"] or 0 for x in guard.values())
    rows = [row(name, stock, guard) for name in stock]
    return [
        "# Hostile yaml files, with and without the guard",
        "",
        "`python benchmarks/guard.py`",
        "",
        "What `load_hyperpyyaml` and `load_hparams_safely` do with each yaml of "
        "`tests/hub/attacks.py`, in a process that may take "
        f"{MEMORY // 2**30} GiB and {SECONDS} s of processor time. "
        f"The guard refuses {refused} of {len(ATTACKS)}, and takes "
        f"{most:.0f} MiB at most while it does. A yaml that stock merely "
        '"raises" at, or whose class it only hands out, is here because a '
        "guard that reads it otherwise would not.",
        "",
        f"{versions(*LIBRARIES)}.",
        "",
        "| attack | stock | guard |",
        "|---|---|---|",
        *rows,
    ]


def row(name: str, stock: dict, guard: dict) -> str:
    """The line of one attack."""
    did, does = stock[name]["did"], guard[name]["did"]
    return f"| {name} | {_cell(did)} | {_cell(_reason(does))} |"


def _reason(did):
    found = did.partition(" is refused: ")
    return f"refuses: {found[2].partition('. If you')[0]}" if found[1] else did


def _cell(text):
    text = re.sub(r" at 0x\w+|/tmp/\w+/", "", " ".join(text.split()))
    text = text.replace("|", "\\|")
    return text if len(text) < 80 else text[:76] + "..."


@click.command()
@click.option("--out", default=str(ROOT / "benchmarks/guard.md"))
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([attack.name for attack in ATTACKS]),
    help="Show the rows of these attacks only, and write nothing.",
)
def main(out: str, only: tuple[str, ...]) -> None:
    """Writes the table."""
    chosen = [a for a in ATTACKS if a.name in only or not only]
    stock, guard = play_all("stock", chosen), play_all("guard", chosen)
    if only:
        click.echo("\n".join(row(name, stock, guard) for name in stock))
        return
    click.echo(save(pathlib.Path(out), page(stock, guard)))


if __name__ == "__main__":
    main()
