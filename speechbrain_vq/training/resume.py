"""Exact resume for SpeechBrain, for any Brain: atomic checkpoints, random state,
loaders and signals."""

from .checkpoints import AtomicCheckpointer
from .signals import GentleStop, outlive_signals
from .states import RandomState, TrainerState, loader_generator

__all__ = [
    "AtomicCheckpointer",
    "GentleStop",
    "RandomState",
    "TrainerState",
    "loader_generator",
    "outlive_signals",
]
