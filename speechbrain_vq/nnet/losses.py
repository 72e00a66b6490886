"""The quantizer's loss, and what is counted beside it.

Authors
 * speechbrain_vq authors 2026
"""

import torch

from speechbrain_vq.nnet.codebooks import number_codes
from speechbrain_vq.nnet.distributed import sum_over_ranks, world_size


class _QuantizationLoss(torch.autograd.Function):
    """w_c sum m |sg[x] - e|^2 + w_e sum m |x - sg[e]|^2, and sum |x - e|^2 of
    each codebook.

    Written out because the two terms have one value and opposite gradients:
    autograd would compute each of them.
    """

    @staticmethod
    def forward(ctx, targets, codewords, weight, commitment, codebook):
        difference = codewords - targets
        sq_norm = difference.square().sum(2)
        ctx.save_for_backward(difference, weight)
        ctx.weights = commitment, codebook
        sq_error = (weight > 0).to(sq_norm.dtype) @ sq_norm
        ctx.mark_non_differentiable(sq_error)
        return (commitment + codebook) * (weight @ sq_norm).sum(), sq_error

    @staticmethod
    def backward(ctx, gradient, _):
        difference, weight = ctx.saved_tensors
        commitment, codebook = ctx.weights
        step = difference * (2 * gradient * weight).view(-1, 1, 1)
        return (
            step * -commitment if ctx.needs_input_grad[0] else None,
            step * codebook if ctx.needs_input_grad[1] else None,
            None,
            None,
            None,
        )


def quantization_loss(
    targets: torch.Tensor,
    codewords: torch.Tensor,
    valid: torch.Tensor,
    commitment_weight: float,
    codebook_weight: float,
    over_ranks: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codebook and commitment loss (van den Oord et al., 2017, equation 3).

    Means run over all elements of the valid vectors, as in the code of arXiv
    2005.08520.

    Arguments
    ---------
    targets : torch.Tensor
        What was quantized, x, [N, C, d].
    codewords : torch.Tensor
        The nearest codewords, e, [N, C, d].
    valid : torch.Tensor
        Which of the N count, booleans [N].
    commitment_weight : float
        Weight of ``|x - sg[e]|^2``.
    codebook_weight : float
        Weight of ``|sg[x] - e|^2``.
    over_ranks : bool
        Whether to count the valid vectors of all ranks, so that DDP's average
        of the gradients is that of the whole batch.

    Returns
    -------
    tuple
        The loss, and each codebook's sum of squared errors, [C], without
        gradient.

    Example
    -------
    >>> x, e = torch.zeros(2, 1, 4), torch.ones(2, 1, 4)
    >>> quantization_loss(x, e, torch.tensor([True, False]), 0.25, 1.0, False)
    (tensor(1.2500), tensor([4.]))
    """
    number = valid.sum()
    if over_ranks:
        number = sum_over_ranks(number) / world_size()
    # Not even one vector: all weights are zero whatever they are divided by.
    divisor = (number * targets.shape[1:].numel()).clamp(min=1e-9)
    return _QuantizationLoss.apply(
        targets,
        codewords,
        valid.float() / divisor,
        commitment_weight,
        codebook_weight,
    )


@torch.no_grad()
def code_counts(
    indices: torch.Tensor, valid: torch.Tensor, codebook_size: int
) -> torch.Tensor:
    """How often each code was chosen.

    Arguments
    ---------
    indices : torch.Tensor
        Codes, [N, C].
    valid : torch.Tensor
        Which of the N count, booleans [N].
    codebook_size : int
        Number of codes, K.

    Returns
    -------
    torch.Tensor
        Counts, [C, K], float.
    """
    books = indices.shape[1]
    counts = torch.zeros(books * codebook_size, device=indices.device)
    mass = valid.float().repeat_interleave(books)
    flat = number_codes(indices, codebook_size).reshape(-1)
    counts.index_add_(0, flat, mass)
    return counts.view(books, codebook_size)


@torch.no_grad()
def batch_metrics(
    latents: torch.Tensor,
    valid: torch.Tensor,
    counts: torch.Tensor,
    sq_error: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """The metrics of ``VQOutput``: sums, which a whole stage can add up, and
    the perplexity of the batch.

    Arguments
    ---------
    latents : torch.Tensor
        What was quantized, [N, D].
    valid : torch.Tensor
        Which of the N count, booleans [N].
    counts : torch.Tensor
        Counts of the codes, [C, K].
    sq_error : torch.Tensor, optional
        Sum of squared quantization errors; absent: none was made.

    Returns
    -------
    dict
        Tensors on the device of the latents.
    """
    mass = valid.float()
    return {
        "counts": counts,
        "num_vectors": mass.sum(),
        "perplexity": entropy(counts).exp().mean(),
        "sq_error": mass.new_zeros(()) if sq_error is None else sq_error,
        "latent_sum": mass @ latents,
        "latent_sq_sum": mass @ latents.square().sum(1),
    }


def entropy(counts: torch.Tensor) -> torch.Tensor:
    """Entropy in nats of the distributions that counts stand for.

    Arguments
    ---------
    counts : torch.Tensor
        Counts, [..., K].

    Returns
    -------
    torch.Tensor
        Entropies, [...]; 0 where nothing was counted.
    """
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return -torch.special.xlogy(share, share).sum(-1)
