"""K-means on the device of the data: greedy k-means++ seeds, then Lloyd."""

import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor

from speechbrain_vq.nnet.search import (
    first_copies,
    full_precision,
    nearest_with_distances,
)

logger = logging.getLogger(__name__)

# Candidates for a seed, in units of scikit-learn's 2 + ln K: twice as many
# lower the inertia by 1 to 2 % and still cost less than its one fit.
_TRIES = 2

# Seeds whose candidates share a matrix product, and the elements of the buffer
# that holds their distances (at least one seed's candidates are held).
_GROUP = 8
_GROUP_ELEMENTS = 2**21

# Rounds of moving empty clusters: one nearly always does.
_REPAIRS = 10


class KMeansResult(NamedTuple):
    """What `kmeans` found.

    Arguments
    ---------
    centroids : torch.Tensor
        Centroids [K, D], fp32, all finite.
    inertia : torch.Tensor
        Sum (not mean) of the squared distances of the vectors to their nearest
        centroids, a scalar; the same quantity as scikit-learn's `inertia_`.
    counts : torch.Tensor
        How many vectors each centroid is the nearest of, [K], int64.
    num_distinct : int
        How many distinct vectors there were.
    """

    centroids: Tensor
    inertia: Tensor
    counts: Tensor
    num_distinct: int


@torch.no_grad()
def kmeans(
    x: Tensor,
    num_clusters: int,
    max_iterations: int = 20,
    tolerance: float = 1e-4,
    generator: torch.Generator | int | None = None,
    fixed: Tensor | None = None,
    init: Tensor | None = None,
) -> KMeansResult:
    """Clusters vectors: greedy k-means++ seeding, then Lloyd's iterations.

    Each seed is the best of 2 (2 + ln K) candidates drawn by squared distance:
    the greedy variant that Arthur & Vassilvitskii name in the last section of
    "k-means++: The Advantages of Careful Seeding" (2007). Everything runs on
    the device of `x`, in fp32 whatever autocast says. Repeated vectors are
    clustered once, with their multiplicity as weight. A cluster left empty is
    moved to the vector farthest from its centroid.

    Arguments
    ---------
    x : torch.Tensor
        Vectors [N, D], any real floating dtype, all finite.
    num_clusters : int
        Number of centroids K. Where there are fewer distinct vectors than
        that, the surplus centroids are slightly jittered copies of them, no
        two alike, or stay where `init` has them, and a warning is logged.
    max_iterations : int
        Lloyd's iterations at most; 0 returns the seeds, or `init` with its
        empty clusters moved.
    tolerance : float
        Stop when an iteration lowers the inertia by less than this share.
    generator : torch.Generator or int
        Source of the random numbers, on any device, or the seed of one. The
        global CPU generator if None, which is left alone otherwise.
    fixed : torch.Tensor
        Centres [F, D] that stay as they are, 0 < F < K. They count as chosen
        before the first seed and are the first F centroids of the result.
    init : torch.Tensor
        Centroids [K, D] to start Lloyd's iterations from, without seeding:
        centroid i of the result is where number i of these moved to. Not
        together with `fixed`.

    Returns
    -------
    KMeansResult
        Centroids [K, D], inertia (a sum), counts [K], number of distinct
        vectors.

    Raises
    ------
    TypeError
        If `x`, `fixed` or `init` is not a real floating-point tensor.
    ValueError
        If `x` is not [N, D] with N > 0, if `fixed` is not [F, D] with F < K,
        if `init` is not [K, D] or comes with `fixed`, if one of them holds a
        value that is not finite in fp32, or `num_clusters` < 1.

    Example
    -------
    >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    >>> result = kmeans(x, num_clusters=2, generator=0)
    >>> result.centroids.sort(0).values
    tensor([[ 1.],
            [11.]])
    >>> result.inertia, result.counts
    (tensor(4.), tensor([2, 2]))
    """
    _check(x, num_clusters, fixed, init)
    x = x.float()
    fixed = x[:0] if fixed is None else fixed.to(x)
    if isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    distinct, counts = torch.unique(x, dim=0, return_counts=True)
    known = torch.cat([fixed, distinct])
    is_new = first_copies(known)[len(fixed) :] >= len(fixed)
    surplus = num_clusters - len(fixed) - int(is_new.sum())
    with full_precision(x.device.type):
        if surplus > 0:
            logger.warning(
                "k-means: only %d distinct vectors for %d clusters, so %d of "
                "the centroids are jittered copies of others, or stay",
                len(distinct),
                num_clusters,
                surplus,
            )
        if surplus > 0 and init is None:
            chosen = torch.cat([fixed, distinct[is_new]])
            centroids = _add_copies(chosen, distinct, surplus, generator)
        else:
            centre, scale = _frame(x)
            points, held = ((v - centre) / scale for v in (distinct, fixed))
            problem = _Problem(points, counts.float(), is_new.float(), held)
            if init is not None:
                centroids = (init.to(x) - centre) / scale
            else:
                seeds = _seed(problem, num_clusters - len(fixed), generator)
                centroids = torch.cat([held, points[seeds]])
            if surplus > 0:
                labels, _ = nearest_with_distances(points, centroids)
                _move(problem, centroids, labels)
            else:
                _lloyd(problem, centroids, max_iterations, tolerance)
            centroids = centroids * scale + centre
            centroids[: len(fixed)] = fixed
            if surplus > 0:
                stay = torch.bincount(labels, minlength=num_clusters) == 0
                centroids[stay] = init.to(x)[stay]
                _part_copies(centroids, distinct, generator)
        labels, distances = nearest_with_distances(x, centroids)
    return KMeansResult(
        centroids,
        distances.sum(),
        torch.bincount(labels, minlength=num_clusters),
        len(distinct),
    )


class _Problem(NamedTuple):
    """Distinct vectors to cluster, in units of their spread about their mean.

    Arguments
    ---------
    points : torch.Tensor
        Distinct vectors [U, D].
    weights : torch.Tensor
        How many times each occurs, [U], fp32.
    is_new : torch.Tensor
        0 for the vectors that a held centre equals, else 1, [U], fp32.
    held : torch.Tensor
        Centres that do not move, [F, D]; F may be 0.
    """

    points: Tensor
    weights: Tensor
    is_new: Tensor
    held: Tensor


def _check(
    x: Tensor, num_clusters: int, fixed: Tensor | None, init: Tensor | None
) -> None:
    """Raises if `x` [N, D] cannot be clustered with `fixed` and `init`."""
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    for name, tensor in (("x", x), ("fixed", fixed), ("init", init)):
        if tensor is None:
            continue
        if not tensor.is_floating_point():
            raise TypeError(
                f"{name} must be a real floating-point tensor, got "
                f"{tensor.dtype}"
            )
        if tensor.ndim != 2 or tensor.shape[1] != x.shape[-1]:
            raise ValueError(
                "x, fixed and init must be [N, D], [F, D] and [K, D], got "
                f"{name} {tuple(tensor.shape)} where x is {tuple(x.shape)}"
            )
        if not tensor.float().isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")
    if x.numel() == 0:
        raise ValueError(f"x holds no vectors: {tuple(x.shape)}")
    if init is not None and fixed is not None:
        raise ValueError("init and fixed exclude each other, got both")
    if init is not None and len(init) != num_clusters:
        raise ValueError(
            f"init must hold {num_clusters} centroids, got {len(init)}"
        )
    if fixed is not None and len(fixed) >= num_clusters:
        raise ValueError(
            f"{len(fixed)} fixed centres leave none of {num_clusters} clusters"
            " to be found"
        )


def _frame(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean [D] and largest deviation [] of `x` [N, D].

    In this frame no square overflows or underflows. The scale is rounded up to
    a power of two, which costs no bits.
    """
    centre = x.mean(0)
    exponent = torch.frexp((x - centre).abs().amax()).exponent
    return centre, torch.ldexp(torch.ones_like(centre[0]), exponent)


def _seed(
    problem: _Problem, num_seeds: int, generator: torch.Generator | None
) -> Tensor:
    """Greedy k-means++: indices [num_seeds] of distinct points.

    Candidates for a few seeds at a time are drawn from the distances as they
    stood before the first of them, since one matrix product for many is much
    faster than many for one. Each seed is still the candidate that lowers the
    inertia most given all seeds before it.
    """
    points, weights, is_new, held = problem
    is_new = is_new.clone()
    num_tries = _TRIES * (2 + int(math.log(len(held) + num_seeds)))
    draws = torch.rand(
        num_seeds,
        num_tries,
        dtype=torch.float64,
        generator=generator,
        device=generator.device if generator is not None else "cpu",
    ).to(points.device)
    seeds = torch.empty(num_seeds, dtype=torch.long, device=points.device)

    def to_draw_by(distances: Tensor) -> Tensor:
        # The floor keeps a choice among points too close for fp32.
        tiny = torch.finfo(torch.float32).tiny
        return distances.clamp(min=tiny).mul_(is_new)

    number = 0
    if len(held):
        closest = to_draw_by(nearest_with_distances(points, held)[1])
    else:
        seeds[0] = _draw(weights, draws[0, 0])
        is_new[seeds[0]] = 0
        closest = to_draw_by((points - points[seeds[0]]).square().sum(1))
        number = 1

    norms = points.square().sum(1, keepdim=True)
    ones = torch.ones_like(norms)
    rights = torch.cat([points, norms, ones], 1).t().contiguous()
    lefts = torch.cat([-2 * points, ones, norms], 1)
    largest = max(1, min(_GROUP, _GROUP_ELEMENTS // (num_tries * len(points))))
    kept = points.new_empty(largest, num_tries, len(points))
    while number < num_seeds:
        # Stale draws do no harm while the group is few beside all the seeds.
        size = max(1, min(largest, (len(held) + number) // 16))
        size = min(size, num_seeds - number)
        picks = _draw(closest * weights, draws[number : number + size])
        torch.mm(lefts[picks.flatten()], rights, out=kept[:size].flatten(0, 1))
        for tries, nearer in zip(picks, kept[:size], strict=True):
            torch.minimum(nearer, closest, out=nearer)
            best = (nearer @ weights).argmin()
            seeds[number] = tries[best]
            is_new[tries[best]] = 0
            closest = to_draw_by(nearer[best])
            number += 1
    # A point may be drawn twice within a group.
    repeats = first_copies(points[seeds]) != torch.arange(
        num_seeds, device=seeds.device
    )
    seeds[repeats] = closest.topk(int(repeats.sum())).indices
    return seeds


def _draw(weights: Tensor, draws: Tensor) -> Tensor:
    """Indices drawn by `weights` [U]; `draws` [...] are uniform in [0, 1)."""
    # fp32 would never reach the lightest of many points.
    mass = weights.cumsum(0, dtype=torch.float64)
    picks = torch.searchsorted(mass, draws * mass[-1], right=True)
    return picks.clamp_(max=len(weights) - 1)


def _lloyd(
    problem: _Problem, centroids: Tensor, max_iterations: int, tolerance: float
) -> None:
    """Lloyd's iterations on `centroids` [K, D], in place; none ends empty."""
    labels, distances = _assign(problem, centroids)
    inertia = float(distances.dot(problem.weights))
    for _ in range(max_iterations):
        _move(problem, centroids, labels)
        labels, distances = _assign(problem, centroids)
        previous, inertia = inertia, float(distances.dot(problem.weights))
        if previous - inertia <= tolerance * previous:
            break


def _assign(problem: _Problem, centroids: Tensor) -> tuple[Tensor, Tensor]:
    """Labels [U] and squared distances [U]; moves centroids that got nothing.

    They go to the points farthest from their centroids, as in scikit-learn.
    """
    num_held = len(problem.held)
    for _ in range(_REPAIRS):
        labels, distances = nearest_with_distances(problem.points, centroids)
        counts = torch.bincount(labels, minlength=len(centroids))
        empty = (counts[num_held:] == 0).nonzero().squeeze(1) + num_held
        if len(empty) == 0:
            break
        farthest = distances.topk(len(empty)).indices
        centroids[empty] = problem.points[farthest]
    return labels, distances


def _move(problem: _Problem, centroids: Tensor, labels: Tensor) -> None:
    """Moves each centroid of [K, D] to the mean of its points, in place."""
    points, weights, _, held = problem
    # Sums of sorted rows: atomic additions would make a GPU's sums depend on
    # the run, and ranks must agree.
    order = labels.argsort(stable=True)
    weights = weights[order].unsqueeze(1)
    rows = torch.cat([points[order] * weights, weights], 1)
    lengths = torch.bincount(labels, minlength=len(centroids))
    sums = torch.segment_reduce(rows, "sum", lengths=lengths)
    moved = sums[:, -1] > 0
    moved[: len(held)] = False
    means = sums[:, :-1] / sums[:, -1:]
    centroids.copy_(torch.where(moved.unsqueeze(1), means, centroids))


def _part_copies(
    centroids: Tensor, distinct: Tensor, generator: torch.Generator | None
) -> None:
    """Makes copies among `centroids` [K, D] jittered vectors, in place."""
    positions = torch.arange(len(centroids), device=centroids.device)
    copies = first_copies(centroids) != positions
    if num_copies := int(copies.sum()):
        others = centroids[~copies]
        parted = _add_copies(others, distinct, num_copies, generator)
        centroids[copies] = parted[len(others) :]


def _add_copies(
    chosen: Tensor,
    distinct: Tensor,
    num_copies: int,
    generator: torch.Generator | None,
) -> Tensor:
    """Appends jittered copies of `distinct` [U, D] to `chosen` [C, D].

    The jitter is a hundredth of the spread of the vectors, of their size where
    they have no spread, and grows until fp32 tells all copies apart.
    """
    spread = (distinct - distinct.mean(0)).square().mean().sqrt()
    size = distinct.abs().amax()
    size = torch.where(size > 0, size, 1)
    jitter = 1e-2 * torch.where(spread > 0, spread, size)
    sources = torch.arange(num_copies, device=distinct.device) % len(distinct)
    device = generator.device if generator is not None else "cpu"
    while True:
        noise = torch.randn(
            num_copies, distinct.shape[1], generator=generator, device=device
        )
        copies = distinct[sources] + jitter * noise.to(distinct)
        centroids = torch.cat([chosen, copies])
        first = first_copies(centroids)[-num_copies:]
        positions = torch.arange(len(chosen), len(centroids))
        if torch.equal(first.cpu(), positions):
            return centroids
        jitter = jitter * 2
