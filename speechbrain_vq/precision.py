"""Precision in which modules are built."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def fp32_by_default() -> Iterator[None]:
    """Within it, tensors are of fp32 where nothing else is asked for."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(default)
