"""How much memory the tensors of a stranger's model may take.

Authors
 * speechbrain_vq authors 2026
"""

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from .names import Refusal

MAX_BYTES = 2**32
# Calls of PyTorch, so that a yaml of endless small tensors comes to an end.
# Models have some ten for each of their tensors.
MAX_CALLS = 2**15
# Of the methods that work in place, those that take memory.
GROWING = ("aten::resize_", "aten::resize_as_", "aten::set_")
NOT_ON_META = ("generator", "pin_memory")


class TensorLimit(TorchDispatchMode):
    """Refuses tensors beyond a number of bytes before their memory is taken.

    All that is asked for within the ``with`` counts, given back or not. What
    an operator takes for itself and gives back before it ends is not seen.

    Arguments
    ---------
    max_bytes : int
        The number.

    Example
    -------
    >>> with TensorLimit(2**20):
    ...     torch.nn.Linear(1000, 1000)
    Traceback (most recent call last):
    speechbrain_vq.hub.names.Refusal: its tensors take more than 1048576 bytes
    """

    def __init__(self, max_bytes: int) -> None:
        super().__init__()
        self.max_bytes = self.left = max_bytes
        self.calls = 0

    @classmethod
    def _should_skip_dynamo(cls):
        # Where PyTorch asks, True makes it import its compiler: seconds.
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        size = _foresee(func, args, kwargs)
        self.calls += 1
        self.left -= size or 0
        self.check()
        result = func(*args, **kwargs)
        if size is None:
            self.left -= _new_bytes(result, (args, kwargs))
            self.check()
        return result

    def check(self) -> None:
        """Raises the Refusal again, should a constructor have caught it."""
        if self.left < 0:
            raise Refusal(f"its tensors take more than {self.max_bytes} bytes")
        if self.calls > MAX_CALLS:
            raise Refusal(f"it takes over {MAX_CALLS} operations on tensors")


def _foresee(func, args, kwargs):
    """Bytes that a call will take, None where only the call itself tells."""
    name = func._schema.name
    if name.endswith("_") and name not in GROWING:
        return 0
    args, kwargs = tree_map_only(torch.Tensor, _meta, (args, kwargs))
    kwargs = {k: v for k, v in kwargs.items() if k not in NOT_ON_META}
    asks = {argument.name for argument in func._schema.arguments}
    if "device" in asks:
        kwargs["device"] = "meta"
    before = _storages((args, kwargs))
    try:
        result = func(*args, **kwargs)
    except Exception:
        return None
    after = _storages((result, args, kwargs))
    return sum(after.values()) - sum(before.values())


def _meta(tensor):
    return torch.empty_strided(
        tensor.size(), tensor.stride(), dtype=tensor.dtype, device="meta"
    )


def _new_bytes(result, given):
    old = _storages(given)
    return sum(n for key, n in _storages(result).items() if key not in old)


def _storages(tree):
    """Bytes by storage: a view takes none of its own."""
    tensors = [t for t in tree_flatten(tree)[0] if torch.is_tensor(t)]
    storages = [
        t.untyped_storage() for t in tensors if t.layout is torch.strided
    ]
    return {storage._cdata: storage.nbytes() for storage in storages}
