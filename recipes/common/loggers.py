"""Where the metrics of a run go, and what its console shows."""

import logging
import pathlib
from typing import Any

from speechbrain.utils.train_logger import TensorboardLogger, TrainLogger

from speechbrain_vq._names import suggestion

LOGGERS = ("file", "tensorboard", "wandb")


class LoggerGroup(TrainLogger):
    """Log the metrics of a run in several ways.

    Arguments
    ---------
    *loggers : TrainLogger
        The loggers.
    """

    def __init__(self, *loggers):
        self.loggers = loggers

    def log_stats(self, *args, **kwargs):
        """See TrainLogger.log_stats()"""
        for logger in self.loggers:
            logger.log_stats(*args, **kwargs)


class ConsoleFilter(logging.Filter):
    """Show what this package has to say, and warnings of all."""

    def filter(self, record):
        """Return whether to show a record."""
        ours = record.name.startswith(("speechbrain_vq", "__main__"))
        # Checkpoints are saved and deleted with every validation.
        ours = ours and record.name != "speechbrain_vq.training.resume"
        return ours or record.levelno >= logging.WARNING


def add_logger(hparams: dict[str, Any], name: str) -> None:
    """Log the metrics of a run by TensorBoard or Weights & Biases, too.

    Arguments
    ---------
    hparams : dict
        The hyperparameters, of which ``train_logger`` is replaced.
    name : str
        ``"file"`` (as the yaml has it), ``"tensorboard"`` or ``"wandb"``.

    Raises
    ------
    ImportError
        If its package is not installed.
    ValueError
        If there is no such logger.
    """
    if name not in LOGGERS:
        raise ValueError(
            f"--logger={name}: it is one of {', '.join(LOGGERS)}."
            f"{suggestion(name, LOGGERS)}"
        )
    if name == "file":
        return
    folder = pathlib.Path(hparams["output_folder"])
    try:
        if name == "tensorboard":
            logger = TensorboardLogger(str(folder / "tensorboard"))
        else:
            logger = _make_wandb_logger(folder)
    except ImportError as error:
        raise ImportError(
            f"--logger={name} needs `pip install {name}`."
        ) from error
    hparams["train_logger"] = LoggerGroup(hparams["train_logger"], logger)


def _make_wandb_logger(folder):
    import wandb
    from speechbrain.utils.train_logger import WandBLogger

    return WandBLogger(
        wandb.init, project="speechbrain-vq", name=folder.name, dir=str(folder)
    )
