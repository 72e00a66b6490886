"""Export a training run as a model folder, and push it to the Hub."""

from .export import export_pretrained
from .push import push_to_hub
from .run import Run
from .validate import ExportRefused

__all__ = ["ExportRefused", "Run", "export_pretrained", "push_to_hub"]
