"""Exact nearest-codeword search: fp32 distances, blockwise."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor

# Scores of a block: one that stays in a CPU's cache is searched faster; an
# accelerator hides its launches only behind larger ones.
_ELEMENTS_CPU, _ELEMENTS_ACCELERATOR = 2**21, 2**25

# Columns of a block are reduced in groups of this many: torch vectorises
# `amin` and not `argmin`, so only the winning group is searched by `argmin`.
_GROUP = 64


def nearest(x: Tensor, codebook: Tensor) -> Tensor:
    """Find the codeword nearest to each vector, in Euclidean distance.

    The search is exact up to fp32 rounding whatever the dtype of the inputs
    and whatever autocast says. Both sides are centred by the codebook's mean,
    so that an offset common to all vectors costs no accuracy. A row that is
    not finite gives some valid index. No gradient passes, nothing waits for
    the device, and one block of the distance matrix exists at a time.

    Arguments
    ---------
    x : torch.Tensor
        Vectors [..., D], any real floating dtype.
    codebook : torch.Tensor
        Codewords [K, D], any real floating dtype.

    Returns
    -------
    torch.Tensor
        Indices [...], int64, in [0, K).

    Raises
    ------
    TypeError, ValueError
        If a dtype or a shape is another.

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


# An operator of its own: torch.compile keeps it whole, so that neither the
# loop is unrolled nor the precision guard breaks the graph.
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
    x: Tensor, codebook: Tensor
) -> tuple[Tensor, Tensor]:
    """Find the nearest codewords [N] of x [N, D], and the squared distances
    [N]: sums over differences, so zero where the two are equal."""
    indices = _search(x, codebook)
    return indices, (x - codebook[indices]).square_().sum(1)


def _search(x: Tensor, codebook: Tensor) -> Tensor:
    """Search x [N, D] in codebook [K, D] -> indices [N]."""
    size = len(codebook)
    columns = -(-size // _GROUP) * _GROUP
    is_cpu = x.device.type == "cpu"
    elements = _ELEMENTS_CPU if is_cpu else _ELEMENTS_ACCELERATOR
    rows = max(1, min(len(x), elements // columns))
    codebook = codebook.float()
    centre = codebook.mean(0)
    x, centred = (x - centre).float(), codebook - centre
    bias = centred.square().sum(1).div_(2)
    indices = x.new_empty(len(x), dtype=torch.long)
    scores = x.new_empty(rows, columns)
    # What fills the last group never wins.
    scores[:, size:] = torch.inf
    with full_precision(x.device.type):
        for block, out in zip(x.split(rows), indices.split(rows), strict=True):
            part = scores[: len(block)]
            # |x - c|^2 is twice this plus |x|^2.
            torch.addmm(bias, block, centred.t(), alpha=-1, out=part[:, :size])
            out.copy_(_argmin(part))
    return indices


def _argmin(scores: Tensor) -> Tensor:
    """Find the column of the lowest score in each row, [R, K'] -> [R]."""
    groups = scores.view(-1, _GROUP)
    per_row = scores.shape[1] // _GROUP
    group = groups.amin(1).view(-1, per_row).argmin(1)
    first = torch.arange(0, len(groups), per_row, device=scores.device)
    best = groups.index_select(0, first + group)
    return group * _GROUP + best.argmin(1)


@contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Keep fp32 matrix products in fp32: no autocast, TF32 or bf16 passes."""
    with torch.autocast(device_type, enabled=False), ExitStack() as stack:
        try:
            precision = torch.get_float32_matmul_precision()
            if precision != "highest":
                torch.set_float32_matmul_precision("highest")
                stack.callback(torch.set_float32_matmul_precision, precision)
        except RuntimeError:
            # The precisions were set per backend (torch >= 2.9), which the
            # global getter refuses to summarise.
            backends = torch.backends
            for one in (backends.cuda.matmul, backends.mkldnn.matmul):
                before = one.fp32_precision
                stack.callback(setattr, one, "fp32_precision", before)
                one.fp32_precision = "ieee"
        yield
