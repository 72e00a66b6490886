"""The codebook's own optimizer, whose learning rate is a multiple of the
model's whatever a scheduler does to that one.

Authors
 * speechbrain_vq authors 2026
"""

import inspect
from collections.abc import Iterable

import torch
from torch.optim import Optimizer


class CodebookOptimizer:
    """Takes the codebooks out of the optimizers that hold them and gives them
    one of their own, of the same class and settings but without weight decay,
    which would draw unused codewords to zero.

    A parameter group would not do: SpeechBrain's schedulers write one learning
    rate to all groups, and its clipping sees the first only.

    Arguments
    ---------
    optimizers : iterable of torch.optim.Optimizer
        The optimizers of the model, without state yet.
    codebooks : list of torch.nn.Parameter
        The codebooks.
    multiplier : float
        Their learning rate over that of the group which held them (arXiv
        2005.08520 uses 10).

    Raises
    ------
    ValueError
        If a codebook is in none of the optimizers, if two follow different
        learning rates, or the multiplier is not positive.

    Example
    -------
    >>> network, codebook = torch.nn.Linear(2, 2), torch.nn.Embedding(8, 2)
    >>> parameters = [*network.parameters(), *codebook.parameters()]
    >>> model_optimizer = torch.optim.Adam(parameters, lr=0.01)
    >>> own = CodebookOptimizer([model_optimizer], [codebook.weight], 10)
    >>> model_optimizer.param_groups[0]["lr"] = 0.003
    >>> own.follow()
    >>> own.optimizer.param_groups[0]["lr"]
    0.03
    """

    def __init__(
        self,
        optimizers: Iterable[Optimizer],
        codebooks: list[torch.nn.Parameter],
        multiplier: float,
    ):
        if not multiplier > 0:
            raise ValueError(
                f"codebook_lr_multiplier must be above 0, got {multiplier!r}."
            )
        self.multiplier = multiplier
        optimizers = list(optimizers)
        leaders = [_take_out(optimizers, codebook) for codebook in codebooks]
        if len({(id(leader), group) for leader, group in leaders}) > 1:
            raise ValueError(
                "The codebooks lie in different optimizers or parameter "
                "groups, whose learning rates may differ: give them all to one."
            )
        self.leader, self.group = leaders[0]
        self.optimizer = _sibling(self.leader, codebooks)
        self.follow()

    def follow(self) -> None:
        """Sets the learning rate to the multiple of the model's; to be called
        before each step."""
        lr = self.multiplier * self.leader.param_groups[self.group]["lr"]
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr


def _take_out(
    optimizers: Iterable[Optimizer], codebook: torch.nn.Parameter
) -> tuple[Optimizer, int]:
    """Removes a parameter; returns where it was."""
    for optimizer in optimizers:
        for index, group in enumerate(optimizer.param_groups):
            rest = [p for p in group["params"] if p is not codebook]
            if len(rest) < len(group["params"]):
                group["params"] = rest
                return optimizer, index
    raise ValueError(
        "A codebook that learns by gradient is in none of the optimizers: "
        "init_optimizers() of the Brain must give the quantizer's parameters "
        "to one of them."
    )


def _sibling(leader: Optimizer, parameters: list) -> Optimizer:
    accepted = inspect.signature(type(leader).__init__).parameters
    settings = {k: v for k, v in leader.defaults.items() if k in accepted}
    if "weight_decay" in settings:
        settings["weight_decay"] = 0.0
    return type(leader)(parameters, **settings)


@torch.no_grad()
def reset_rows(
    optimizer: Optimizer, parameter: torch.nn.Parameter, rows: torch.Tensor
) -> None:
    """Makes an optimizer forget rewritten rows of a parameter.

    Where all rows are new, so is the state. Where some are, their momentum is
    zero and their second moments are the mean of those of the rows kept: zero
    there would make the next steps several times too long, as the count of
    steps, on which the correction for the start rests, is the parameter's.

    Arguments
    ---------
    optimizer : torch.optim.Optimizer
        The optimizer.
    parameter : torch.nn.Parameter
        One of its parameters, [C, K, d].
    rows : torch.Tensor
        The rewritten rows, booleans [C, K].
    """
    if rows.all():
        optimizer.state.pop(parameter, None)
        return
    for name, value in optimizer.state.get(parameter, {}).items():
        if torch.is_tensor(value) and value.shape == parameter.shape:
            second = "sq" in name or name == "sum"
            value[rows] = value[~rows].mean(0) if second else 0.0
