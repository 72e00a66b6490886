"""Former name of ``speechbrain_vq.inference.tokens``, kept for one release."""

import warnings

from .token_files import read_tokens as read_lines
from .tokens import tokenize_files

__all__ = ["read_lines", "tokenize_files"]

warnings.warn(
    "speechbrain_vq.inference.bulk has moved to speechbrain_vq.inference.tokens.",
    DeprecationWarning,
    stacklevel=2,
)
