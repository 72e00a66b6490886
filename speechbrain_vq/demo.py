"""Demo: train the same codebook with two presets and compare them."""

import pathlib
import shutil
import signal
import subprocess
import sys
import time

import click

from speechbrain_vq.dataio.manifests import read_json, read_manifest
from speechbrain_vq.inference import VQTokenizer
from speechbrain_vq.presets import bundled
from speechbrain_vq.recipe_files import recipe_path
from speechbrain_vq.report import write_report

RECIPE = "MiniSpeech/unit-discovery"
PRESETS = ("vanilla", "robust")
COLUMNS = (
    ("preset", "codebook", "{}"),
    ("used_codes_percent", "used codes", "{:.0f} %"),
    ("perplexity", "perplexity", "{:.0f}"),
    ("reconstruction_error", "reconstruction error", "{:.3f}"),
    ("pnmi", "phone information (PNMI)", "{:.3f}"),
)


def run_demo(
    output: pathlib.Path, seed: int, steps: int, minutes: float
) -> dict:
    """Make a corpus, train both presets, compare them, and use the better one.

    An interrupted demo continues where it was. Returns ``seconds`` that this
    call took, and the metrics of the presets under ``presets``.
    """
    start = time.perf_counter()
    click.echo(f"1. Speech: {minutes:g} minutes of MiniSpeech")
    corpus = output / f"minispeech-{minutes:g}-minutes"
    make_corpus(corpus, minutes)
    click.echo(f"2. Training: {steps} steps each, 512 codes")
    results = [train(name, corpus, output, seed, steps) for name in PRESETS]
    click.echo("\n" + table(results))
    click.echo("3. The robust model, exported by its run, loaded back")
    vanilla, robust = (run_folder(output, p, seed, steps) for p in PRESETS)
    use(robust, corpus, output)
    page = write_report(robust, output / "report.html", [vanilla])
    click.echo(f"\nTo see and hear all of it, open {page}")
    seconds = time.perf_counter() - start
    keys = [key for key, _, _ in COLUMNS]
    return {
        "seconds": round(seconds, 1),
        "presets": [{key: result[key] for key in keys} for result in results],
    }


def make_corpus(folder: pathlib.Path, minutes: float) -> None:
    """Run the preparation script of MiniSpeech, unless that was done."""
    script = recipe_path("MiniSpeech/minispeech_prepare.py")
    if run_python(str(script), str(folder), f"--minutes={minutes}"):
        raise click.ClickException("The corpus was not made, see above.")


def run_python(*arguments: str, stdout=None) -> int:
    """Run Python in a process that Ctrl-C ends with this one, without a message
    of its own; return its code."""
    usual = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen([sys.executable, *arguments], stdout=stdout)
    finally:
        signal.signal(signal.SIGINT, usual)
    try:
        return child.wait()
    finally:
        # It must be gone before a second demo may write where it writes.
        child.terminate()
        child.wait()


def run_folder(output, preset, seed, steps) -> pathlib.Path:
    """Return the folder of a run."""
    return output / f"{preset}-seed{seed}-{steps}steps"


def train(preset, corpus, output, seed, steps) -> dict:
    """Run the recipe, or continue it, and return its results."""
    folder = run_folder(output, preset, seed, steps)
    results = folder / "results.json"
    if not results.exists():
        folder.mkdir(parents=True, exist_ok=True)
        click.echo(f"   {preset}")
        command = ["-m", "speechbrain_vq", "train", RECIPE, f"--out={folder}"]
        command += [f"--preset={preset}", f"--seed={seed}", f"--steps={steps}"]
        command += [f"--data_folder={corpus}"]
        # Of the run, the bar and errors are shown.
        log = folder / "output.txt"
        with open(log, "a", encoding="utf-8") as console:
            code = run_python(*command, stdout=console)
        if code:
            raise click.ClickException(
                f"Training {preset} failed, see above and {log}."
            )
    # Runs of 0.1 name it otherwise.
    return {"preset": preset, **read_json(results)}


def table(results) -> str:
    """Format the comparison as Markdown."""
    columns = [
        [title, *(form.format(result[key]) for result in results)]
        for key, title, form in COLUMNS
    ]
    for index, column in enumerate(columns):
        width = max(map(len, column))
        column.insert(1, "-" * width)
        columns[index] = [cell.ljust(width) for cell in column]
    rows = zip(*columns, strict=True)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + (
        "\n\nOn held-out speakers and sentences. The error is the mean "
        "absolute error of\nnormalized log-mels; PNMI is the mutual information "
        "of phones and units, as a share\nof the entropy of the phones.\n"
    )


def use(run, corpus, output) -> None:
    """Load the exported model and tokenize an utterance; resynthesize a
    recording by the bundled model of recorded speech."""
    model = run / "model"
    tokenizer = VQTokenizer.from_hparams(model)
    utterance = next(iter(read_manifest(corpus / "test.json").values()))
    tokens = tokenizer.encode_file(utterance["wav"]).tolist()
    shown = " ".join(map(str, tokens[:16]))
    click.echo(
        f'   "{utterance["words"]}"\n'
        f"   {len(tokens)} tokens at {tokenizer.token_rate:g} a second: "
        f"{shown} ..."
    )
    click.echo("4. Recorded speech, by the model that comes with the package")
    original = output / "original.wav"
    shutil.copyfile(pathlib.Path(bundled("speech"), "example.wav"), original)
    speech = VQTokenizer.from_hparams("speech")
    total = speech.num_codebooks
    click.echo(f"   original      {original}")
    for number in (total, total // 2):
        speech.use_codebooks(number)
        decoded = output / f"from_{number}_codebooks.wav"
        speech.reconstruct_file(original, decoded)
        bits = number * (speech.codebook_size - 1).bit_length()
        rate = bits * speech.token_rate
        click.echo(f"   {rate:4.0f} bit/s    {decoded}")
    click.echo(
        "\nNext:\n"
        "   hear yours   speechbrain-vq reconstruct my.wav\n"
        "   load it      from speechbrain_vq import VQTokenizer\n"
        f'                VQTokenizer.from_hparams("{model}")\n'
        "   train yours  speechbrain-vq train FOLDER_OF_RECORDINGS"
    )
