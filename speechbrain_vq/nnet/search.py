"""Exact nearest-codeword search: fp32 distances, blockwise."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

# A block that stays in the cache is searched faster than one that does not;
# an accelerator hides its launches only behind larger blocks. Elements, fp32.
_BLOCK_ELEMENTS = {"cpu": 2**21}
_BLOCK_ELEMENTS_ACCELERATOR = 2**25

# Columns of a block are reduced in groups of this many: torch vectorises
# `amin` and not `argmin`, so only the winning group is searched by `argmin`.
_GROUP = 64


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codeword nearest to each vector, in Euclidean distance.

    The search is exact up to fp32 rounding whatever the dtype of the inputs:
    autocast, TF32 and bf16 matrix products are off inside. It minimises
    |c|^2 / 2 - x.c after both sides are centred by the codebook's mean, so
    that an offset common to all vectors costs no accuracy. Identical codewords
    give the lowest of their indices. A row that is not finite gives some valid
    index. No gradient passes, nothing waits for the device, and no more than
    one block of the distance matrix exists at a time.

    Arguments
    ---------
    x : torch.Tensor
        Vectors [..., D], any real floating dtype.
    codebook : torch.Tensor
        Codewords [K, D], any real floating dtype; it may differ from that of
        `x`, as it does under autocast.

    Returns
    -------
    indices : torch.Tensor
        Indices [...], int64, in [0, K).

    Raises
    ------
    TypeError
        If either input is not a real floating-point tensor.
    ValueError
        If the codebook is not [K, D] with K > 0, or the last dimension of `x`
        is not D.

    Example
    -------
    >>> codebook = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    >>> nearest(torch.tensor([[0.9, 0.8], [0.1, -0.3]]), codebook)
    tensor([1, 0])
    """
    _check(x, codebook)
    return _nearest(x.detach(), codebook.detach())


def _check(x: Tensor, codebook: Tensor) -> None:
    """Raises if `x` [..., D] cannot be searched in `codebook` [K, D]."""
    if not (x.is_floating_point() and codebook.is_floating_point()):
        raise TypeError(
            "x and codebook must be real floating-point tensors, got "
            f"{x.dtype} and {codebook.dtype}"
        )
    if codebook.ndim != 2 or codebook.shape[0] == 0:
        raise ValueError(
            "codebook must be [K, D] with at least one codeword, got "
            f"{tuple(codebook.shape)}"
        )
    if x.ndim == 0 or x.shape[-1] != codebook.shape[1]:
        raise ValueError(
            "the last dimension of x must be that of the codebook, got x "
            f"{tuple(x.shape)} and codebook {tuple(codebook.shape)}"
        )


# An operator of its own: torch.compile keeps it whole, so that neither the
# loop is unrolled nor the precision guard breaks the graph.
@torch.library.custom_op("speechbrain_vq::nearest", mutates_args=())
def _nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """`nearest` without its checks: [..., D], [K, D] -> [...]."""
    return _search(x.reshape(-1, x.shape[-1]), codebook).view(x.shape[:-1])


@_nearest.register_fake
def _(x: Tensor, codebook: Tensor) -> Tensor:
    return x.new_empty(x.shape[:-1], dtype=torch.long)


@_nearest.register_vmap
def _(info, in_dims, x: Tensor, codebook: Tensor) -> tuple[Tensor, int]:
    if in_dims[0] is None:
        x = x.expand(info.batch_size, *x.shape)
    else:
        x = x.movedim(in_dims[0], 0)
    if in_dims[1] is None:
        return _nearest(x.contiguous(), codebook), 0
    codebooks = codebook.movedim(in_dims[1], 0)
    each = [_nearest(a, b) for a, b in zip(x, codebooks, strict=True)]
    return torch.stack(each), 0


@torch.no_grad()
def nearest_with_distances(
    x: Tensor, codebook: Tensor
) -> tuple[Tensor, Tensor]:
    """Nearest codewords and how far they are, for k-means.

    The distance is taken from the difference of the two vectors, not from the
    expanded square that ranks them: it is zero where they are equal.

    Arguments
    ---------
    x : torch.Tensor
        Vectors [N, D], fp32.
    codebook : torch.Tensor
        Codewords [K, D], fp32.

    Returns
    -------
    indices : torch.Tensor
        Indices [N], int64.
    distances : torch.Tensor
        Squared Euclidean distances [N], fp32.
    """
    indices = _search(x, codebook)
    return indices, (x - codebook[indices]).square_().sum(1)


def _search(x: Tensor, codebook: Tensor) -> Tensor:
    """Blockwise search of `x` [N, D] in `codebook` [K, D] -> indices [N]."""
    codebook = codebook.float()
    centre = codebook.mean(0)
    centred = codebook - centre
    bias = centred.square().sum(1).div_(2)
    indices = x.new_empty(len(x), dtype=torch.long)
    vectors, scores = _buffers(x, codebook)
    with full_precision(x.device.type):
        for start in range(0, len(x), len(vectors)):
            block = x[start : start + len(vectors)]
            rows = len(block)
            torch.sub(block, centre, out=vectors[:rows])
            torch.addmm(
                bias,
                vectors[:rows],
                centred.t(),
                alpha=-1,
                out=scores[:rows, : len(codebook)],
            )
            indices[start : start + rows] = _argmin(scores[:rows])
    return first_copies(codebook)[indices]


def _buffers(x: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The kept buffers of one block: vectors [R, D] and scores [R, K'].

    K' is K rounded up to whole groups; the columns beyond K are never written
    and stay infinite, so they never win.
    """
    columns = -(-len(codebook) // _GROUP) * _GROUP
    elements = _BLOCK_ELEMENTS.get(x.device.type, _BLOCK_ELEMENTS_ACCELERATOR)
    rows = max(1, min(len(x), elements // columns))
    vectors = codebook.new_empty(rows, codebook.shape[1])
    scores = codebook.new_empty(rows, columns)
    scores[:, len(codebook) :] = torch.inf
    return vectors, scores


def _argmin(scores: Tensor) -> Tensor:
    """Column of the lowest score in each row, [R, K'] -> [R]."""
    rows, columns = scores.shape
    groups = scores.view(-1, _GROUP)
    group = groups.amin(1).view(rows, -1).argmin(1)
    first = torch.arange(0, len(groups), columns // _GROUP, device=group.device)
    best = groups.index_select(0, first + group)
    return group * _GROUP + best.argmin(1)


def first_copies(codebook: Tensor) -> Tensor:
    """Lowest index of a codeword identical to each, [K, D] -> [K].

    Matrix products round the columns at the edge of a tile in another order
    than the rest, so copies of a codeword do not always score alike and the
    lowest index has to be looked up. Copies are found by sorting 64-bit hashes
    of the rows; a hash that collides is caught by comparing the rows.
    """
    hashes, order = _hashes(codebook).sort(stable=True)
    is_first = torch.ones_like(hashes, dtype=torch.bool)
    is_first[1:] = hashes[1:] != hashes[:-1]
    positions = torch.arange(len(hashes), device=hashes.device)
    leaders = torch.where(is_first, positions, 0).cummax(0).values
    first = torch.empty_like(order).scatter_(0, order, order[leaders])
    same = (codebook[first] - codebook).abs_().amax(1) == 0
    return torch.where(same, first, positions)


def _hashes(codebook: Tensor) -> Tensor:
    """64-bit hashes of the rows, [K, D] -> [K]."""
    # Adding zero turns -0.0 into 0.0: equal values must have equal bits.
    bits = (codebook + 0.0).view(torch.int32)
    # Without the shift, vectors that differ in signs only would nearly all
    # collide: a product keeps nothing below the lowest bit that changed.
    bits ^= bits >> 23
    weights = torch.arange(1, bits.shape[1] + 1, device=bits.device)
    weights = weights * 0x1E3779B97F4A7C15
    weights = (weights ^ (weights >> 29)) * 0x3F58476D1CE4E5B9 | 1
    return (bits * weights).sum(1)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Keeps fp32 matrix products in fp32: no autocast, TF32 or bf16 passes."""
    with torch.autocast(device_type, enabled=False):
        try:
            precision = torch.get_float32_matmul_precision()
        except RuntimeError:
            # The user chose precisions per backend (torch >= 2.9), which the
            # global getter refuses to summarise.
            with _full_precision_per_backend():
                yield
            return
        if precision == "highest":
            yield
            return
        torch.set_float32_matmul_precision("highest")
        try:
            yield
        finally:
            torch.set_float32_matmul_precision(precision)


@contextmanager
def _full_precision_per_backend() -> Iterator[None]:
    """`full_precision` where the precision is set backend by backend."""
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    precisions = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, precisions, strict=True):
            backend.fp32_precision = precision
