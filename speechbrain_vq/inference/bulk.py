"""Moved to ``speechbrain_vq.inference.tokens``; kept for one release."""

from .tokens import read_tokens as read_lines
from .tokens import tokenize_files

__all__ = ["read_lines", "tokenize_files"]
