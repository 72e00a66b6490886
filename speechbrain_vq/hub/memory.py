"""How much memory a stranger's model may take: its tensors, and how many
modules it is made of.

Authors
 * speechbrain_vq authors 2026
"""

import functools
import threading

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from .names import Refusal

MAX_BYTES = 2**32
# Calls of PyTorch, so that a yaml of endless small tensors comes to an end.
# Models have some ten for each of their tensors.
MAX_CALLS = 2**15
# Modules made and copied, and parameters. The largest models have some 2000.
MAX_PARTS = 2**13
# Each module passes through one of the first two; what does not is not seen.
COUNTED = ("__init__", "__setstate__", "register_parameter")
# Of the methods that work in place, those that take memory.
GROWING = ("aten::resize_", "aten::resize_as_", "aten::set_")
NOT_ON_META = ("generator", "pin_memory")


class TensorLimit(TorchDispatchMode):
    """Refuses tensors beyond a number of bytes before their memory is taken,
    and modules and parameters beyond ``MAX_PARTS``.

    All that is asked for within the ``with``, in its thread, counts, given
    back or not. What an operator takes for itself and gives back before it
    ends is not seen, nor is memory that is neither tensor nor module.

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
        self.calls = self.parts = 0
        self.outer = None

    def __enter__(self):
        _count_parts(True)
        self.outer, _here.limit = _here.limit, self
        return super().__enter__()

    def __exit__(self, *error):
        _here.limit = self.outer
        _count_parts(False)
        return super().__exit__(*error)

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
        if self.parts > MAX_PARTS:
            raise Refusal(f"it has over {MAX_PARTS} modules and parameters")


class _Here(threading.local):
    limit = None


_here = _Here()
_lock = threading.Lock()
_users = 0


def _count_parts(on):
    """Changes torch.nn.Module for as long as any thread has a limit; those
    without one notice nothing."""
    global _users
    with _lock:
        _users += 1 if on else -1
        if _users == on:
            for name in COUNTED:
                method = getattr(torch.nn.Module, name)
                method = _counted(method) if on else method.__wrapped__
                setattr(torch.nn.Module, name, method)


def _counted(method):
    @functools.wraps(method)
    def counted(*args, **kwargs):
        limit = _here.limit
        if limit is not None:
            limit.parts += 1
            limit.check()
        return method(*args, **kwargs)

    return counted


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
