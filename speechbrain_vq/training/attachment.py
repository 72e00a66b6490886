"""Find quantizers and their optimizers, and set up parameter groups."""

from collections import Counter
from collections.abc import Iterable, Iterator, ValuesView
from typing import Any

from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer

from speechbrain_vq.nnet.quantizers import VectorQuantizer
from speechbrain_vq.nnet.utils import is_shard

# Key in the parameter group of a codebook. Its value, which is saved with the
# optimizer, is the index of the group whose learning rate the codebook follows.
LEADER = "codebook_leader"


def as_module(modules) -> nn.Module:
    """Return a module, or an iterable or dict of modules, as one module."""
    if isinstance(modules, nn.Module):
        return modules
    container = nn.ModuleDict if isinstance(modules, dict) else nn.ModuleList
    try:
        return container(modules)
    except TypeError:
        raise TypeError(
            "modules must be a torch.nn.Module, or an iterable or dict of "
            f"them, got {type(modules).__name__}: pass the model, not its "
            "parameters."
        ) from None


def find_quantizers(model: nn.Module) -> dict[str, VectorQuantizer]:
    """Return the vector quantizers in a model by dotted name, except those in a
    frozen module such as a tokenizer."""
    frozen = {
        part
        for module in model.modules()
        if getattr(module, "frozen", False) is True
        for part in module.modules()
    }
    quantizers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, VectorQuantizer) and module not in frozen
    }
    short = short_names(quantizers)
    return {short[name]: module for name, module in quantizers.items()}


# Names that DDP, torch.compile and checkpoint_wrapper add to module names.
_WRAPPERS = "module", "_orig_mod", "_checkpoint_wrapped_module"


def without_wrappers(name: str) -> str:
    """Remove wrappers such as DDP from the dotted name of a quantizer or of a
    part of it."""
    parts = [part for part in name.split(".") if part not in _WRAPPERS]
    return ".".join(parts) or "quantizer"


def short_names(names: Iterable[str]) -> dict[str, str]:
    """Map each name to its form without wrappers. Names that would collide
    stay unchanged."""
    short = {name: without_wrappers(name) for name in names}
    count = Counter(short.values())
    return {n: s if count[s] == 1 else n for n, s in short.items()}


def saved_names(saved: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """Return saved values by current names, which may lack the wrappers of the
    saved names."""
    if saved.keys() == set(names):
        return dict(saved)
    return {without_wrappers(name): value for name, value in saved.items()}


def find_optimizers(given, depth: int = 2) -> Iterator[Optimizer]:
    """Yield the optimizers in nested containers, unwrapped from Accelerate's,
    Lightning's and SAM's wrappers."""
    if isinstance(given, dict):
        given = given.values()
    # An iterator in an attribute of a Brain must not be consumed.
    kinds = list | tuple | ValuesView
    if isinstance(given, kinds | Iterator if depth == 2 else kinds) and depth:
        for item in given:
            yield from find_optimizers(item, depth - 1)
    for name in ("optimizer", "base_optimizer"):
        while isinstance(getattr(given, name, None), Optimizer):
            given = getattr(given, name)
    if isinstance(given, Optimizer):
        yield given


def is_sharded(model: nn.Module) -> bool:
    """Return whether FSDP shards any parameters of a model."""
    names = {type(module).__name__ for module in model.modules()}
    return "FullyShardedDataParallel" in names or any(
        is_shard(parameter) for parameter in model.parameters()
    )


def check_whole(name: str, codebook: nn.Parameter) -> None:
    """Raise ValueError if a codebook is sharded."""
    if codebook.dim() != 3 or is_shard(codebook):
        raise ValueError(
            f"The codebook of {name} is sharded, for example by FSDP, but "
            "k-means needs all of it: exclude the quantizer with "
            "fully_shard(..., ignored_params=set(quantizer.parameters())) or "
            "FullyShardedDataParallel(..., ignored_modules=[quantizer])."
        )


def give_own_group(optimizer: Optimizer, codebook: nn.Parameter) -> None:
    """Move a codebook from its parameter group to a new one."""
    leader, group, position = next(
        (leader, group, position)
        for leader, group in enumerate(optimizer.param_groups)
        for position, parameter in enumerate(group["params"])
        if parameter is codebook
    )
    if LEADER in group:
        return
    if isinstance(optimizer, LBFGS):
        raise ValueError(
            "LBFGS supports only one parameter group, and a codebook requires "
            "its own: pass the quantizer's parameters to another optimizer, "
            "e.g. Adam."
        )
    if type(optimizer).__name__ == "ZeroRedundancyOptimizer":
        raise ValueError(
            "ZeroRedundancyOptimizer distributes the parameters of a group over "
            "the ranks: pass the quantizer's parameters to another optimizer."
        )
    if "initial_lr" in group:
        raise ValueError(
            "A learning rate scheduler was created before CodebookTrainer, "
            "and lacks the codebook's parameter group: create the scheduler "
            "after it (in init_optimizers() of a Brain: call "
            "self.attach_trainer() between optimizers and schedulers)."
        )
    own = {**group, "params": [group["params"].pop(position)], LEADER: leader}
    if "param_names" in own:
        name = own.pop("param_names").pop(position)
        own["params"] = [(name, codebook)]
    if isinstance(own["lr"], Tensor):
        own["lr"] = own["lr"].clone()
    if "weight_decay" in own:
        own["weight_decay"] = 0.0
    optimizer.add_param_group(own)
