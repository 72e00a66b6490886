"""Helpers for argument checks, distributed runs, precision and tracing."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn


def check_choice(name: str, value: Any, choices: Sequence) -> None:
    """Raise ValueError unless the value is one of the choices."""
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {tuple(choices)}, got {value!r}."
        )


def check_sizes(least: int = 1, **sizes: Any) -> None:
    """Raise ValueError unless all sizes are integers of at least ``least``."""
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < least:
            raise ValueError(
                f"{name} must be an integer >= {least}, got {size!r}."
            )


def world_size() -> int:
    """Return the number of ranks; 1 unless the run is distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def rank() -> int:
    """Return the rank of this process; 0 unless the run is distributed."""
    return distributed.get_rank() if world_size() > 1 else 0


class _Sum(torch.autograd.Function):
    # Each rank's output depends on all ranks' inputs, so gradients are summed.
    @staticmethod
    def forward(ctx, x):
        """Sum over all ranks."""
        x = x.clone()
        distributed.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, gradient):
        """Sum the gradients over all ranks."""
        return _Sum.apply(gradient)


def sum_over_ranks(x: Tensor) -> Tensor:
    """Sum a tensor over all ranks, differentiably."""
    return x if world_size() == 1 else _Sum.apply(x)


def gather_objects(value: Any) -> list:
    """Return the values of all ranks, ordered by rank, on every rank."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    distributed.all_gather_object(values, value)
    return values


@torch.no_grad()
def broadcast(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors in place with those of rank 0; skip sharded ones."""
    if world_size() == 1:
        return
    for tensor in tensors:
        if is_shard(tensor):
            continue
        sent = tensor.detach().clone()
        distributed.broadcast(sent, src=0)
        tensor.copy_(sent)


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Average the gradients over all ranks; skip sharded parameters."""
    for parameter in parameters:
        is_whole = parameter.requires_grad and not is_shard(parameter)
        if world_size() > 1 and is_whole:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            distributed.all_reduce(parameter.grad)
            parameter.grad /= world_size()


def is_shard(tensor: Tensor) -> bool:
    """Return whether FSDP or FSDP2 shards a tensor."""
    is_flattened = getattr(tensor, "_fsdp_flattened", False)
    return is_flattened or hasattr(tensor, "placements")


def keep_dtype(fn: Callable) -> Callable:
    """Wrap a function for ``nn.Module._apply`` so it keeps the dtype."""

    def moved(tensor):
        """Apply the function but keep the dtype."""
        changed = fn(tensor)
        same = changed.dtype == tensor.dtype
        return changed if same else tensor.to(changed.device)

    return moved


def is_recomputed() -> bool:
    """Return whether this forward runs within a backward pass, as in activation
    checkpointing, where state must not be updated again."""
    compiling = torch.compiler.is_compiling()
    return not compiling and torch._C._current_graph_task_id() != -1


def in_transform() -> bool:
    """Return whether a ``torch.func`` transform such as vmap is active."""
    compiling = torch.compiler.is_compiling()
    stack = torch._C._functorch.peek_interpreter_stack
    return not compiling and stack() is not None


def is_traced() -> bool:
    """Return whether tensor values may be unreadable: during compilation or
    tracing, or in a ``torch.func`` transform."""
    is_compiled = torch.compiler.is_compiling() or torch.jit.is_tracing()
    return is_compiled or in_transform()


def refuse_transform(module: nn.Module) -> None:
    """Raise RuntimeError if a ``torch.func`` transform is applied to a module
    in training mode."""
    if module.training and in_transform():
        raise RuntimeError(
            f"In training mode, {type(module).__name__} updates its state, "
            "which torch.func transforms do not allow: call eval() first."
        )
