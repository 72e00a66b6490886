"""Load hostile model folders with HyperPyYAML and with this package.

To run it:
> python benchmarks/loader.py
or, to show the rows of some attacks without writing the page,
> python benchmarks/loader.py --only power --only "deep nesting"

HyperPyYAML itself and `load_pretrained` load each attack in a separate process
with limits on memory and time. Requires Linux.
"""

import pathlib
import re
import sys

import click
from report import save, versions_line

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.hub.attacks import (  # noqa: E402
    ATTACKS,
    MEMORY,
    OURS,
    SECONDS,
    play_all,
)

LIBRARIES = ("speechbrain", "HyperPyYAML", "ruamel.yaml", "PyYAML")


def page(stock: dict, ours: dict) -> list[str]:
    """Build the page about the effect of each attack on both loaders."""
    refused = sum(x["did"].startswith("refuses") for x in ours.values())
    most_memory = max(x["megabytes"] or 0 for x in ours.values())
    longest = max(x["seconds"] or 0 for x in ours.values())
    rows = [row(name, stock, ours) for name in stock]
    return [
        "# Hostile model folders",
        "",
        "`python benchmarks/loader.py`",
        "",
        "Effect of each yaml in `tests/hub/attacks.py` on `load_hyperpyyaml` "
        f"and on `load_pretrained`, in a process with {MEMORY // 2**30} GiB and "
        f"{SECONDS} s of CPU time. The table has the attacks on HyperPyYAML; "
        f"with {len(OURS)} aimed at `load_pretrained` there are {len(ours)}. "
        f"`load_pretrained` rejects {refused} of them, and takes at most "
        f"{most_memory:.0f} MiB and {longest:.1f} s.",
        "",
        versions_line(*LIBRARIES),
        "",
        "| attack | HyperPyYAML | load_pretrained |",
        "|---|---|---|",
        *rows,
    ]


def row(name: str, stock: dict, ours: dict) -> str:
    """Format the row of one attack."""
    effects = stock[name]["did"], _reason(ours[name]["did"])
    return f"| {name} | {_cell(effects[0])} | {_cell(effects[1])} |"


def _reason(effect):
    """Shorten the error message of a rejection."""
    reason = effect.partition(" is refused: ")[2].partition(". Allow a")[0]
    return f"refuses: {reason}" if reason else effect


def _cell(text):
    """Format a text as a short table cell."""
    text = re.sub(r" at 0x\w+|/tmp/\w+/", "", " ".join(text.split()))
    text = text.replace("|", "\\|")
    return text if len(text) < 80 else text[:76] + "..."


@click.command()
@click.option(
    "--out",
    default=str(ROOT / "benchmarks/loader.md"),
    help="Page to write.",
)
@click.option(
    "--only",
    multiple=True,
    type=click.Choice([attack.name for attack in ATTACKS]),
    help="Attack whose row to show without writing the page; repeatable.",
)
def main(out: str, only: tuple[str, ...]) -> None:
    """Write the table."""
    chosen = [a for a in ATTACKS if a.name in only or not only]
    stock = play_all("stock", chosen)
    ours = play_all("data", chosen + ([] if only else OURS))
    if only:
        click.echo("\n".join(row(name, stock, ours) for name in stock))
        return
    click.echo(save(pathlib.Path(out), page(stock, ours)))


if __name__ == "__main__":
    main()
