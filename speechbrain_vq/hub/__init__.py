"""From a finished run to a folder and the Hub, and from there to a model.

Authors
 * speechbrain_vq authors 2026
"""

from typing import TYPE_CHECKING, Any

from .._lazy import attach

if TYPE_CHECKING:
    from .checks import ExportRefused
    from .errors import HubError
    from .export import export_pretrained
    from .load import load_pretrained
    from .plain import UnsafeHparamsError
    from .push import push_to_hub
    from .registry import register_module

_attached, __dir__, __all__ = attach(
    __name__,
    {
        "checks": ["ExportRefused"],
        "errors": ["HubError"],
        "export": ["export_pretrained"],
        "load": ["load_pretrained"],
        "plain": ["UnsafeHparamsError"],
        "push": ["push_to_hub"],
        "registry": ["register_module"],
    },
)


def __getattr__(name: str) -> Any:
    """Import a public name; tell what replaces one that is gone."""
    if name == "load_hparams_safely":
        # An AttributeError would lose its text in `from ... import`.
        raise ImportError(
            "load_hparams_safely is gone: model folders are read as data. "
            "load_pretrained loads a folder of registered classes "
            "(register_module adds one of your own); for any other yaml that "
            "you trust, hyperpyyaml.load_hyperpyyaml."
        )
    return _attached(name)
