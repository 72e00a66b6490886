"""Measure time and memory of `speechbrain-vq evaluate` as the corpus grows.

To run it:
> python benchmarks/evaluate.py

Each row is a new process that evaluates a token file with default options:
phone information, ABX, segmentation, probes and bit rate, with confidence
intervals. The corpus is random: utterances of ten seconds (500 tokens) by 50
speakers. Each of the 40 phones has its own 12 units, so PNMI must be 1.
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
from report import save, versions_line

SECONDS, RATE, SPEAKERS, PHONES, UNITS = 10.0, 50, 50, 40, 12
SIZES = (10_000, 100_000, 1_000_000, 2_000_000)


def random_utterance(rng):
    """Draw phones with their times in seconds, and a token per frame."""
    phones, tokens, start = [], [], 0
    frames = round(SECONDS * RATE)
    while start < frames:
        end = min(start + rng.randint(3, 6), frames)
        phone = rng.randrange(PHONES)
        phones.append([start / RATE, end / RATE, f"p{phone}"])
        units = range(phone * UNITS, (phone + 1) * UNITS)
        tokens += rng.choices(units, k=end - start)
        start = end
    return phones, tokens


def make_corpus(folder, frames):
    """Write a manifest and a token file; return their number of frames."""
    rng, manifest, num_frames = random.Random(0), {}, 0
    with open(folder / "tokens.jsonl", "w", encoding="utf-8") as file:
        while num_frames < frames:
            phones, tokens = random_utterance(rng)
            name = f"u{len(manifest)}"
            manifest[name] = {
                "wav": f"{name}.wav",
                "length": SECONDS,
                "spk_id": f"s{len(manifest) % SPEAKERS}",
                "phones": phones,
            }
            line = {"id": name, "tokens": tokens, "token_rate": RATE}
            file.write(json.dumps(line) + "\n")
            num_frames += len(tokens)
    text = json.dumps(manifest)
    (folder / "manifest.json").write_text(text, encoding="utf-8")
    return num_frames


def measure(folder):
    """Evaluate the corpus in a folder; write time and memory of this process."""
    import resource

    from speechbrain_vq.cli import main as command_line

    start = time.perf_counter()
    arguments = ["evaluate", str(folder / "tokens.jsonl")]
    arguments += [f"--manifest={folder / 'manifest.json'}"]
    arguments += [f"--out={folder / 'report'}"]
    command_line(arguments, standalone_mode=False)
    usage = resource.getrusage(resource.RUSAGE_SELF)
    metrics = {
        "seconds": time.perf_counter() - start,
        "cpu": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss / 1024,
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))


def measure_in_process(frames, threads):
    """Measure one corpus size in a fresh process."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        num_frames = make_corpus(folder, frames)
        command = [sys.executable, __file__, "--threads", str(threads)]
        subprocess.run([*command, "--one", name], check=True)
        metrics = json.loads((folder / "metrics.json").read_text())
        report = json.loads((folder / "report/results.json").read_text())
    metrics["frames"] = num_frames
    metrics["pnmi"] = report["figures"]["phones"]["pnmi"]["value"]
    return metrics


@click.command()
@click.option(
    "--threads", default=2, show_default=True, help="Number of CPU threads."
)
@click.option("--one", hidden=True)
def main(threads, one):
    """Measure, print the table and write it next to this script."""
    if one:
        torch.set_num_threads(threads)
        measure(pathlib.Path(one))
        return
    rows = []
    for frames in SIZES:
        rows.append(measure_in_process(frames, threads))
        click.echo(rows[-1])
    first = rows[0]
    lines = [
        "# How `speechbrain-vq evaluate` scales",
        "",
        f"`python {' '.join(sys.argv)}`",
        "",
        f"A random token file: utterances of {SECONDS:g} s at {RATE} tokens "
        f"per second by {SPEAKERS} speakers, with {PHONES} phones of {UNITS} "
        f"units each. Default options; each row is a new process with {threads} "
        "threads. CPU s: all threads including imports, little affected by "
        "other load. MiB: peak memory of the process.",
        "",
        versions_line(),
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
