"""Where the metrics of a run go, and what its console shows."""

import hashlib
import logging
import pathlib
from collections.abc import Callable
from colorsys import hsv_to_rgb
from typing import Any, NamedTuple

import torch
from speechbrain.utils.distributed import main_process_only
from speechbrain.utils.train_logger import (
    TensorboardLogger,
    TrainLogger,
    WandBLogger,
)

from speechbrain_vq._names import suggestion

LOGGERS = ("file", "tensorboard", "wandb")


class Sample(NamedTuple):
    """A held-out utterance of a validation: log-mels [T, n_mels] of the
    original and of the reconstruction, tokens [T'], and a function from
    log-mels to a waveform [samples] of a sample rate."""

    original: torch.Tensor
    decoded: torch.Tensor
    tokens: torch.Tensor
    synthesize: Callable[[torch.Tensor], torch.Tensor]
    sample_rate: int


class LoggerGroup(TrainLogger):
    """Log the metrics of a run in several ways; the last takes pictures and
    audio."""

    def __init__(self, *loggers):
        self.loggers = loggers

    def log_stats(self, *args, **kwargs):
        """See TrainLogger.log_stats()"""
        for logger in self.loggers:
            logger.log_stats(*args, **kwargs)

    @main_process_only
    def log_media(
        self, step: int, samples: dict[str, Sample], counts: torch.Tensor
    ) -> None:
        """Log held-out utterances by name, and how often each code occurred in
        the validation, [C, K]."""
        log = self.loggers[-1].log_one
        for name, sample in samples.items():
            log(step, f"{name}/spectrogram", picture(sample))
            for kind in ("original", "decoded"):
                wav = sample.synthesize(getattr(sample, kind))
                log(step, f"{name}/{kind}", wav, sample.sample_rate)
        share = counts.sum(1, keepdim=True).clamp(min=1) / counts.shape[1]
        log(step, "usage of a code over the mean", (counts / share).flatten())


class StepLogger:
    """Log by stage over optimizer steps, those of resumed runs too."""

    @main_process_only
    def log_stats(
        self,
        stats_meta,
        train_stats=None,
        valid_stats=None,
        test_stats=None,
        verbose=False,
    ):
        """See TrainLogger.log_stats()"""
        stages = {
            "train": train_stats,
            "valid": valid_stats,
            "test": test_stats,
        }
        self.log_stages(stats_meta, {k: v for k, v in stages.items() if v})


class StepTensorboardLogger(StepLogger, TensorboardLogger):
    """Log by TensorBoard."""

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


class StepWandBLogger(StepLogger, WandBLogger):
    """Log by Weights & Biases."""

    def log_stages(self, meta, stages):
        """Log the metrics of each stage."""
        self.run.log({**stages, **meta}, step=meta["step"])

    def log_one(self, step, name, value, sample_rate=None):
        """Log a waveform, a picture [H, W, 3] or the values of a histogram."""
        import wandb

        value = value.cpu().numpy()
        if sample_rate is not None:
            value = wandb.Audio(value, sample_rate)
        elif value.ndim == 3:
            value = wandb.Image(value)
        else:
            value = wandb.Histogram(value)
        self.run.log({name: value}, step=step)


def picture(sample: Sample) -> torch.Tensor:
    """Draw the original above the reconstruction, with a strip of the tokens
    in between, a color for each code; [H, W, 3] in 0..255."""
    width = len(sample.original)
    mels = torch.stack([sample.original, sample.decoded[:width]])
    low, high = mels.aminmax()
    grey = ((mels - low) / (high - low).clamp(min=1e-9)).mT.flip(1)
    above, below = grey.unsqueeze(3).expand(-1, -1, -1, 3)
    # Codes of neighboring numbers must differ.
    colors = torch.tensor(
        [hsv_to_rgb(0.618 * t % 1, 0.8, 0.9) for t in sample.tokens.tolist()]
    )
    at = torch.arange(width) * len(colors) // width
    strip = colors[at].expand(8, -1, -1)
    return (255 * torch.cat([above, strip, below])).round().byte()


class ConsoleFilter(logging.Filter):
    """Show what this package has to say, and warnings of all."""

    def filter(self, record):
        """Return whether to show a record."""
        is_own = record.name.startswith(("speechbrain_vq", "__main__"))
        # Checkpoints are saved and deleted with every validation.
        is_own = is_own and record.name != "speechbrain_vq.training.resume"
        return is_own or record.levelno >= logging.WARNING


def add_logger(hparams: dict[str, Any], name: str) -> None:
    """Log the metrics of a run also by ``"tensorboard"`` or ``"wandb"``
    (``"file"``: as the yaml has it); replaces ``train_logger``."""
    if name not in LOGGERS:
        raise ValueError(
            f"--logger={name}: it is one of {', '.join(LOGGERS)}."
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
    is_wandb = name == "wandb"
    make = _make_wandb_logger if is_wandb else _make_tensorboard_logger
    try:
        logger = make(folder, plain)
    except ImportError as error:
        raise ImportError(
            f"--logger={name} needs `pip install {name}`."
        ) from error
    hparams["train_logger"] = LoggerGroup(hparams["train_logger"], logger)


def _make_tensorboard_logger(folder, hparams):
    logger = StepTensorboardLogger(str(folder / "tensorboard"))
    if logger.writer is not None:  # On the first rank
        rows = [f"| {key} | {value} |" for key, value in hparams.items()]
        table = ["| key | value |", "|---|---|", *rows]
        logger.writer.add_text("hyperparameters", "\n".join(table))
    return logger


def _make_wandb_logger(folder, hparams):
    import wandb

    return StepWandBLogger(
        wandb.init,
        project="speechbrain-vq",
        # The same run, where it is resumed.
        id=hashlib.sha1(str(folder.resolve()).encode()).hexdigest()[:12],
        resume="allow",
        name=folder.name,
        dir=str(folder),
        config=hparams,
    )
