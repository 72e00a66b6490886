"""Training of codebooks: trainer, schedules, monitoring, exact resume.

Only ``VQMixin`` and ``VQBrain`` import SpeechBrain, when they are first used.
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
