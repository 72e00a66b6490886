"""Use pretrained models: tokenize, resynthesize, convert voices."""

from typing import TYPE_CHECKING

from .._lazy import attach

if TYPE_CHECKING:
    from .codec import EncodecAdapter
    from .conversion import VoiceConverter, convert_files
    from .engine import RayEngine
    from .files import reconstruct_files
    from .interfaces import VQPretrained
    from .shards import tokenize_shards
    from .tokenizer import VQTokenizer
    from .tokens import (
        read_tokens,
        tokenize_dataset,
        tokenize_files,
        tokenize_to,
        tokens_to_dataset,
        tokens_to_npz,
    )
    from .vocoders import load_vocoder

__getattr__, __dir__, __all__ = attach(
    __name__,
    {
        "codec": ["EncodecAdapter"],
        "conversion": ["VoiceConverter", "convert_files"],
        "engine": ["RayEngine"],
        "files": ["reconstruct_files"],
        "interfaces": ["VQPretrained"],
        "shards": ["tokenize_shards"],
        "tokenizer": ["VQTokenizer"],
        "tokens": [
            "read_tokens",
            "tokenize_dataset",
            "tokenize_files",
            "tokenize_to",
            "tokens_to_dataset",
            "tokens_to_npz",
        ],
        "vocoders": ["load_vocoder"],
    },
)
