"""Start, train and finish the run of a recipe."""

import atexit
import contextlib
import functools
import logging
import math
import pathlib
import shutil
import sys
from collections.abc import Callable
from typing import Any

import speechbrain as sb
from filelock import FileLock
from hyperpyyaml import load_hyperpyyaml
from speechbrain.nnet.schedulers import WarmCoolDecayLRSchedule
from speechbrain.utils.distributed import (
    ddp_init_group,
    if_main_process,
    run_on_main,
)
from tqdm import tqdm

from speechbrain_vq.dataio.atomic import exclusive
from speechbrain_vq.dataio.audio import AudioError, read_audio
from speechbrain_vq.dataio.manifests import write_json
from speechbrain_vq.inference.interfaces import check_device
from speechbrain_vq.publish import ExportRefused, Run, export_pretrained
from speechbrain_vq.recipe_arguments import parse_arguments
from speechbrain_vq.recipes.common.ending import show_ending
from speechbrain_vq.recipes.common.loggers import add_logger
from speechbrain_vq.recipes.common.progress import ProgressMixin
from speechbrain_vq.recipes.common.resume_check import check_resume
from speechbrain_vq.training import VQBrain
from speechbrain_vq.training.brain import run_length
from speechbrain_vq.training.waiting import reported_waits
from speechbrain_vq.versions import versions

logger = logging.getLogger(__name__)

# Maximum number of items in an epoch of repeated recordings.
MAX_ITEMS = 10_000_000

CONSOLE = pathlib.Path(__file__).with_name("console.yaml")

# Locks on the run folders of this process, released when it exits.
_HELD = contextlib.ExitStack()
atexit.register(_HELD.close)


class StagesMixin:
    """Mixin for a Brain that logs its stages, saves a checkpoint after each
    validation, and stores the test metrics in ``results``. Only the latest
    checkpoint and the one with the lowest ``least`` are kept."""

    # Names of the objective, and of the metric that selects a checkpoint.
    objective = least = "loss"

    def stage_metrics(self, stage):
        """Compute the metrics of a validation or test, besides the objective."""
        return {}

    def on_stage_end(self, stage, stage_loss, epoch=None):
        """Log the stage; save a checkpoint or keep the test results."""
        stats = {self.objective: stage_loss}
        if stage == sb.Stage.TRAIN:
            self.train_stats = stats
            return
        stats |= self.stage_metrics(stage)
        meta, log = {"step": self.optimizer_step}, self.hparams.train_logger
        if stage == sb.Stage.TEST:
            self.results = {**stats, **use_of_codes(self, "test")}
            log.log_stats(meta, test_stats=self.results)
            return
        usage = use_of_codes(self, "valid")
        log.log_stats(
            {"epoch": epoch, **meta},
            train_stats={**self.train_stats, **use_of_codes(self, "train")},
            valid_stats={**stats, **usage},
        )
        if isinstance(self, ProgressMixin):
            self.show_validation(stats, usage)
        self.checkpointer.save_and_keep_only(meta=stats, min_keys=[self.least])


class AnnealingBrain(StagesMixin, ProgressMixin, VQBrain):
    """Brain whose learning rates decay linearly to 0 at the end of the run, so
    that the codebook can catch up with the encoder.

    The rates depend only on the step. Optional ``hparams``: ``anneal``, the
    fraction of the run over which they decay, and ``lr_warmup``, the number of
    initial steps over which they rise.
    """

    def on_fit_start(self):
        """Build a schedule for each optimizer."""
        super().on_fit_start()
        _, steps = run_length(self)
        share = getattr(self.hparams, "anneal", None) or 0.0
        if not 0 <= share <= 1:
            raise ValueError(f"--anneal={share}: must be between 0 and 1.")
        if steps is None and share:
            raise ValueError(
                "--anneal requires a run of known length: set "
                "number_of_steps or number_of_epochs."
            )
        steps = steps or math.inf
        cooldown = round(steps * share) if share else 0
        warmup = getattr(self.hparams, "lr_warmup", 0)
        self.lr_schedules = {
            name: WarmCoolDecayLRSchedule(
                # The initial rate: a loaded checkpoint has a lower one.
                lr=optimizer.defaults["lr"],
                warmup=min(warmup, steps - cooldown),
                cooldown=cooldown,
                total_steps=steps,
                decay_factor=1.0,
            )
            for name, optimizer in self.optimizers_dict.items()
        }

    def on_fit_batch_start(self, batch, should_step):
        """Set the learning rates of the next step."""
        # Counted from 1, because the rate at step 0 of a warm-up is 0.
        for name, schedule in self.lr_schedules.items():
            schedule(self.optimizers_dict[name], self.optimizer_step + 1)


def build_brain(
    brain_class: type[sb.Brain],
    hparams: dict,
    run_opts: Any,
    modules: dict | None = None,
) -> sb.Brain:
    """Build a Brain from the hyperparameters of a recipe."""
    return brain_class(
        modules=modules or hparams["modules"],
        opt_class=hparams["opt_class"],
        hparams=hparams,
        run_opts=run_opts,
        checkpointer=hparams["checkpointer"],
    )


def start(argv: list[str]) -> tuple[dict, dict]:
    """Load the hyperparameters and run options of a command line, and create the
    run folder.

    The command line has the yaml file, run options, overrides, and optionally
    ``--logger=tensorboard`` or ``wandb``. Raises ValueError if any of them is
    invalid or the folder contains a run with different hyperparameters, and
    BlockingIOError if another process is training in the folder."""
    loggers = [arg for arg in argv if arg.startswith("--logger=")]
    hparams_file, run_opts, overrides = parse_arguments(
        [arg for arg in argv if arg not in loggers]
    )
    check_device(run_opts["device"])
    with open(hparams_file, encoding="utf-8") as file:
        hparams = load_hyperpyyaml(file, overrides, overrides_must_match=False)
    ddp_init_group(run_opts)
    run_on_main(hold, args=[pathlib.Path(hparams["output_folder"]).resolve()])
    run_on_main(check_resume, args=[hparams_file, overrides])
    sb.create_experiment_directory(
        experiment_directory=hparams["output_folder"],
        hyperparams_to_save=hparams_file,
        overrides=overrides,
        log_config=CONSOLE,
    )
    # SpeechBrain has copied its caller: this file, not train.py.
    run_on_main(_keep_script, args=[pathlib.Path(hparams["output_folder"])])
    for argument in loggers:
        add_logger(hparams, argument.removeprefix("--logger="))
    return hparams, run_opts


@functools.cache
def hold(folder: pathlib.Path) -> None:
    """Lock a resolved run folder against other processes until this one ends."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    _HELD.enter_context(exclusive(folder))


def _keep_script(folder: pathlib.Path) -> None:
    """Copy the recipe's script to the run folder, instead of this file."""
    (folder / pathlib.Path(__file__).name).unlink(missing_ok=True)
    script = getattr(sys.modules["__main__"], "__file__", None)
    if script is not None:  # A notebook has none.
        shutil.copy(script, folder)


def prepared(prepare: Callable[..., pathlib.Path], hparams: dict):
    """Write the manifests, one process at a time, and return their folder.

    ``prepare`` is called with the yaml's ``corpus``, and does nothing if the
    corpus is already prepared."""
    with reported_waits():
        run_on_main(_prepare_alone, args=[prepare, hparams])
    return prepare(**hparams["corpus"])


def fit_features(
    features: Any,
    items: dict[str, dict],
    longest: float | None = None,
) -> None:
    """Fit the feature normalization on about 200 utterances, or on their first
    ``longest`` seconds. Unreadable utterances are skipped."""
    bar = tqdm(
        sorted(items)[:: max(len(items) // 200, 1)],
        "Normalizing features",
        unit="file",
        leave=False,
        delay=1,
        # None disables the bar unless stderr is a terminal.
        disable=None if if_main_process() else True,
    )

    def waveforms():
        for name in bar:
            path, rate = items[name]["wav"], features.sample_rate
            try:
                yield read_audio(path, rate, duration=longest).unsqueeze(0)
            except AudioError as error:
                logger.warning("Left out of the features' mean: %s", error)

    features.fit(waveforms())


def fit_and_test(
    brain: sb.Brain,
    datasets: dict,
    min_key: str | None = None,
    valid_batch_size: int | None = None,
    **training: Any,
) -> None:
    """Train a Brain whose hyperparameters have ``epoch_counter``, batch sizes and
    ``num_workers``. Then test one of its checkpoints: the one with the lowest
    ``min_key``, or by default the latest.

    Further options go to the training data loader. Without a ``batch_sampler``,
    it draws shuffled batches of ``batch_size``."""
    workers = {"num_workers": brain.hparams.num_workers}
    valid_batch_size = valid_batch_size or brain.hparams.valid_batch_size
    valid_loader = {"batch_size": valid_batch_size, **workers}
    if "batch_sampler" not in training:
        training |= {"batch_size": brain.hparams.batch_size, "shuffle": True}
    shows_bars = not brain.noprogressbar and sys.stderr.isatty()
    has_bar = isinstance(brain, ProgressMixin)
    try:
        brain.fit(
            brain.hparams.epoch_counter,
            datasets["train"],
            datasets["valid"],
            progressbar=shows_bars and not has_bar,
            train_loader_kwargs={**training, **workers},
            valid_loader_kwargs=valid_loader,
        )
    finally:
        if has_bar and brain.bar is not None:
            brain.bar.close()
    if has_bar:
        logger.info("Testing ...")
    brain.evaluate(
        datasets["test"],
        min_key=min_key,
        progressbar=shows_bars,
        test_loader_kwargs=valid_loader,
    )


def fill_epoch(dataset: Any, batch_size: int, steps: int) -> None:
    """Repeat the items of a small data set under new names until an epoch has at
    least ``steps`` steps, since every epoch ends with a validation. Raises
    ValueError if that takes more than ten million items."""
    names = list(dataset.data_ids)
    times = math.ceil(steps * batch_size / len(names))
    if times > 1 and times * len(names) > MAX_ITEMS:
        raise ValueError(
            f"--batch_size={batch_size}: the {len(names)} recordings would be "
            f"repeated {times} times to fill an epoch of {steps} steps. Use "
            "a smaller batch size."
        )
    for number in range(1, times):
        copies = {f"{name} ({number})": dataset.data[name] for name in names}
        dataset.data.update(copies)
        dataset.data_ids.extend(copies)


def use_of_codes(brain: sb.Brain, stage: str) -> dict[str, float]:
    """Return the codebook usage metrics of a stage, without those that are NaN
    because nothing was quantized; empty for a Brain without ``vq_stats``. All
    ranks must call it."""
    stats = getattr(brain, "vq_stats", {}).get(stage, {})
    return {k: v for k, v in stats.items() if not math.isnan(v)}


def finish(hparams: dict, brain: AnnealingBrain) -> None:
    """Export the model, write the test results, and show them."""
    results = {
        # Yamls of version 0.1 call the preset ``arm``.
        "preset": hparams.get("preset", hparams.get("arm")),
        "seed": hparams["seed"],
        "steps": brain.optimizer_step,
        **brain.results,
    }
    folder = pathlib.Path(hparams["output_folder"])
    try:
        export_pretrained(folder, folder / "model", results=results)
    except ExportRefused as refusal:
        logger.warning("No model was exported. %s", refusal)
    write_results(folder, results)
    manifests = None
    interface = hparams.get("inference", {}).get("interface")
    if interface in ("VQTokenizer", "VoiceConverter"):
        keys = ("data_folder", "manifest_folder")
        folders = [pathlib.Path(hparams[k]) for k in keys if hparams.get(k)]
        manifests = next(
            (f for f in folders if (f / "test.json").is_file()), None
        )
    show_ending(folder, results, manifests)


def write_results(folder: str | pathlib.Path, results: dict) -> None:
    """Write ``results.json`` with the package versions. This is the last step,
    so the file marks a complete run."""
    results = {**results, "versions": versions()}
    write_json(pathlib.Path(folder, "results.json"), results, indent=2)


def _prepare_alone(prepare, hparams):
    """Write the manifests under a lock, because parallel runs may share them."""
    folder = pathlib.Path(hparams["corpus"]["save_folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):
        prepare(**hparams["corpus"])
    # The yaml's relative paths are valid now. A call from Python has no yaml.
    output = pathlib.Path(hparams["output_folder"])
    if (output / "hyperparams.yaml").is_file():
        Run.open(output).write_corpus()
