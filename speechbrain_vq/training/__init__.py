"""Codebook training: trainer, schedules, monitoring and exact resume.

SpeechBrain is imported on the first use of ``VQMixin`` or ``VQBrain``.
"""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .brain import VQBrain, VQMixin
    from .monitor import UsageMonitor
    from .schedules import ReinitSchedule
    from .trainer import CodebookTrainer

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "brain": ["VQBrain", "VQMixin"],
        "monitor": ["UsageMonitor"],
        "schedules": ["ReinitSchedule"],
        "trainer": ["CodebookTrainer"],
    },
)
