"""Nearest-codeword search in fp32, exact or by inverted lists."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor
from torch.nn.functional import pad

# Maximum number of scores in a block. On a CPU, blocks that fit the cache and
# have few codewords are faster; an accelerator needs larger ones to hide its
# launch latency.
_ELEMENTS_CPU, _ELEMENTS_ACCELERATOR = 2**21, 2**25
_WIDTH_CPU = 4096

# Columns in a group. torch vectorizes `amin` but not `argmin`, so `argmin`
# searches only the group with the lowest score.
_GROUP = 64

# Number of lists that k-means searches; more would lower its inertia by less
# than 0.1 %.
_PROBES = 8


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Return the index of the codeword nearest to each vector.

    Euclidean distances are computed in fp32, even under autocast, and block by
    block. An offset common to all vectors costs no precision. A non-finite
    vector gets an arbitrary valid index. There is no gradient, and no
    synchronization with the device.

    Arguments
    ---------
    x, codebook : torch.Tensor
        Vectors [..., D] and codewords [K, D], of any real floating dtype.

    Returns
    -------
    torch.Tensor
        Indices [...], int64, in [0, K).

    Example
    -------
    >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    >>> nearest(torch.tensor([[0.9, 0.8], [0.1, -0.3]]), codebook)
    tensor([1, 0])
    """
    if not (x.is_floating_point() and codebook.is_floating_point()):
        raise TypeError(
            "x and codebook must be real floating-point tensors, got "
            f"{x.dtype} and {codebook.dtype}"
        )
    fits = codebook.ndim == 2 and x.shape[-1:] == codebook.shape[1:]
    if not fits or not len(codebook):
        raise ValueError(
            "x must be [..., D] and codebook [K, D] with at least one codeword,"
            f" got x {tuple(x.shape)} and codebook {tuple(codebook.shape)}"
        )
    return _nearest(x.detach(), codebook.detach())


# A custom operator, so that torch.compile neither unrolls the loop nor breaks
# the graph at the change of precision.
@torch.library.custom_op("speechbrain_vq::nearest", mutates_args=())
def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    return _search(x.reshape(-1, x.shape[-1]), codebook).view(x.shape[:-1])


@_nearest.register_fake
def _(x: Tensor, codebook: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.long)


@_nearest.register_vmap
def _(info, in_dims, x: Tensor, codebook: Tensor) -> tuple[Tensor, int]:
    x_dim, codebook_dim = in_dims
    if codebook_dim is None:
        return _nearest(x.movedim(x_dim, 0).contiguous(), codebook), 0
    codebooks = codebook.unbind(codebook_dim)
    each = [x] * len(codebooks) if x_dim is None else x.unbind(x_dim)
    return torch.stack(list(map(_nearest, each, codebooks))), 0


def nearest_with_distances(
    x: Tensor, codebook: Tensor, centroids: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the indices [N] of the codewords nearest to x [N, D], and their
    squared distances [N], which are exactly zero for equal vectors. If
    centroids [L, D] are given, search with inverted lists."""
    if centroids is None:
        indices = _search(x, codebook)
    else:
        indices = InvertedLists(codebook, centroids, _PROBES)(x)
    return indices, (x - codebook[indices]).square_().sum(1)


class InvertedLists:
    """Approximate nearest-codeword search. With more than about ten thousand
    codewords, it is several times as fast as ``nearest`` on a CPU. It is the
    inverted file of Jegou et al. (Product quantization for nearest neighbor
    search, 2011, section IV), without compression.

    Arguments
    ---------
    codebook : torch.Tensor
        Codewords [K, D]; each goes to the list of its nearest centroid.
    centroids : torch.Tensor
        Centroids [L, D] of the codewords, with L about sqrt(K).
    probes : int
        Number of lists to search for each vector, those of its nearest
        centroids. With L lists, the search is exact.

    Example
    -------
    >>> from speechbrain_vq.nnet import kmeans
    >>> codebook, x = torch.randn(4096, 2), torch.randn(100, 2)
    >>> centroids = kmeans(codebook, num_clusters=64, generator=0).centroids
    >>> lists = InvertedLists(codebook, centroids)
    >>> bool((lists(x) == nearest(x, codebook)).all())
    True
    """

    def __init__(self, codebook: Tensor, centroids: Tensor, probes: int = 16):
        codebook, centroids = codebook.detach().float(), centroids.float()
        center = codebook.mean(0)
        holders, labels, sizes = _search(codebook, centroids).unique(
            return_inverse=True, return_counts=True
        )
        self._codes = labels.argsort(stable=True)
        words = codebook[self._codes] - center
        self._center, self._centroids = center, centroids[holders] - center
        self._norms = self._centroids.square().sum(1).div_(2)
        self._starts = sizes.cumsum(0) - sizes
        norms, sizes = words.square().sum(1).div_(2), sizes.tolist()
        lists = words.split(sizes), norms.split(sizes)
        self._lists = list(zip(*lists, strict=True))
        self.probes = min(probes, len(sizes))

    def __call__(self, x: Tensor) -> Tensor:
        """Return approximate indices [...] for x [..., D]; see ``nearest``."""
        flat = x.detach().reshape(-1, x.shape[-1])
        rows = max(1, _ELEMENTS_ACCELERATOR // (self.probes * flat.shape[1]))
        with full_precision(x.device.type):
            indices = [
                self._search((block - self._center).float())
                for block in flat.split(rows)
            ]
        return torch.cat(indices).view(x.shape[:-1])

    def _search(self, x):
        """Search centered x [N, D] -> indices [N]."""
        scores = torch.addmm(self._norms, x, self._centroids.t(), alpha=-1)
        probed = scores.topk(self.probes, largest=False, sorted=False).indices
        # As with groups of columns, `argmin` searches only the best list.
        lowest = self._reduce(torch.amin, x, probed).argmin(1, keepdim=True)
        winner = probed.gather(1, lowest)
        column = self._reduce(torch.argmin, x, winner)
        return self._codes[(self._starts[winner] + column).squeeze(1)]

    def _reduce(self, function, x, lists):
        """Reduce the scores of each vector of x [N, D] in each of its lists
        [N, p] to one value [N, p]."""
        flat = lists.flatten()
        order = flat.argsort(stable=True)
        numbers = torch.bincount(flat, minlength=len(self._lists)).tolist()
        rows = x[order // lists.shape[1]].split(numbers)
        values = [
            function(torch.addmm(norms, part, words.t(), alpha=-1), 1)
            for vectors, (words, norms) in zip(rows, self._lists, strict=True)
            for part in vectors.split(max(1, _ELEMENTS_CPU // len(words)))
        ]
        return torch.cat(values)[order.argsort()].view(lists.shape)


def _search(x: Tensor, codebook: Tensor) -> Tensor:
    """Search x [N, D] in codebook [K, D] -> indices [N]."""
    codebook = codebook.float()
    center = codebook.mean(0)
    x, words = (x - center).float(), codebook - center
    # The last group is padded with codewords that are never the nearest.
    fill = -len(codebook) % _GROUP
    bias = pad(words.square().sum(1).div_(2), (0, fill), value=torch.inf)
    words = pad(words, (0, 0, 0, fill))
    elements, width = _ELEMENTS_ACCELERATOR, len(words)
    if x.device.type == "cpu":
        elements, width = _ELEMENTS_CPU, min(width, _WIDTH_CPU)
    rows = max(1, min(len(x), elements // width))
    scores = x.new_empty(rows * width)
    lowest = x.new_full((len(x),), torch.inf)
    indices = torch.zeros_like(lowest, dtype=torch.long)
    blocks = [t.split(rows) for t in (x, lowest, indices)]
    with full_precision(x.device.type):
        for start in range(0, len(words), width):
            chunk, biases = (t[start : start + width] for t in (words, bias))
            for block, low, out in zip(*blocks, strict=True):
                shape = len(block), len(chunk)
                part = scores[: shape[0] * shape[1]].view(shape)
                # The score |c|^2 / 2 - xc is half of |x - c|^2 - |x|^2.
                torch.addmm(biases, block, chunk.t(), alpha=-1, out=part)
                score, column = _min(part)
                is_lower = score < low
                torch.where(is_lower, score, low, out=low)
                torch.where(is_lower, start + column, out, out=out)
    return indices


def _min(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the lowest score in each row, [R, K'] -> [R], and its column."""
    groups = scores.view(-1, _GROUP)
    per_row = scores.shape[1] // _GROUP
    lowest, group = groups.amin(1).view(-1, per_row).min(1)
    first = torch.arange(0, len(groups), per_row, device=scores.device)
    best = groups.index_select(0, first + group)
    return lowest, group * _GROUP + best.argmin(1)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Context manager that computes matrix products in full fp32, without
    autocast, TF32 or bf16."""
    with torch.autocast(device_type, enabled=False), ExitStack() as stack:
        try:
            precision = torch.get_float32_matmul_precision()
            if precision != "highest":
                torch.set_float32_matmul_precision("highest")
                stack.callback(torch.set_float32_matmul_precision, precision)
        except RuntimeError:
            # The global getter raises if precisions differ by backend, as they
            # may in torch >= 2.9.
            backends = torch.backends
            for backend in (backends.cuda.matmul, backends.mkldnn.matmul):
                before = backend.fp32_precision
                stack.callback(setattr, backend, "fp32_precision", before)
                backend.fp32_precision = "ieee"
        yield
