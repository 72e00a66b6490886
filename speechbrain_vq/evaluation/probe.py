"""Linear probes: what can be read off by a logistic regression.

Authors
 * speechbrain_vq authors 2026
"""

import random
from collections.abc import Callable, Sequence

import torch
from torch.nn.functional import cross_entropy, embedding_bag


def fit_probe(
    inputs: torch.Tensor,
    labels: torch.Tensor,
    num_classes: int,
    l2: float = 1.0,
    iterations: int = 100,
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Multinomial logistic regression: the sum of cross entropies plus ``l2``
    / 2 times the squared weights, as scikit-learn's ``LogisticRegression``
    with ``C = 1 / l2``, is minimized by L-BFGS.

    Arguments
    ---------
    inputs : torch.Tensor
        Vectors, [N, D]; or integers [N, C], numbers of inputs that are 1 while
        all others are 0.
    labels : torch.Tensor
        Classes, [N].
    num_classes : int
        How many there are.
    l2 : float
        Weight of the penalty.
    iterations : int
        At most.

    Returns
    -------
    callable
        From inputs to logits, [N, num_classes].

    Example
    -------
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> probe = fit_probe(x, torch.tensor([0, 0, 1, 1]), 2)
    >>> probe(torch.tensor([[-3.0], [0.5]])).argmax(1)
    tensor([0, 1])
    """
    sparse = not inputs.is_floating_point()
    size = int(inputs.max()) + 1 if sparse else inputs.shape[1]
    dtype = torch.float32 if sparse else inputs.dtype
    weight = torch.zeros(size, num_classes, dtype=dtype, requires_grad=True)
    bias = torch.zeros(num_classes, dtype=dtype, requires_grad=True)

    def logits(x):
        if not sparse:
            return x @ weight + bias
        # What was never seen in training says nothing.
        known = (x < size).to(dtype)
        return bias + embedding_bag(
            x.clamp(max=size - 1), weight, mode="sum", per_sample_weights=known
        )

    solver = torch.optim.LBFGS(
        [weight, bias],
        max_iter=iterations,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )

    def closure():
        solver.zero_grad()
        loss = cross_entropy(logits(inputs), labels, reduction="sum")
        loss = (loss + l2 / 2 * weight.square().sum()) / len(labels)
        loss.backward()
        return loss

    with torch.enable_grad():
        solver.step(closure)
    weight.requires_grad_(False)
    bias.requires_grad_(False)
    return logits


def folds(groups: Sequence, number: int = 5, seed: int = 0) -> torch.Tensor:
    """Deals out each group, in random order, to folds one after another.

    Arguments
    ---------
    groups : sequence
        What each of N belongs to, as its class.
    number : int
        Of folds.
    seed : int
        Of the order.

    Returns
    -------
    torch.Tensor
        The fold of each, [N].

    Example
    -------
    >>> folds("aabb", 2).view(2, 2).sum(1)
    tensor([1, 1])
    """
    found, next_one = torch.zeros(len(groups), dtype=torch.long), 0
    for group in sorted(set(groups)):
        members = [i for i, other in enumerate(groups) if other == group]
        random.Random(f"{seed} {group}").shuffle(members)
        for member in members:
            found[member] = next_one % number
            next_one += 1
    return found


def held_out(
    inputs: torch.Tensor, labels: Sequence, fold: torch.Tensor, l2: float = 1.0
) -> torch.Tensor:
    """Whether a probe that has not seen its fold gets each one right.

    Vectors are standardized by mean and deviation of what is trained on.

    Arguments
    ---------
    inputs : torch.Tensor
        See ``fit_probe``.
    labels : sequence
        What is to be read off.
    fold : torch.Tensor
        As ``folds`` gives it, [N].
    l2 : float
        Weight of the penalty.

    Returns
    -------
    torch.Tensor
        True or False, [N].

    Example
    -------
    >>> x = torch.tensor([[-2.0], [-1.0], [1.0], [2.0]])
    >>> held_out(x, "aabb", torch.tensor([0, 1, 0, 1]))
    tensor([True, True, True, True])
    """
    classes = sorted(set(labels))
    targets = torch.tensor([classes.index(label) for label in labels])
    right = torch.zeros(len(targets), dtype=torch.bool)
    for one in fold.unique():
        train, test = fold != one, fold == one
        if not train.any():
            continue
        x = inputs
        if x.is_floating_point():
            mean, std = x[train].mean(0), x[train].std(0, correction=0)
            x = (x - mean) / torch.where(std > 1e-6, std, 1.0)
        probe = fit_probe(x[train], targets[train], len(classes), l2)
        right[test] = probe(x[test]).argmax(1) == targets[test]
    return right
