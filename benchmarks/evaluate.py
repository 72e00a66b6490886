"""Time and memory of `speechbrain-vq evaluate` by the size of the corpus.

To run it:
> python benchmarks/evaluate.py

Each row is a fresh process that scores a token file with default options:
phone information, ABX, segmentation, probes, cost, with their intervals. The
corpus is drawn at random: utterances of ten seconds, 500 tokens each, by 50
speakers, of 40 phones that each have 12 units of their own, so that PNMI must
be 1.
"""

import json
import pathlib
import random
import subprocess
import sys
import tempfile
import time

import click
import torch
from report import save

from speechbrain_vq.versions import versions

SECONDS, RATE, SPEAKERS, PHONES, UNITS = 10.0, 50, 50, 40, 12
SIZES = (10_000, 100_000, 1_000_000, 2_000_000)


def utterance(draw):
    """Phones with their times, and a token for each frame, by chance."""
    phones, tokens, start = [], [], 0
    number = round(SECONDS * RATE)
    while start < number:
        end = min(start + draw.randint(3, 6), number)
        phone = draw.randrange(PHONES)
        phones.append([start / RATE, end / RATE, f"p{phone}"])
        units = range(phone * UNITS, (phone + 1) * UNITS)
        tokens += draw.choices(units, k=end - start)
        start = end
    return phones, tokens


def make_corpus(folder, frames):
    """Writes a manifest and a token file; says how many frames they have."""
    draw, manifest, written = random.Random(0), {}, 0
    with open(folder / "tokens.jsonl", "w", encoding="utf-8") as file:
        while written < frames:
            phones, tokens = utterance(draw)
            name = f"u{len(manifest)}"
            manifest[name] = {
                "wav": f"{name}.wav",
                "length": SECONDS,
                "spk_id": f"s{len(manifest) % SPEAKERS}",
                "phones": phones,
            }
            line = {"id": name, "tokens": tokens, "token_rate": RATE}
            file.write(json.dumps(line) + "\n")
            written += len(tokens)
    text = json.dumps(manifest)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return written


def measure(folder):
    """Scores the corpus of a folder; what this process took (Linux)."""
    import resource

    from speechbrain_vq.cli import main as program

    start = time.perf_counter()
    arguments = ["evaluate", str(folder / "tokens.jsonl")]
    arguments += [f"--manifest={folder / 'manifest.json'}"]
    arguments += [f"--out={folder / 'report'}"]
    program(arguments, standalone_mode=False)
    used = resource.getrusage(resource.RUSAGE_SELF)
    figures = {
        "seconds": time.perf_counter() - start,
        "cpu": used.ru_utime + used.ru_stime,
        "memory": used.ru_maxrss / 1024,
    }
    (folder / "figures.json").write_text(json.dumps(figures))


def row(frames, threads):
    """A row of the table."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        written = make_corpus(folder, frames)
        command = [sys.executable, __file__, "--threads", str(threads)]
        subprocess.run([*command, "--one", name], check=True)
        found = json.loads((folder / "figures.json").read_text())
        report = json.loads((folder / "report/results.json").read_text())
    found["frames"] = written
    found["pnmi"] = report["figures"]["phones"]["pnmi"]["value"]
    return found


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--one", hidden=True)
def main(threads, one):
    """Measures, prints the table and writes it beside this file."""
    if one:
        torch.set_num_threads(threads)
        measure(pathlib.Path(one))
        return
    rows = []
    for frames in SIZES:
        rows.append(row(frames, threads))
        click.echo(rows[-1])
    first = rows[0]
    lines = [
        "# The scale of `speechbrain-vq evaluate`",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        f"A token file of utterances of {SECONDS:g} s at {RATE} tokens a "
        f"second by {SPEAKERS} speakers, with {PHONES} phones of {UNITS} units "
        "each, drawn by chance; default options; each row is a fresh process, "
        f"{threads} threads. CPU s: of all threads, imports included, which "
        "other work on the machine changes less. MiB: peak of the process.",
        "",
        f"{versions()}.",
        "",
        "| frames | hours | s | CPU s | MiB | frames, times the first row | "
        "CPU s, times | MiB, times | PNMI |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {f['frames']:,} | {f['frames'] / RATE / 3600:.2f} | "
            f"{f['seconds']:.1f} | {f['cpu']:.1f} | {f['memory']:.0f} | "
            f"{f['frames'] / first['frames']:.0f} | "
            f"{f['cpu'] / first['cpu']:.1f} | "
            f"{f['memory'] / first['memory']:.1f} | {f['pnmi']:.3f} |"
            for f in rows
        ),
    ]
    click.echo(save(pathlib.Path(__file__).with_suffix(".md"), lines))


if __name__ == "__main__":
    main()
