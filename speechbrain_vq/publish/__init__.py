"""From a training run to a model folder, and from there to the Hub."""

from .export import export_pretrained
from .push import push_to_hub
from .run import Run
from .validate import ExportRefused

__all__ = ["ExportRefused", "Run", "export_pretrained", "push_to_hub"]
