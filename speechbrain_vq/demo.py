"""Demo: reconstruct a recording from tokens, then train a codebook with two
presets."""

import pathlib
import shutil
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
    """Reconstruct a recording with the bundled model. Then create a corpus,
    train and compare both presets, and use the robust model. Rerun an
    interrupted demo to resume it.

    Returns the duration of this call in ``seconds``, and the metrics of both
    ``presets``.
    """
    start = time.perf_counter()
    click.echo("1. A recording, from tokens of the bundled model")
    output.mkdir(parents=True, exist_ok=True)
    reconstruct(output)
    click.echo(f"2. Synthetic speech: {minutes:g} minutes of MiniSpeech")
    corpus = output / f"minispeech-{minutes:g}-minutes"
    make_corpus(corpus, minutes)
    click.echo(f"3. Training: {steps} steps each, 512 codes")
    results = [train(name, corpus, output, seed, steps) for name in PRESETS]
    click.echo("\n" + table(results))
    click.echo("4. The robust model, exported by its run, loaded back")
    vanilla, robust = (run_folder(output, p, seed, steps) for p in PRESETS)
    use(robust, corpus)
    page = write_report(robust, output / "report.html", [vanilla])
    click.echo(f"\nTo see and hear the trained models, open {page}")
    seconds = time.perf_counter() - start
    keys = [key for key, _, _ in COLUMNS]
    return {
        "seconds": round(seconds, 1),
        "presets": [{key: result[key] for key in keys} for result in results],
    }


def make_corpus(folder: pathlib.Path, minutes: float) -> None:
    """Run the preparation script of MiniSpeech, which skips a finished
    corpus."""
    script = recipe_path("MiniSpeech/minispeech_prepare.py")
    if run_python(str(script), str(folder), f"--minutes={minutes}"):
        raise click.ClickException("The corpus was not created, see above.")


def run_python(*arguments: str, stdout=None) -> int:
    """Run Python in a child process and return its exit code.

    In a session of its own, the child does not see Ctrl-C. It is killed when
    this process does."""
    command = [sys.executable, *arguments]
    options = {"stdout": stdout, "start_new_session": True}
    return subprocess.run(command, check=False, **options).returncode


def run_folder(output, preset, seed, steps) -> pathlib.Path:
    """Return the folder of a run."""
    return output / f"{preset}-seed{seed}-{steps}steps"


def train(preset, corpus, output, seed, steps) -> dict:
    """Run or resume the recipe, and return its results."""
    folder = run_folder(output, preset, seed, steps)
    results = folder / "results.json"
    if not results.exists():
        folder.mkdir(parents=True, exist_ok=True)
        click.echo(f"   {preset}")
        command = ["-m", "speechbrain_vq", "train", RECIPE, f"--out={folder}"]
        command += [f"--preset={preset}", f"--seed={seed}", f"--steps={steps}"]
        command += [f"--data_folder={corpus}"]
        # Only stderr, with the progress bar and errors, is shown.
        log = folder / "output.txt"
        with open(log, "a", encoding="utf-8") as console:
            code = run_python(*command, stdout=console)
        if code:
            raise click.ClickException(
                f"Training {preset} failed, see above and {log}."
            )
    # Results of version 0.1 lack the key "preset".
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
        "of phones and units as a\nfraction of the entropy of the phones.\n"
    )


def reconstruct(output) -> None:
    """Reconstruct the bundled recording from all, and from half, of the
    bundled model's codebooks."""
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


def use(run, corpus) -> None:
    """Tokenize an utterance with the exported model."""
    model = run / "model"
    tokenizer = VQTokenizer.from_hparams(model)
    utterance = next(iter(read_manifest(corpus / "test.json").values()))
    tokens = tokenizer.encode_file(utterance["wav"]).tolist()
    shown = " ".join(map(str, tokens[:16]))
    click.echo(
        f'   "{utterance["words"]}"\n'
        f"   {len(tokens)} tokens at {tokenizer.token_rate:g} per second: "
        f"{shown} ..."
    )
    click.echo(
        "\nNext:\n"
        "   hear yours   speechbrain-vq reconstruct my.wav\n"
        "   load it      from speechbrain_vq import VQTokenizer\n"
        f'                VQTokenizer.from_hparams("{model}")\n'
        "   train yours  speechbrain-vq train FOLDER_OF_RECORDINGS"
    )
