"""Quantizer losses and batch metrics."""

import math

import torch
from torch import Tensor, nn

from speechbrain_vq.nnet.codebooks import number_codes
from speechbrain_vq.nnet.utils import sum_over_ranks, world_size


def quantization_loss(
    targets: Tensor,
    codewords: Tensor,
    mass: Tensor,
    commitment_weight: float,
    codebook_weight: float,
    over_ranks: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the weighted sum of codebook and commitment loss (van den Oord et
    al., 2017, equation 3), and the sum of squared errors [c] of each codebook.

    ``targets`` [N, c, d] are quantized to ``codewords`` [N, c, d]; ``mass`` [N]
    is 1 for valid vectors and 0 otherwise. Losses are means over the elements
    of valid vectors. With ``over_ranks``, they are scaled so that the gradients
    averaged by DDP are those of the mean over all ranks.

    >>> x, codewords = torch.zeros(2, 1, 4), torch.ones(2, 1, 4)
    >>> quantization_loss(x, codewords, torch.ones(2), 0.25, 1.0, False)
    (tensor(1.2500), tensor([8.]))
    """
    number = mass.sum()
    if over_ranks:
        number = sum_over_ranks(number) / world_size()
    # Without valid vectors, the numerator is 0.
    divisor = (number * targets.shape[1:].numel()).clamp(min=1e-9)
    commitment = mass @ _squares(targets, codewords.detach())
    codebook = mass @ _squares(targets.detach(), codewords)
    loss = commitment_weight * commitment + codebook_weight * codebook
    return loss.sum() / divisor, commitment.detach()


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Compute squared distances [...] between vectors [..., d]."""
    return nn.functional.mse_loss(x, y, reduction="none").sum(-1)


def entropy_loss(
    targets: Tensor, codebook: Tensor, mass: Tensor, sq_errors: Tensor
) -> Tensor:
    """Compute the entropy loss in 0..1: 1 - H / ln K, where H is the entropy of
    the mean soft assignment, averaged over the codebooks. 0 is uniform usage.

    This is the batch entropy of Yu et al. (2023, arXiv 2310.05737, equation 5)
    for any codebook [C, K, d], over all ranks, with the mean squared error as
    the temperature. ``sq_errors`` [c] are those of ``quantization_loss``. At
    most 2 ** 17 / K vectors, or 64, are used, spread evenly. Gradients grow as
    the temperature falls. To limit them, the loss is scaled down with the error
    once this is below 1/20 of the squared length of the targets.
    """
    squares = mass @ targets.detach().square().sum(2)
    number = mass.sum().expand_as(sq_errors)
    number, sq_errors, squares = _sum_codebooks(
        torch.stack([number, sq_errors, squares], dim=1), codebook
    ).unbind(1)
    temperature = (sq_errors / number.clamp(min=1)).clamp(min=1e-9)
    weight = (20 * sq_errors / squares.clamp(min=1e-9)).clamp(max=1)
    size = max(2**17 // codebook.shape[1], 64)
    if len(mass) > size:
        sample, mass = _spread(mass, size)
        targets = targets.index_select(0, sample)
    shares = []
    for vectors, words, scale in zip(
        targets.unbind(1), codebook, temperature, strict=False
    ):
        # |x|^2 is omitted because it is the same for every code.
        bias = -words.square().sum(1) / scale
        logits = torch.addmm(bias, vectors * (2 / scale), words.t())
        shares.append(mass @ torch.softmax(logits, dim=1))
    share = _sum_codebooks(torch.stack(shares), codebook)
    share = share / share.sum(1, keepdim=True).clamp(min=1e-9)
    # If the softmax underflows to 0, the log alone would have no gradient.
    nats = -(share * (share + 1e-12).log()).sum(1)
    return (weight * (1 - nats / max(math.log(share.shape[1]), 1e-9))).mean()


def _sum_codebooks(values: Tensor, codebook: Tensor) -> Tensor:
    """Sum the values of the first c codebooks over all ranks, whose c may
    differ."""
    unused = len(codebook) - len(values)
    padded = nn.functional.pad(values, (0, 0, 0, unused))
    return sum_over_ranks(padded)[: len(values)]


def _spread(mass: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Choose up to ``size`` vectors of mass 1, spread evenly. Return their
    indices, and masses with the same sum.

    The places are those of a low-discrepancy sequence: a constant stride could
    choose, for example, the first frame of each utterance. Vectors of mass 0,
    such as padding, do not change the choice."""
    place = torch.arange(size, device=mass.device, dtype=torch.float32)
    place = place + (place * 0.618034) % 1
    total = mass.cumsum(0)
    place = place * (total[-1] / size).clamp(min=1)
    sample = torch.searchsorted(total, place, right=True)
    chosen = (place < total[-1]).to(mass)
    chosen = chosen * (total[-1] / chosen.sum().clamp(min=1))
    return sample.clamp(max=len(mass) - 1), chosen


@torch.no_grad()
def batch_metrics(
    latents: Tensor,
    mass: Tensor,
    indices: Tensor,
    codebook: Tensor,
    sq_error: Tensor,
) -> dict[str, Tensor]:
    """Compute the metrics of ``VQOutput`` for latents [N, D] with a mass [N]
    and codes [N, c] of a codebook [C, K, d]. All but the perplexity are sums,
    which can be added over batches. The perplexity is NaN if c is 0."""
    counts = torch.zeros_like(codebook[..., 0])
    codes = number_codes(indices, counts.shape[1]).flatten()
    each = mass.unsqueeze(1).expand_as(indices).flatten()
    counts = counts.flatten().index_add(0, codes, each).view_as(counts)
    squares = torch.linalg.vector_norm(latents, dim=1).square()
    return {
        "counts": counts,
        "num_vectors": mass.sum(),
        "perplexity": entropy(counts[: indices.shape[1]]).exp().mean(),
        "sq_error": sq_error,
        "latent_sum": mass @ latents,
        "latent_sq_sum": mass @ squares,
    }


def entropy(counts: Tensor) -> Tensor:
    """Compute the entropies [...] in nats of distributions with counts
    [..., K]; 0 if all counts are 0."""
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return -torch.special.xlogy(share, share).sum(-1)
