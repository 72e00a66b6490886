"""Use pretrained models: tokenize, resynthesize, convert voices."""

from .codec import EncodecAdapter
from .conversion import VoiceConverter, convert_files
from .engine import RayEngine
from .files import reconstruct_files
from .interfaces import VQPretrained
from .shards import tokenize_shards
from .token_files import read_tokens, tokens_to_dataset, tokens_to_npz
from .tokenizer import VQTokenizer
from .tokens import tokenize_dataset, tokenize_files, tokenize_to
from .vocoder_loading import load_vocoder

__all__ = [
    "EncodecAdapter",
    "RayEngine",
    "VQPretrained",
    "VQTokenizer",
    "VoiceConverter",
    "convert_files",
    "load_vocoder",
    "read_tokens",
    "reconstruct_files",
    "tokenize_dataset",
    "tokenize_files",
    "tokenize_shards",
    "tokenize_to",
    "tokens_to_dataset",
    "tokens_to_npz",
]
