"""Pretrained models: tokens out, waveforms back.

Authors
 * speechbrain_vq authors 2026
"""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .bulk import tokenize_files
    from .conversion import VoiceConverter, convert_files
    from .datasets import tokenize_dataset
    from .interfaces import VQPretrained
    from .outputs import tokenize_to
    from .resynthesis import reconstruct_files
    from .tokenizer import VQTokenizer
    from .vocoders import load_vocoder

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "bulk": ["tokenize_files"],
        "conversion": ["VoiceConverter", "convert_files"],
        "datasets": ["tokenize_dataset"],
        "interfaces": ["VQPretrained"],
        "outputs": ["tokenize_to"],
        "resynthesis": ["reconstruct_files"],
        "tokenizer": ["VQTokenizer"],
        "vocoders": ["load_vocoder"],
    },
)
