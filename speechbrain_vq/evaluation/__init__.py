"""What the units are worth: unit quality, reconstruction, plots, report.

Authors
 * speechbrain_vq authors 2026
"""

from .evaluate import Evaluation, evaluate
from .report import write_report
from .sampling import Figure

__all__ = ["Evaluation", "Figure", "evaluate", "write_report"]
