"""Measure time and memory to load a tokenizer and tokenize an hour of speech.

To run it:
> python benchmarks/tokenizer.py

Each row is a new process that loads the model and tokenizes an hour of MiniSpeech
(a few minutes, repeated) on the CPU. Memory is the growth of peak memory after
loading the model. Changed tokens differ from those of one pass over the whole
hour in fp32. Requires `pip install "speechbrain-vq[demo]"`.
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
from report import save, versions_line

from speechbrain_vq.presets import bundled

MINUTES, REPETITIONS, RATE = 6, 10, 16000
# Seconds of a chunk, or "files" for short files, and precision, by method.
METHODS = {
    "`encode_file`, in chunks of 60 s (default)": (60.0, "fp32"),
    "`encode_file`, in chunks of 10 s": (10.0, "fp32"),
    "`encode_file`, all at once": (None, "fp32"),
    "`encode_file`, in chunks of 60 s, bf16": (60.0, "bf16"),
    "`tokenize_files`, short files in batches of 60 s": ("files", "fp32"),
}
WHOLE = "`encode_file`, all at once"


def make_hour(folder):
    """Write an hour as one file and as short ones; return the number of short
    files and the total duration in seconds."""
    from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
        prepare_minispeech,
    )

    prepare_minispeech(folder / "speech", minutes=MINUTES)
    paths = sorted((folder / "speech").rglob("*.flac"))
    paths = paths or sorted((folder / "speech").rglob("*.wav"))
    wavs = [soundfile.read(path, dtype="float32")[0] for path in paths]
    (folder / "files").mkdir()
    with soundfile.SoundFile(folder / "hour.flac", "w", RATE, 1) as hour:
        for repetition in range(REPETITIONS):
            for path, wav in zip(paths, wavs, strict=True):
                hour.write(wav)
                name = f"{repetition}-{path.name}"
                shutil.copy(path, folder / "files" / name)
        seconds = hour.frames / RATE
    return len(paths) * REPETITIONS, seconds


def peak():
    """Read this process's peak resident memory in MiB (Linux)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def tokens_path(folder, method):
    """Return the file of a method's tokens."""
    return folder / f"{list(METHODS).index(method)}.pt"


def measure(folder, model, method, threads):
    """Load and tokenize; write metrics and tokens to the folder."""
    torch.set_num_threads(threads)
    start = time.perf_counter()
    from speechbrain_vq.inference import VQTokenizer, tokenize_files

    imported = time.perf_counter()
    chunk, precision = METHODS[method]
    tokenizer = VQTokenizer.from_hparams(
        model, run_opts={"device": "cpu", "eval_precision": precision}
    )
    loaded, cpu, before = time.perf_counter(), time.process_time(), peak()
    if chunk == "files":
        files = sorted((folder / "files").iterdir())
        tokenize_files(files, tokenizer, folder / "tokens.jsonl")
    else:
        tokens = tokenizer.encode_file(folder / "hour.flac", chunk)
        torch.save(tokens, tokens_path(folder, method))
    metrics = {
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
    (folder / "metrics.json").write_text(json.dumps(metrics))


def changed_tokens(folder, method):
    """Format the fraction of tokens that differ from the whole hour's."""
    path = tokens_path(folder, method)
    if not path.exists():
        return ""
    tokens, whole = torch.load(path), torch.load(tokens_path(folder, WHOLE))
    changed = int((tokens != whole).sum())
    return f"{changed} of {len(whole)} ({100 * changed / len(whole):.2g} %)"


@click.command()
@click.option("--model", help="Model folder; default: the bundled `units`.")
@click.option(
    "--threads", default=2, show_default=True, help="Number of CPU threads."
)
@click.option("--one", nargs=2, hidden=True)
def main(model, threads, one):
    """Measure, print the table and write it next to this script."""
    if one:
        measure(pathlib.Path(one[0]), model, one[1], threads)
        return
    option = " --model MODEL" if model else ""
    model = model or bundled("units")
    metrics = {}
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        num_files, seconds = make_hour(folder)
        for method in METHODS:
            command = [sys.executable, __file__, "--model", model]
            command += ["--threads", str(threads), "--one", name, method]
            subprocess.run(command, check=True)
            metrics[method] = json.loads((folder / "metrics.json").read_text())
            click.echo(f"{method}: {metrics[method]}")
        rows = [
            f"| {method} | {m['seconds']:.1f} | "
            f"{seconds / m['seconds']:.0f} | {m['cpu']:.1f} | "
            f"{m['memory']:.0f} | {changed_tokens(folder, method)} |"
            for method, m in metrics.items()
        ]
    fastest = min(metrics.values(), key=lambda m: m["load"])
    lines = [
        "# An hour of speech to tokens",
        "",
        f"`python benchmarks/tokenizer.py{option}`",
        "",
        f"{seconds / 60:.1f} minutes of MiniSpeech at {RATE} Hz, as one FLAC "
        f"file and as {num_files} short ones; a model of "
        f"{fastest['parameters'] / 1e6:.2f} million parameters, "
        f"{fastest['codes']} codes at {fastest['rate']:g} per second; {threads} "
        "CPU threads. CPU s: all threads, little affected by other load. MiB: "
        "growth of a new process's peak memory after loading the model. "
        "Changed: tokens that differ from one pass in fp32.",
        "",
        versions_line(),
        "",
        f"Loading: {fastest['import']:.1f} s of imports, "
        f"{fastest['load']:.2f} s for the model, {fastest['loaded']:.0f} MiB "
        f"(best of {len(METHODS)} processes).",
        "",
        "| method | s | times real time | CPU s | MiB | changed |",
        "|---|---|---|---|---|---|",
        *rows,
    ]
    click.echo(save(pathlib.Path(__file__).with_suffix(".md"), lines))


if __name__ == "__main__":
    main()
