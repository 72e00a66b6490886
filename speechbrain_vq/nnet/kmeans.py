"""K-means on the device of the data: greedy k-means++ seeding, then Lloyd."""

import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor

from speechbrain_vq.nnet.search import full_precision, nearest_with_distances

logger = logging.getLogger(__name__)

# Candidates per seed, as a multiple of scikit-learn's 2 + ln K. Twice as many
# lower the inertia by 1 to 2 %, and are still faster than scikit-learn's fit.
_TRIES = 2

# Maximum number of seeds whose candidates share a matrix product, and maximum
# size of that product.
_GROUP, _GROUP_ELEMENTS = 8, 2**21

# Maximum number of clusters with exact search and seeding. Above it, both use a
# coarse clustering into sqrt(K) parts, computed from _PART_VECTORS vectors per
# part: with K = 8,192, a tenth of the time for an inertia 1 to 10 % higher.
_MAX_EXACT = 4096
_PART_VECTORS, _PART_ITERATIONS = 256, 5

# Maximum number of rounds of moving empty clusters; one nearly always suffices.
_REPAIRS = 10


class KMeansResult(NamedTuple):
    """Result of ``kmeans``: finite fp32 centroids [K, D], the sum of squared
    distances from vectors to their centroids, and vectors per centroid [K]."""

    centroids: Tensor
    inertia: Tensor
    counts: Tensor


@torch.no_grad()
def kmeans(
    x: Tensor,
    num_clusters: int,
    max_iterations: int = 20,
    tolerance: float = 1e-4,
    generator: torch.Generator | int | None = None,
    init: Tensor | None = None,
) -> KMeansResult:
    """Cluster vectors in fp32 on their device, by greedy k-means++ seeding and
    Lloyd's iterations.

    Each seed is the best of 2 (2 + ln K) candidates, which are drawn with
    probabilities proportional to squared distances (Arthur & Vassilvitskii,
    "k-means++: The Advantages of Careful Seeding", 2007, last section). An
    empty cluster moves to the vector farthest from its centroid.

    With more than 4,096 clusters, seeds are chosen within the parts of a coarse
    clustering, and ``InvertedLists`` assigns vectors, in O(N sqrt(K)).

    Arguments
    ---------
    x : torch.Tensor
        Vectors [N, D] of any real floating dtype, all finite.
    num_clusters : int
        Number of centroids K. If there are fewer distinct vectors, distinct
        jittered copies of them are added, with a warning.
    max_iterations : int
        Maximum number of Lloyd's iterations; 0 returns the seeds.
    tolerance : float
        Relative decrease in inertia at which iterations stop.
    generator : torch.Generator or int, optional
        Random generator or seed; by default the global CPU generator.
    init : torch.Tensor, optional
        Initial centroids [K, D], which keep their indices. Those without
        vectors are replaced with new seeds, or with jittered copies.

    Returns
    -------
    KMeansResult
        Named tuple (centroids [K, D], inertia, counts [K]).

    Example
    -------
    >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]])
    >>> centroids, inertia, counts = kmeans(x, num_clusters=2, generator=0)
    >>> centroids.sort(0).values, inertia, counts
    (tensor([[ 1.],
            [11.]]), tensor(4.), tensor([2, 2]))
    """
    _check(x, num_clusters, init)
    x = x.float()
    if generator is None:
        generator = torch.default_generator
    elif isinstance(generator, int):
        generator = torch.Generator().manual_seed(generator)
    # Scaling by a power of two is exact, and prevents over- and underflow.
    exponent = torch.frexp(x.abs().amax()).exponent
    scale = torch.ldexp(torch.ones_like(x[0, 0]), exponent - 1)
    points, counts = torch.unique(x / scale, dim=0, return_counts=True)
    weights = counts.float()
    rows = torch.arange(num_clusters, device=x.device)
    centroids, is_empty = points[rows % len(points)], rows >= 0
    with full_precision(x.device.type):
        coarse = None
        if _MAX_EXACT < num_clusters <= len(points):
            parts = math.isqrt(num_clusters)
            coarse = _coarse_centroids(points, weights, parts, generator)
        if init is not None:
            copies, centroids = centroids, init.to(x) / scale
            labels, _ = nearest_with_distances(points, centroids, coarse)
            is_empty = torch.bincount(labels, minlength=num_clusters) == 0
        if len(points) < num_clusters:
            logger.warning(
                f"k-means: only {len(points)} distinct vectors for "
                f"{num_clusters} clusters, so the other centroids are jittered "
                "copies of them"
            )
            if init is not None:
                _move(points, weights, centroids, labels)
                centroids[is_empty] = copies[is_empty]
            # Of equal centroids, only the first stays in place.
            order = is_empty.int().argsort(stable=True)
            centroids[order] = _jitter_copies(centroids[order], generator)
        else:
            num_seeds, closest = int(is_empty.sum()), None
            if 0 < num_seeds < num_clusters:
                others = centroids[~is_empty]
                _, closest = nearest_with_distances(points, others, coarse)
            if num_seeds:
                centroids[is_empty] = _seed_in_parts(
                    points, weights, num_seeds, generator, closest, coarse
                )
            budget = max_iterations, tolerance
            _lloyd(points, weights, centroids, *budget, coarse)
        centroids *= scale
        if coarse is not None:
            coarse *= scale
        labels, distances = nearest_with_distances(x, centroids, coarse)
    counts = torch.bincount(labels, minlength=num_clusters)
    return KMeansResult(centroids, distances.sum(), counts)


def _check(x, num_clusters, init):
    if num_clusters < 1:
        raise ValueError(f"num_clusters must be at least 1, got {num_clusters}")
    dim = x.shape[-1] if x.ndim else 0
    for name, rows, size in (("x", x, len(x)), ("init", init, num_clusters)):
        if rows is None:
            continue
        if not rows.is_floating_point():
            raise TypeError(
                f"{name} must be a real floating-point tensor, got {rows.dtype}"
            )
        if rows.shape != (size, dim) or not rows.numel():
            raise ValueError(
                f"x must be [N, D] with N and D above 0, and init "
                f"[{num_clusters}, D]; got {name} {tuple(rows.shape)} with x "
                f"{tuple(x.shape)}"
            )
        if not rows.float().isfinite().all():
            raise ValueError(f"{name} has values that are not finite")


def _seed(points, weights, num_seeds, generator, closest=None):
    """Choose ``num_seeds`` of the weighted points [U, D] as seeds by greedy
    k-means++. ``closest`` [U] contains squared distances to existing seeds. The
    candidates for a group of seeds are drawn from the same distances, so they
    share one matrix product."""
    num_tries = _TRIES * (2 + int(math.log(num_seeds)))
    draws = torch.empty(num_seeds, num_tries, dtype=torch.float64)
    draws = draws.to(generator.device).uniform_(generator=generator)
    draws = draws.to(points.device)
    # A minimum distance lets points too close for fp32 be drawn.
    tiny = torch.finfo(torch.float32).tiny
    if closest is None:
        closest = torch.full_like(weights, 1e9)
    closest = closest.clamp(min=tiny)
    available = weights.clone()
    centered = points - points.mean(0)
    norms = centered.square().sum(1, keepdim=True)
    ones = torch.ones_like(norms)
    rights = torch.cat([centered, norms, ones], 1).t().contiguous()
    lefts = torch.cat([-2 * centered, ones, norms], 1)
    largest = max(1, min(_GROUP, _GROUP_ELEMENTS // (num_tries * len(points))))
    buffer = points.new_empty(largest, num_tries, len(points))
    seeds = []
    while len(seeds) < num_seeds:
        # Outdated distances are harmless if the group is a small part of all
        # seeds.
        size = max(1, min(largest, len(seeds) // 16))
        # An fp32 sum would lose the lightest of many points.
        mass = (closest * available).cumsum(0, dtype=torch.float64)
        targets = draws[len(seeds) : len(seeds) + size] * mass[-1]
        picks = torch.searchsorted(mass, targets, right=True)
        picks.clamp_(max=len(points) - 1)
        distances = buffer[: len(picks)]
        torch.mm(lefts[picks.flatten()], rights, out=distances.flatten(0, 1))
        for tries, nearer in zip(picks, distances, strict=True):
            torch.minimum(nearer, closest, out=nearer)
            best = (nearer @ weights).argmin()
            closest = nearer[best].clamp(min=tiny)
            seeds.append(tries[best])
            available[seeds[-1]] = 0
    # Duplicates within a group are replaced with the farthest points.
    seeds = torch.stack(seeds).unique()
    farthest = (closest * available).topk(num_seeds - len(seeds)).indices
    return points[torch.cat([seeds, farthest])]


def _coarse_centroids(points, weights, parts, generator):
    """Cluster a sample of weighted points [U, D] into ``parts`` clusters."""
    # Points are sorted, so evenly spaced ones are distributed like all points.
    step = max(1, len(points) // (_PART_VECTORS * parts))
    points, weights = points[::step].contiguous(), weights[::step].contiguous()
    centroids = _seed(points, weights, parts, generator)
    _lloyd(points, weights, centroids, _PART_ITERATIONS, 1e-4)
    return centroids


def _seed_in_parts(points, weights, num_seeds, generator, closest, coarse):
    """Choose seeds as ``_seed`` does. If ``coarse`` centroids are given, choose
    within their clusters, in proportion to each cluster's inertia."""
    if coarse is None:
        return _seed(points, weights, num_seeds, generator, closest)
    labels, distances = nearest_with_distances(points, coarse)
    sizes = torch.bincount(labels, minlength=len(coarse))
    numbers = sizes.clamp(max=int(closest is None))
    distances = distances if closest is None else closest
    share = torch.zeros_like(sizes, dtype=torch.float64)
    share.index_add_(0, labels, (distances * weights).double())
    share.clamp_(min=torch.finfo(share.dtype).tiny)
    while (missing := num_seeds - int(numbers.sum())) > 0:
        # If all points of a part are seeds, other parts get its share.
        share[numbers >= sizes] = 0
        more = (share / share.sum() * missing).floor().long()
        if not more.any():
            more[share.topk(min(missing, int((share > 0).sum()))).indices] = 1
        numbers += torch.minimum(more, sizes - numbers)
    order = labels.argsort(stable=True)
    seeds = []
    parts = order.split(sizes.tolist())
    for part, number in zip(parts, numbers.tolist(), strict=True):
        inside, near = points[part], None if closest is None else closest[part]
        if 0 < number < len(part):
            inside = _seed(inside, weights[part], number, generator, near)
        seeds.append(inside[:number])
    return torch.cat(seeds)


def _lloyd(points, weights, centroids, max_iterations, tolerance, coarse=None):
    """Run Lloyd's iterations in place, leaving no centroid without points."""
    labels, distances = _assign(points, centroids, coarse)
    inertia = float(distances.dot(weights))
    for _ in range(max_iterations):
        _move(points, weights, centroids, labels)
        labels, distances = _assign(points, centroids, coarse)
        previous, inertia = inertia, float(distances.dot(weights))
        if previous - inertia <= tolerance * previous:
            break


def _assign(points, centroids, coarse=None):
    """Return labels [U] and squared distances [U], after moving empty clusters
    to the points farthest from their centroids, as in scikit-learn."""
    for _ in range(_REPAIRS):
        labels, distances = nearest_with_distances(points, centroids, coarse)
        counts = torch.bincount(labels, minlength=len(centroids))
        empty = (counts == 0).nonzero().squeeze(1)
        if len(empty) == 0:
            break
        centroids[empty] = points[distances.topk(len(empty)).indices]
    return labels, distances


def _move(points, weights, centroids, labels):
    """Move each centroid to the mean of its points, in place."""
    # Rows are sorted because atomic additions are not deterministic on a GPU,
    # and ranks must agree. Summing differences avoids the loss of precision
    # from an offset common to all points.
    order = labels.argsort(stable=True)
    masses = weights[order].unsqueeze(1)
    steps = (points - centroids[labels])[order] * masses
    lengths = torch.bincount(labels, minlength=len(centroids))
    rows = torch.cat([steps, masses], 1)
    sums = torch.segment_reduce(rows, "sum", lengths=lengths)
    centroids += sums[:, :-1] / sums[:, -1:].clamp(min=1)


def _jitter_copies(centroids, generator):
    """Jitter centroids [K, D] that equal an earlier one by a hundredth of the
    overall spread, or by more until they differ in fp32."""
    spread = (centroids - centroids.mean(0)).square().mean().sqrt()
    # Without a spread, use 1: points are scaled to about that size.
    jitter = 1e-2 * torch.where(spread > 0, spread, 1)
    while True:
        _, group = torch.unique(centroids, dim=0, return_inverse=True)
        ordered, order = group.sort(stable=True)
        copies = order[1:][ordered.diff() == 0]
        if len(copies) == 0:
            return centroids
        noise = torch.empty(len(copies), centroids.shape[1])
        noise = noise.to(generator.device).normal_(generator=generator)
        centroids[copies] += jitter * noise.to(centroids)
        jitter = 2 * jitter
