"""K-means on the device of the data: greedy k-means++ seeds, then Lloyd."""

import logging
import math
from typing import NamedTuple

import torch
from torch import Tensor

from speechbrain_vq.nnet.search import full_precision, nearest_with_distances

logger = logging.getLogger(__name__)

# Candidates for a seed, in units of scikit-learn's 2 + ln K: twice as many
# lower the inertia by 1 to 2 % and still cost less than its one fit.
_TRIES = 2

# Most seeds whose candidates share a matrix product, and most elements of it.
_GROUP, _GROUP_ELEMENTS = 8, 2**21

# Clusters up to which seeds are chosen one by one among all vectors, and vectors
# searched exactly. Beyond, both go by sqrt(K) parts, from so many vectors for
# each: at 8,192 in a tenth of the time, with an inertia 1 to 10 % higher.
_MOST_SEEDS = 4096
_PART_VECTORS, _PART_ITERATIONS = 256, 5

# Rounds of moving empty clusters: one nearly always does.
_REPAIRS = 10


class KMeansResult(NamedTuple):
    """Result of `kmeans`: centroids [K, D], fp32 and finite, the sum of the
    squared distances of the vectors to theirs, and how many each has, [K]."""

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
    """Cluster vectors on their device and in fp32: greedy k-means++ seeding,
    then Lloyd's iterations.

    Each seed is the best of 2 (2 + ln K) candidates drawn by squared distance
    (Arthur & Vassilvitskii, "k-means++: The Advantages of Careful Seeding",
    2007, last section). A cluster left empty is moved to the vector farthest
    from its centroid.

    Beyond 4,096 clusters, seeds are chosen within the parts of a coarse
    clustering, and vectors assigned by ``InvertedLists``: O(N sqrt(K)).

    Arguments
    ---------
    x : torch.Tensor
        Vectors [N, D], any real floating dtype, all finite.
    num_clusters : int
        Number of centroids K. If there are fewer distinct vectors, jittered
        copies make up the number, no two alike, and a warning is logged.
    max_iterations : int
        Largest number of Lloyd's iterations; 0 returns the seeds.
    tolerance : float
        Least share by which an iteration lowers the inertia for another.
    generator : torch.Generator or int
        Source of the random numbers, or a seed; by default the global CPU
        generator.
    init : torch.Tensor
        Centroids [K, D] to start from, each of which keeps its number; seeds,
        or jittered copies, replace those that are nearest to no vector.

    Returns
    -------
    KMeansResult
        Centroids [K, D], inertia, counts [K].

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
    # A power of two costs no bits, and keeps squares from over- or underflow.
    exponent = torch.frexp(x.abs().amax()).exponent
    scale = torch.ldexp(torch.ones_like(x[0, 0]), exponent - 1)
    points, counts = torch.unique(x / scale, dim=0, return_counts=True)
    weights = counts.float()
    rows = torch.arange(num_clusters, device=x.device)
    centroids, is_empty = points[rows % len(points)], rows >= 0
    with full_precision(x.device.type):
        coarse = None
        if _MOST_SEEDS < num_clusters <= len(points):
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
            # Of equal centroids the first one stays.
            order = is_empty.int().argsort(stable=True)
            centroids[order] = _part_copies(centroids[order], generator)
        else:
            num_seeds, closest = int(is_empty.sum()), None
            if 0 < num_seeds < num_clusters:
                held = centroids[~is_empty]
                _, closest = nearest_with_distances(points, held, coarse)
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
                f"[{num_clusters}, D]; got {name} {tuple(rows.shape)} where x "
                f"is {tuple(x.shape)}"
            )
        if not rows.float().isfinite().all():
            raise ValueError(f"{name} holds values that are not finite")


def _seed(points, weights, num_seeds, generator, closest=None):
    """Choose so many of the points [U, D] of weights [U] as seeds by greedy
    k-means++, beside others at squared distances [U]. Candidates for a few
    seeds at a time are drawn from the same distances, for one large product."""
    num_tries = _TRIES * (2 + int(math.log(num_seeds)))
    draws = torch.empty(num_seeds, num_tries, dtype=torch.float64)
    draws = draws.to(generator.device).uniform_(generator=generator)
    draws = draws.to(points.device)
    # This floor keeps a choice among points too close for fp32.
    tiny = torch.finfo(torch.float32).tiny
    if closest is None:
        closest = torch.full_like(weights, 1e9)
    closest = closest.clamp(min=tiny)
    available = weights.clone()
    centred = points - points.mean(0)
    norms = centred.square().sum(1, keepdim=True)
    ones = torch.ones_like(norms)
    rights = torch.cat([centred, norms, ones], 1).t().contiguous()
    lefts = torch.cat([-2 * centred, ones, norms], 1)
    largest = max(1, min(_GROUP, _GROUP_ELEMENTS // (num_tries * len(points))))
    buffer = points.new_empty(largest, num_tries, len(points))
    seeds = []
    while len(seeds) < num_seeds:
        # Stale draws do no harm while the group is few beside all the seeds.
        size = max(1, min(largest, len(seeds) // 16))
        # In fp32 the sum would never reach the lightest of many points.
        mass = (closest * available).cumsum(0, dtype=torch.float64)
        aims = draws[len(seeds) : len(seeds) + size] * mass[-1]
        picks = torch.searchsorted(mass, aims, right=True)
        picks.clamp_(max=len(points) - 1)
        distances = buffer[: len(picks)]
        torch.mm(lefts[picks.flatten()], rights, out=distances.flatten(0, 1))
        for tries, nearer in zip(picks, distances, strict=True):
            torch.minimum(nearer, closest, out=nearer)
            best = (nearer @ weights).argmin()
            closest = nearer[best].clamp(min=tiny)
            seeds.append(tries[best])
            available[seeds[-1]] = 0
    # A point may have been drawn twice within a group.
    seeds = torch.stack(seeds).unique()
    farthest = (closest * available).topk(num_seeds - len(seeds)).indices
    return points[torch.cat([seeds, farthest])]


def _coarse_centroids(points, weights, parts, generator):
    """Cluster a sample of points [U, D] of weights [U] in so many parts."""
    # They are sorted, so every so many of them are spread as all are.
    step = max(1, len(points) // (_PART_VECTORS * parts))
    points, weights = points[::step].contiguous(), weights[::step].contiguous()
    centroids = _seed(points, weights, parts, generator)
    _lloyd(points, weights, centroids, _PART_ITERATIONS, 1e-4)
    return centroids


def _seed_in_parts(points, weights, num_seeds, generator, closest, coarse):
    """Choose seeds as ``_seed`` does, within the parts of coarse centroids, if
    there are any: in each as many as its share of the inertia."""
    if coarse is None:
        return _seed(points, weights, num_seeds, generator, closest)
    labels, distances = nearest_with_distances(points, coarse)
    sizes = torch.bincount(labels, minlength=len(coarse))
    numbers = sizes.clamp(max=int(closest is None))
    distances = distances if closest is None else closest
    share = torch.zeros_like(sizes, dtype=torch.float64)
    share.index_add_(0, labels, (distances * weights).double())
    share.clamp_(min=torch.finfo(share.dtype).tiny)
    while (left := num_seeds - int(numbers.sum())) > 0:
        # Every point of a part at most, and what that leaves to the others.
        share[numbers >= sizes] = 0
        more = (share / share.sum() * left).floor().long()
        if not more.any():
            more[share.topk(min(left, int((share > 0).sum()))).indices] = 1
        numbers += torch.minimum(more, sizes - numbers)
    order = labels.argsort(stable=True)
    seeds = []
    for part, number in zip(
        order.split(sizes.tolist()), numbers.tolist(), strict=True
    ):
        inside, near = points[part], None if closest is None else closest[part]
        if 0 < number < len(part):
            inside = _seed(inside, weights[part], number, generator, near)
        seeds.append(inside[:number])
    return torch.cat(seeds)


def _lloyd(points, weights, centroids, max_iterations, tolerance, coarse=None):
    """Improve centroids [K, D] by those of points [U, D] of weights [U], in
    place; none ends empty."""
    labels, distances = _assign(points, centroids, coarse)
    inertia = float(distances.dot(weights))
    for _ in range(max_iterations):
        _move(points, weights, centroids, labels)
        labels, distances = _assign(points, centroids, coarse)
        previous, inertia = inertia, float(distances.dot(weights))
        if previous - inertia <= tolerance * previous:
            break


def _assign(points, centroids, coarse=None):
    """Label points [U], give their squared distances [U], and move each empty
    cluster to the point farthest from its centroid, as scikit-learn does."""
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
    # Sums of sorted rows: atomic additions would make a GPU's sums depend on
    # the run, and ranks must agree. Sums of differences: an offset common to
    # all would cost bits.
    order = labels.argsort(stable=True)
    masses = weights[order].unsqueeze(1)
    steps = (points - centroids[labels])[order] * masses
    lengths = torch.bincount(labels, minlength=len(centroids))
    rows = torch.cat([steps, masses], 1)
    sums = torch.segment_reduce(rows, "sum", lengths=lengths)
    centroids += sums[:, :-1] / sums[:, -1:].clamp(min=1)


def _part_copies(centroids, generator):
    """Jitter centroids [K, D] that equal an earlier one: by a hundredth of
    their spread, or by more if fp32 needs it."""
    spread = (centroids - centroids.mean(0)).square().mean().sqrt()
    # Centroids without a spread have a size of about 1.
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
