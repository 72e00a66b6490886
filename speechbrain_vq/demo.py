"""Demo: train the same codebook with two presets and compare them."""

import pathlib
import re
import shutil
import subprocess
import sys
import time

import click
from tqdm import tqdm

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
    command = [sys.executable, str(script), str(folder), f"--minutes={minutes}"]
    if subprocess.run(command).returncode:
        raise click.ClickException("The corpus was not made, see above.")


def run_folder(output, preset, seed, steps) -> pathlib.Path:
    """Return the folder of a run."""
    return output / f"{preset}-seed{seed}-{steps}steps"


def train(preset, corpus, output, seed, steps) -> dict:
    """Run the recipe, or continue it, and return its results."""
    folder = run_folder(output, preset, seed, steps)
    results = folder / "results.json"
    if not results.exists():
        folder.mkdir(parents=True, exist_ok=True)
        recipe = recipe_path(RECIPE)
        command = [sys.executable, str(recipe / "train.py")]
        command += [str(recipe / "hparams" / "train.yaml")]
        command += [f"--preset={preset}", f"--seed={seed}"]
        command += [f"--data_folder={corpus}", f"--output_folder={folder}"]
        command += [f"--number_of_steps={steps}", "--noprogressbar"]
        with open(folder / "output.txt", "a", encoding="utf-8") as log:
            child = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                watch(child, preset, folder / "train_log.txt", steps)
            finally:
                # Ctrl-C reaches the child too; it must be gone before a
                # second demo may write where it writes.
                child.terminate()
                child.wait()
        if child.returncode != 0:
            text = (folder / "output.txt").read_text(encoding="utf-8")
            raise click.ClickException(
                f"Training {preset} failed:\n{text[-2000:]}\n"
                f"(all of it in {folder / 'output.txt'})"
            )
    # Runs of 0.1 name it otherwise.
    return {"preset": preset, **read_json(results)}


def watch(child, preset, log, steps) -> None:
    """Show the progress of a run, by its train log, until it ends."""
    with tqdm(
        total=steps, desc=f"   {preset:8}", unit="step", disable=None
    ) as bar:
        while child.poll() is None:
            time.sleep(0.5)
            text = log.read_text(encoding="utf-8") if log.exists() else ""
            reached = re.findall(r"step: (\d+) - train", text)
            if reached:
                bar.n = int(reached[-1])
            used = re.findall(r"train used_codes_percent: ([\d.e+]+)", text)
            if used and float(used[-1]):
                bar.set_postfix_str(
                    f"{float(used[-1]):.0f} % of codes used", refresh=False
                )
            bar.refresh()


def table(results) -> str:
    """Format the comparison as Markdown."""
    rows = [[title for _, title, _ in COLUMNS]]
    for result in results:
        rows.append([form.format(result[key]) for key, _, form in COLUMNS])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    rows.insert(1, ["-" * width for width in widths])
    lines = [
        "| "
        + " | ".join(c.ljust(w) for c, w in zip(row, widths, strict=True))
        + " |"
        for row in rows
    ]
    return "\n".join(lines) + (
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
