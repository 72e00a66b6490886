"""Pretrained models: tokens out, waveforms back.

Authors
 * speechbrain_vq authors 2026
"""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .tokenizer import VQTokenizer

__getattr__, __dir__, __all__ = attach(__name__, {"tokenizer": ["VQTokenizer"]})
