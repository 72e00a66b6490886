"""Train a recipe on a folder of recordings.

> python folder.py TRAIN.PY FOLDER HPARAMS.yaml --output_folder=RUN

This writes manifests of the folder to the run folder, chooses the codebook size
and the number of steps by the amount of audio, and runs the recipe's train.py,
which finally writes a report. Further arguments go to the recipe.
"""

import logging
import math
import pathlib
import runpy
import shlex
import shutil
import sys
import tempfile

from speechbrain.utils.distributed import if_main_process
from speechbrain.utils.logger import setup_logging

from speechbrain_vq.cli.common import clean_errors
from speechbrain_vq.dataio.atomic import atomic_write, replace_folder
from speechbrain_vq.dataio.audio import check_files, count_reasons, find_audio
from speechbrain_vq.dataio.logs import few_warnings
from speechbrain_vq.dataio.manifests import (
    SPLITS,
    has_manifests,
    manifest_path,
    read_corpus,
    read_json,
    read_manifest,
)
from speechbrain_vq.inference.interfaces import check_device
from speechbrain_vq.recipe_arguments import (
    format_option,
    parse_arguments,
    split_arguments,
)
from speechbrain_vq.recipe_files import FOLDER_RECIPES, load
from speechbrain_vq.recipes.common.resume_check import check_resume
from speechbrain_vq.recipes.common.runs import CONSOLE, hold
from speechbrain_vq.recipes.MiniSpeech.minispeech_prepare import (
    prepare,
    recognize,
)
from speechbrain_vq.report.reproduce import COMMAND_FILE

logger = logging.getLogger(__name__)

# A code needs about fifty tokens of 20 ms.
SECONDS_PER_CODE = 1.0
SMALLEST_CODEBOOK, LARGEST_CODEBOOK = 16, 512
VALIDATIONS = 16
# By recipe: a factor on the steps of unit discovery, and overrides that suit
# minutes of speech and a CPU.
OPTIONS = {
    "speech-codec": (2, {}),
    "voice-conversion": (
        2,
        {"batch_size": 16, "channels": 128, "num_workers": 0},
    ),
}


def choose(seconds: float, recipe: str) -> dict[str, int]:
    """Choose overrides for a recipe's yaml by the seconds of training speech.

    >>> choose(14.5 * 60, "unit-discovery")
    {'codebook_size': 512, 'number_of_steps': 800}
    """
    factor, options = OPTIONS.get(recipe, (1, {}))
    size = 2 ** int(math.log2(max(seconds / SECONDS_PER_CODE, 1)))
    minutes = seconds / 60
    steps = 400 if minutes < 5 else 800 * max(math.sqrt(minutes / 30), 1)
    return {
        "codebook_size": min(max(size, SMALLEST_CODEBOOK), LARGEST_CODEBOOK),
        "number_of_steps": factor * math.ceil(steps / 100) * 100,
        **options,
    }


def main(argv: list[str]) -> None:
    """Prepare a folder, and run a recipe on it. ``argv`` has the arguments
    after the name of this script, which `speechbrain-vq train` has checked. It
    always passes the output folder."""
    script, folder, yaml, *options = argv
    # This script handles --strict, which is not an option of the recipe.
    strict = "--strict=True" in options
    options = [o for o in options if not o.startswith("--strict")]
    _, run_opts, given = split_arguments([yaml, *options])
    check_device(run_opts["device"])
    recognize(pathlib.Path(folder))
    run = pathlib.Path(str(given["output_folder"]))
    if if_main_process():
        hold(run.resolve())
    run.mkdir(parents=True, exist_ok=True)
    log = {"handlers": {"file_handler": {"filename": str(run / "log.txt")}}}
    setup_logging(CONSOLE, log)
    if strict:
        _refuse_unreadable(pathlib.Path(folder))
    manifests = _prepare(folder, run)
    # The recipe uses a data folder with manifests unchanged.
    chosen = {
        "output_folder": run,
        "data_folder": manifests,
        "manifest_folder": run / "save",
    }
    if (manifests / "train.json").is_file():
        items = read_manifest(manifests / "train.json", None, ["length"])
        seconds = sum(item["length"] for item in items.values())
        chosen |= choose(seconds, pathlib.Path(script).parent.name)
        steps = given.get("number_of_steps", chosen["number_of_steps"])
        chosen["epoch_steps"] = math.ceil(steps / VALIDATIONS)
    added = [format_option(k, v) for k, v in chosen.items() if k not in given]
    arguments = [yaml, *added, *options]
    sys.argv = [script, *arguments]
    if if_main_process():
        hparams_file, _, overrides = parse_arguments(
            [arg for arg in arguments if not arg.startswith("--logger=")]
        )
        check_resume(hparams_file, overrides)
        words = _command(script, folder, yaml, options)
        with atomic_write(run / COMMAND_FILE) as partial:
            partial.write_text(shlex.join(words) + "\n", "utf-8")
    runpy.run_path(script, run_name="__main__")


def _prepare(folder: str, run: pathlib.Path) -> pathlib.Path:
    """Write the manifests of a folder to the run folder, and return their folder.

    A run that has started keeps its splits. Raises ValueError if it was started
    on another folder, unless that was moved, or if the recordings have changed:
    a new split could put training recordings in the test set."""
    manifests = run / "manifests"
    has_begun = next((run / "save").glob("CKPT*"), None) is not None
    if not (has_begun and has_manifests(manifests)):
        return prepare(folder, manifests)
    root = pathlib.Path(read_corpus(manifests)["data_root"])
    if root.is_dir() and root != pathlib.Path(folder).resolve():
        raise ValueError(
            f"{run} holds a run on {root}, not on {folder}: use another "
            "--out, or remove this one."
        )
    with tempfile.TemporaryDirectory(dir=run) as scratch:
        updated = pathlib.Path(scratch, manifests.name)
        shutil.copytree(manifests, updated)
        prepared = prepare(folder, updated)
        if prepared != updated:
            return prepared
        before, now = map(_splits, (manifests, updated))
        if before != now:
            new, lost = now.keys() - before.keys(), before.keys() - now.keys()
            raise ValueError(
                f"The recordings in {folder} are not those that the run in "
                f"{run} began with: {len(new)} are new, {len(lost)} are "
                "missing. Restore the folder to continue the run, or use "
                "another --out for a new one."
            )
        if if_main_process() and read_corpus(updated) != read_corpus(manifests):
            replace_folder(updated, manifests)
    return manifests


def _splits(folder: pathlib.Path) -> dict[str, str]:
    """Map the utterances of manifests to their splits."""
    return {
        name: split
        for split in SPLITS
        for name in read_json(folder / f"{split}.json")
    }


def _command(script: str, folder: str, yaml: str, options: list[str]) -> list:
    """Return the words of the `speechbrain-vq train` command for this run."""
    words = ["speechbrain-vq", "train", folder]
    recipe_folder = pathlib.Path(script).parent
    for name, recipe in FOLDER_RECIPES.items():
        if recipe_folder.match(recipe) and name != "units":
            words.append(f"--recipe={name}")
    if pathlib.Path(yaml) != recipe_folder / "hparams" / "train.yaml":
        words.append(f"--config={yaml}")
    cli_names = {"--number_of_steps": "--steps", "--output_folder": "--out"}
    for option in options:
        name, equals, value = option.partition("=")
        if name == "--output_folder":  # A yaml value
            value = load(value)
        words.append(cli_names.get(name, name) + equals + value)
    return words


def _refuse_unreadable(folder: pathlib.Path) -> None:
    """Raise ValueError if any audio in a folder cannot be read."""
    if has_manifests(folder):
        items = [read_manifest(manifest_path(folder, s)) for s in SPLITS]
        paths = [item["wav"] for part in items for item in part.values()]
    else:
        paths = list(find_audio([folder]))
    with few_warnings(logger, maximum=10):
        _, errors = check_files(paths)
        for error in errors.values():
            logger.warning("%s", error)
    if errors:
        raise ValueError(
            f"{folder}: {len(errors)} of {len(paths)} files cannot be used: "
            f"{count_reasons(errors)}. Omit --strict to skip them."
        )


if __name__ == "__main__":
    with clean_errors():
        main(sys.argv[1:])
