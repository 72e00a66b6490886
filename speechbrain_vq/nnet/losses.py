"""The quantizer's loss, and what is counted beside it.

Authors
 * speechbrain_vq authors 2026
"""

import torch

from speechbrain_vq.nnet.distributed import sum_over_ranks, world_size


class _QuantizationLoss(torch.autograd.Function):
    """w_c mean |x - sg[e]|^2 + w_e mean |sg[x] - e|^2 of vectors x and their
    codewords e; these, and sum |x - e|^2 of each codebook.

    Written out because the two terms have one value and opposite gradients:
    autograd would compute each of them.
    """

    @staticmethod
    def forward(ctx, targets, codebook, codes, mass, divisor, weights):
        table = codebook.flatten(0, 1)
        codewords = table.index_select(0, codes.flatten()).view_as(targets)
        difference = codewords - targets
        sq_error = mass @ torch.linalg.vector_norm(difference, dim=2).square()
        ctx.save_for_backward(difference, codes, mass / divisor)
        ctx.weights, ctx.shape = weights, codebook.shape
        ctx.mark_non_differentiable(codewords, sq_error)
        return sum(weights) * sq_error.sum() / divisor, sq_error, codewords

    @staticmethod
    def backward(ctx, gradient, *_):
        difference, codes, share = ctx.saved_tensors
        commitment, codebook = ctx.weights
        step = difference * (2 * gradient * share).view(-1, 1, 1)
        to_codebook = to_targets = None
        if ctx.needs_input_grad[1]:
            to_codebook = step.new_zeros(ctx.shape)
            to_codebook.view(-1, ctx.shape[2]).index_add_(
                0, codes.flatten(), step.flatten(0, 1), alpha=codebook
            )
        if ctx.needs_input_grad[0]:
            to_targets = step.mul_(-commitment)
        return to_targets, to_codebook, *[None] * 4


def quantization_loss(
    targets: torch.Tensor,
    codebook: torch.Tensor,
    codes: torch.Tensor,
    mass: torch.Tensor,
    commitment_weight: float,
    codebook_weight: float,
    over_ranks: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codebook and commitment loss (van den Oord et al., 2017, equation 3).

    Means run over all elements of the valid vectors, as in the code of arXiv
    2005.08520.

    Arguments
    ---------
    targets : torch.Tensor
        What was quantized, x, [N, C, d].
    codebook : torch.Tensor
        The codewords, [C, K, d].
    codes : torch.Tensor
        The nearest codewords, as ``number_codes`` counts them, [N, C].
    mass : torch.Tensor
        1 for each of the N that counts, 0 for the others, [N].
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
        The loss; and without gradient each codebook's sum of squared errors,
        [C], and the codewords chosen, e, [N, C, d].

    Example
    -------
    >>> x, codebook = torch.zeros(2, 1, 4), torch.ones(1, 8, 4)
    >>> codes, mass = torch.zeros(2, 1, dtype=torch.long), torch.ones(2)
    >>> quantization_loss(x, codebook, codes, mass, 0.25, 1.0, False)[:2]
    (tensor(1.2500), tensor([8.]))
    """
    number = mass.sum()
    if over_ranks:
        number = sum_over_ranks(number) / world_size()
    # Not even one vector: all weights are zero whatever they are divided by.
    divisor = (number * targets.shape[1:].numel()).clamp(min=1e-9)
    return _QuantizationLoss.apply(
        targets,
        codebook,
        codes,
        mass,
        divisor,
        (commitment_weight, codebook_weight),
    )


@torch.no_grad()
def code_counts(
    codes: torch.Tensor, mass: torch.Tensor, codebook_size: int
) -> torch.Tensor:
    """How often each code was chosen.

    Arguments
    ---------
    codes : torch.Tensor
        Codes, as ``number_codes`` counts them, [N, C].
    mass : torch.Tensor
        1 for each of the N that counts, 0 for the others, [N].
    codebook_size : int
        Number of codes of each codebook, K.

    Returns
    -------
    torch.Tensor
        Counts, [C, K], float.
    """
    books = codes.shape[1]
    counts = mass.new_zeros(books * codebook_size)
    each = mass.unsqueeze(1).expand_as(codes).flatten()
    return counts.index_add_(0, codes.flatten(), each).view(books, -1)


@torch.no_grad()
def batch_metrics(
    latents: torch.Tensor,
    mass: torch.Tensor,
    counts: torch.Tensor,
    sq_error: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """The metrics of ``VQOutput``: sums, which a whole stage can add up, and
    the perplexity of the batch.

    Arguments
    ---------
    latents : torch.Tensor
        What was quantized, [N, D].
    mass : torch.Tensor
        1 for each of the N that counts, 0 for the others, [N].
    counts : torch.Tensor
        Counts of the codes, [C, K].
    sq_error : torch.Tensor, optional
        Sum of squared quantization errors; absent: none was made.

    Returns
    -------
    dict
        Tensors on the device of the latents.
    """
    return {
        "counts": counts,
        "num_vectors": mass.sum(),
        "perplexity": entropy(counts).exp().mean(),
        "sq_error": mass.new_zeros(()) if sq_error is None else sq_error,
        "latent_sum": mass @ latents,
        "latent_sq_sum": mass
        @ torch.linalg.vector_norm(latents, dim=1).square(),
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
