"""Precision of newly built modules."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fp32_by_default() -> Iterator[None]:
    """Context manager in which the default dtype is fp32."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
