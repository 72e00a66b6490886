"""Time and memory to load a tokenizer and to tokenize an hour of speech.

To run it:
> python benchmarks/tokenizer.py

Each row is a fresh process that loads the model and turns one hour of
MiniSpeech (a few minutes of it again and again) into tokens, on CPU. Memory is
the peak of the process less what it had when the model was loaded. Changed
tokens are counted against those of the whole hour at once in fp32. Needs
`pip install "speechbrain-vq[demo]"`.
"""

import json
import pathlib
import resource
import shutil
import subprocess
import sys
import tempfile
import time

import click
import soundfile
import torch
from report import save

from speechbrain_vq.presets import bundled
from speechbrain_vq.versions import versions

MINUTES, TIMES, RATE = 6, 10, 16000
# Name: chunk_seconds, precision; without the first, the hour as short files.
WAYS = {
    "`encode_file`, in chunks of 60 s (default)": (60.0, "fp32"),
    "`encode_file`, in chunks of 10 s": (10.0, "fp32"),
    "`encode_file`, all at once": (None, "fp32"),
    "`encode_file`, in chunks of 60 s, bf16": (60.0, "bf16"),
    "`tokenize_files`, short files in batches of 60 s": ("files", "fp32"),
}
WHOLE = "`encode_file`, all at once"


def make_hour(folder):
    """Writes an hour as one file, and as short ones; says how many these are,
    and how many seconds they have in all."""
    from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
        prepare_minispeech,
    )

    prepare_minispeech(folder / "speech", minutes=MINUTES)
    paths = sorted((folder / "speech").rglob("*.flac"))
    paths = paths or sorted((folder / "speech").rglob("*.wav"))
    spoken = [soundfile.read(path, dtype="float32")[0] for path in paths]
    (folder / "files").mkdir()
    with soundfile.SoundFile(folder / "hour.flac", "w", RATE, 1) as hour:
        for turn in range(TIMES):
            for path, samples in zip(paths, spoken, strict=True):
                hour.write(samples)
                shutil.copy(path, folder / "files" / f"{turn}-{path.name}")
        seconds = hour.frames / RATE
    return len(paths) * TIMES, seconds


def peak():
    """Peak resident memory of this process, MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder, model, way, threads):
    """Loads, tokenizes, and leaves figures and tokens in the folder."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    from speechbrain_vq.inference import VQTokenizer, tokenize_files

    imported = time.perf_counter()
    chunk, precision = WAYS[way]
    tokenizer = VQTokenizer.from_hparams(
        model, run_opts={"device": "cpu", "eval_precision": precision}
    )
    loaded, cpu, before = time.perf_counter(), time.process_time(), peak()
    if chunk == "files":
        files = sorted((folder / "files").iterdir())
        tokenize_files(files, tokenizer, folder / "tokens.jsonl")
    else:
        tokens = tokenizer.encode_file(folder / "hour.flac", chunk)
        torch.save(tokens, folder / f"{list(WAYS).index(way)}.pt")
    figures = {
        "import": imported - start,
        "load": loaded - imported,
        "loaded": before,
        "seconds": time.perf_counter() - loaded,
        "cpu": time.process_time() - cpu,
        "memory": peak() - before,
        "parameters": sum(p.numel() for p in tokenizer.parameters()),
        "codes": tokenizer.codebook_size,
        "rate": tokenizer.token_rate,
    }
    (folder / "figures.json").write_text(json.dumps(figures))


def changed(folder, way):
    """Share of the tokens that are not those of the whole hour, in words."""
    path = folder / f"{list(WAYS).index(way)}.pt"
    if not path.exists():
        return ""
    tokens = torch.load(path)
    whole = torch.load(folder / f"{list(WAYS).index(WHOLE)}.pt")
    number = int((tokens != whole).sum())
    return f"{number} of {len(whole)} ({100 * number / len(whole):.2g} %)"


@click.command()
@click.option("--model", help="A folder; default: the bundled `mini`.")
@click.option("--threads", default=2, show_default=True)
@click.option("--one", nargs=2, hidden=True)
def main(model, threads, one):
    """Measures, prints the table and writes it beside this file."""
    if one:
        measure(pathlib.Path(one[0]), model, one[1], threads)
        return
    given, model = model, model or bundled("mini")
    figures = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        number, seconds = make_hour(folder)
        for way in WAYS:
            command = [sys.executable, __file__, "--model", model]
            command += ["--threads", str(threads), "--one", name, way]
            subprocess.run(command, check=True)
            figures[way] = json.loads((folder / "figures.json").read_text())
            click.echo(f"{way}: {figures[way]}")
        rows = [
            f"| {way} | {f['seconds']:.1f} | {seconds / f['seconds']:.0f} | "
            f"{f['cpu']:.1f} | {f['memory']:.0f} | {changed(folder, way)} |"
            for way, f in figures.items()
        ]
    one = min(figures.values(), key=lambda f: f["load"])
    lines = [
        "# An hour of speech to tokens",
        "",
        "`python benchmarks/tokenizer.py"
        + (" --model MODEL`" if given else "`"),
        "",
        f"{seconds / 60:.1f} minutes of MiniSpeech at {RATE} Hz, as one FLAC "
        f"file and as {number} short ones; a model of "
        f"{one['parameters'] / 1e6:.2f} million parameters, {one['codes']} "
        f"codes at {one['rate']:g} a second; {threads} CPU threads. "
        "CPU s: of all threads, which other work on the machine changes less. MiB: peak "
        "of a fresh process over what it had with the model loaded. Changed: "
        "tokens that are not those of all at once in fp32.",
        "",
        f"{versions()}.",
        "",
        f"To load: {one['import']:.1f} s of imports, {one['load']:.2f} s for "
        f"the model, {one['loaded']:.0f} MiB (best of {len(WAYS)} processes).",
        "",
        "| way | s | times real time | CPU s | MiB | changed |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    click.echo(save(pathlib.Path(__file__).with_suffix(".md"), lines))


if __name__ == "__main__":
    main()
