"""Log the metrics of a run, and filter its console output."""

import hashlib
import logging
import pathlib
from collections.abc import Callable
from colorsys import hsv_to_rgb
from typing import Any, NamedTuple

import torch
from speechbrain.utils.distributed import if_main_process, main_process_only
from speechbrain.utils.train_logger import TrainLogger

from speechbrain_vq._names import suggestion


class Sample(NamedTuple):
    """Validation utterance to log: log-mels [T, n_mels] of the original and of
    its reconstruction, tokens [T'], a function from log-mels to a waveform
    [samples], and its sample rate in Hz."""

    original: torch.Tensor
    decoded: torch.Tensor
    tokens: torch.Tensor
    synthesize: Callable[[torch.Tensor], torch.Tensor]
    sample_rate: int


class LoggerGroup(TrainLogger):
    """Log the metrics of a run with the recipe's logger, and over optimizer
    steps with a ``step_logger``, which also logs images and audio."""

    def __init__(self, logger, step_logger):
        self.logger, self.step_logger = logger, step_logger

    @main_process_only
    def log_stats(
        self, stats_meta, train_stats=None, valid_stats=None, test_stats=None
    ):
        """See TrainLogger.log_stats()"""
        self.logger.log_stats(stats_meta, train_stats, valid_stats, test_stats)
        stages = {
            "train": train_stats,
            "valid": valid_stats,
            "test": test_stats,
        }
        self.step_logger.log_stages(
            stats_meta, {k: v for k, v in stages.items() if v}
        )

    @main_process_only
    def log_media(
        self, step: int, samples: dict[str, Sample], counts: torch.Tensor
    ) -> None:
        """Log validation utterances by name, and the code counts [C, K] of the
        validation."""
        log = self.step_logger.log_one
        for name, sample in samples.items():
            log(step, f"{name}/spectrogram", picture(sample))
            for kind in ("original", "decoded"):
                wav = sample.synthesize(getattr(sample, kind))
                log(step, f"{name}/{kind}", wav, sample.sample_rate)
        share = counts.sum(1, keepdim=True).clamp(min=1) / counts.shape[1]
        log(step, "usage of a code over the mean", (counts / share).flatten())


class StepTensorboardLogger:
    """Log to TensorBoard in a run folder, starting with the hyperparameters."""

    def __init__(self, folder, hparams):
        from torch.utils.tensorboard import SummaryWriter

        if if_main_process():
            self.writer = SummaryWriter(str(folder / "tensorboard"))
            rows = [f"| {key} | {value} |" for key, value in hparams.items()]
            table = ["| key | value |", "|---|---|", *rows]
            self.writer.add_text("hyperparameters", "\n".join(table))

    def log_stages(self, meta, stages):
        """Log the metrics of each stage."""
        for stage, stats in stages.items():
            for name, value in stats.items():
                tag = f"{name}/{stage}"
                self.writer.add_scalar(tag, value, meta["step"])

    def log_one(self, step, name, value, sample_rate=None):
        """Log a waveform, a picture [H, W, 3] or the values of a histogram."""
        if sample_rate is not None:
            wav = value.unsqueeze(0)
            self.writer.add_audio(name, wav, step, sample_rate)
        elif value.dim() == 3:
            self.writer.add_image(name, value, step, dataformats="HWC")
        else:
            self.writer.add_histogram(name, value, step)


class StepWandBLogger:
    """Log to Weights & Biases, as a run named after its folder."""

    def __init__(self, folder, hparams):
        import wandb

        self.wandb = wandb
        if if_main_process():
            self.run = wandb.init(
                project="speechbrain-vq",
                # It depends only on the folder, so a resumed run keeps it.
                id=hashlib.sha1(str(folder.resolve()).encode()).hexdigest()[
                    :12
                ],
                resume="allow",
                name=folder.name,
                dir=str(folder),
                config=hparams,
            )

    def log_stages(self, meta, stages):
        """Log the metrics of each stage."""
        self.run.log({**stages, **meta}, step=meta["step"])

    def log_one(self, step, name, value, sample_rate=None):
        """Log a waveform, a picture [H, W, 3] or the values of a histogram."""
        value = value.cpu().numpy()
        if sample_rate is not None:
            value = self.wandb.Audio(value, sample_rate)
        elif value.ndim == 3:
            value = self.wandb.Image(value)
        else:
            value = self.wandb.Histogram(value)
        self.run.log({name: value}, step=step)


LOGGERS = {
    "file": None,
    "tensorboard": StepTensorboardLogger,
    "wandb": StepWandBLogger,
}


def picture(sample: Sample) -> torch.Tensor:
    """Draw the original above the reconstruction, and between them the tokens,
    with a color for each code. Returns [H, W, 3] in 0..255."""
    width = len(sample.original)
    mels = torch.stack([sample.original, sample.decoded[:width]])
    low, high = mels.aminmax()
    gray = ((mels - low) / (high - low).clamp(min=1e-9)).mT.flip(1)
    above, below = gray.unsqueeze(3).expand(-1, -1, -1, 3)
    # Golden-ratio steps give consecutive codes very different hues.
    colors = torch.tensor(
        [hsv_to_rgb(0.618 * t % 1, 0.8, 0.9) for t in sample.tokens.tolist()]
    )
    columns = torch.arange(width) * len(colors) // width
    strip = colors[columns].expand(8, -1, -1)
    return (255 * torch.cat([above, strip, below])).round().byte()


class ConsoleFilter(logging.Filter):
    """Filter that shows this package's messages, and warnings from any."""

    def filter(self, record):
        """Return whether to show a record."""
        is_own = record.name.startswith(("speechbrain_vq", "__main__"))
        # Every validation saves and deletes checkpoints.
        is_own = is_own and record.name != "speechbrain_vq.training.resume"
        return is_own or record.levelno >= logging.WARNING


def add_logger(hparams: dict[str, Any], name: str) -> None:
    """Replace ``train_logger`` with one that also logs to ``"tensorboard"`` or
    ``"wandb"``; ``"file"`` keeps the one in the yaml."""
    if name not in LOGGERS:
        raise ValueError(
            f"--logger={name}: it must be one of {', '.join(LOGGERS)}."
            f"{suggestion(name, LOGGERS)}"
        )
    if name == "file":
        return
    folder = pathlib.Path(hparams["output_folder"])
    plain = {
        key: value
        for key, value in hparams.items()
        if isinstance(value, bool | int | float | str)
    }
    try:
        logger = LOGGERS[name](folder, plain)
    except ImportError as error:
        raise ImportError(
            f"--logger={name} needs `pip install {name}`."
        ) from error
    hparams["train_logger"] = LoggerGroup(hparams["train_logger"], logger)
