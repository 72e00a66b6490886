"""Report package versions, and check file format versions."""

import importlib.metadata
import platform

import torch


def versions(*others: str) -> str:
    """Return the versions of this package, torch, ``others`` and Python, and
    the machine, separated by commas."""
    packages = {
        "speechbrain_vq": importlib.metadata.version("speechbrain-vq"),
        "torch": torch.__version__,
        **{name: importlib.metadata.version(name) for name in others},
        "Python": platform.python_version(),
    }
    parts = [f"{name} {version}" for name, version in packages.items()]
    return ", ".join([*parts, platform.machine()])


def check_format(place, number, newest: int, version: str | None) -> None:
    """Raise ValueError if the format of a file, written by ``version`` of this
    package, is newer than ``newest``."""
    if number not in range(newest + 1):
        raise ValueError(
            f"{place} was written by speechbrain_vq {version}, in format "
            f"{number}; this version reads formats up to {newest}: install "
            "that version."
        )
