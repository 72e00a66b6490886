"""Losses of a quantizer, and the metrics of a batch."""

import torch

from speechbrain_vq.nnet.utils import (
    differentiable_once,
    sum_over_ranks,
    world_size,
)


class LossToken:
    """Lives as long as the graph of a loss; ``used`` outlives it, and is not
    empty after a backward pass."""

    def __init__(self):
        self.used = []


class _QuantizationLoss(torch.autograd.Function):
    """w_c mean |x - sg[e]|^2 + w_e mean |sg[x] - e|^2 of vectors x and their
    codewords e; sum |x - e|^2 of each codebook; and e.

    Written out because the two terms have one value and opposite gradients:
    autograd would compute each of them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(targets, codebook, codes, mass, divisor, weights, token):
        table = codebook.flatten(0, 1)
        codewords = table.index_select(0, codes.flatten()).view_as(targets)
        difference = codewords - targets
        sq_error = mass @ torch.linalg.vector_norm(difference, dim=2).square()
        return sum(weights) * sq_error.sum() / divisor, sq_error, codewords

    @staticmethod
    def setup_context(ctx, inputs, output):
        targets, codebook, codes, mass, divisor, ctx.weights, ctx.token = inputs
        _, sq_error, codewords = output
        ctx.save_for_backward(targets, codewords, codes, mass, divisor)
        ctx.shape = codebook.shape
        ctx.mark_non_differentiable(codewords, sq_error)

    @staticmethod
    @differentiable_once
    def backward(ctx, gradient, *_):
        targets, codewords, codes, mass, divisor = ctx.saved_tensors
        commitment, codebook = ctx.weights
        if ctx.token is not None:
            ctx.token.used[:] = [True]
        step = codewords - targets
        step = step * (2 * gradient * mass / divisor).view(-1, 1, 1)
        to_codebook = to_targets = None
        if ctx.needs_input_grad[1]:
            to_codebook = step.new_zeros(ctx.shape).flatten(0, 1)
            to_codebook = to_codebook.index_add(
                0, codes.flatten(), step.flatten(0, 1), alpha=codebook
            ).view(ctx.shape)
        if ctx.needs_input_grad[0]:
            to_targets = step * -commitment
        return to_targets, to_codebook, *[None] * 5


def quantization_loss(
    targets: torch.Tensor,
    codebook: torch.Tensor,
    codes: torch.Tensor,
    mass: torch.Tensor,
    commitment_weight: float,
    codebook_weight: float,
    over_ranks: bool,
    token: LossToken | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute codebook and commitment loss (van den Oord et al., 2017, equation 3).

    Means run over all elements of the valid vectors, as in the code of arXiv
    2005.08520.

    Arguments
    ---------
    targets : torch.Tensor
        Vectors quantized, x, [N, c, d], by the first c codebooks.
    codebook : torch.Tensor
        The codewords, [C, K, d].
    codes : torch.Tensor
        The nearest codewords, as ``number_codes`` counts them, [N, c].
    mass : torch.Tensor
        1 for each of the N that counts, 0 for the others, [N].
    commitment_weight : float
        Weight of ``|x - sg[e]|^2``.
    codebook_weight : float
        Weight of ``|sg[x] - e|^2``.
    over_ranks : bool
        Whether to count the valid vectors of all ranks, so that DDP's average
        of the gradients is that of the whole batch.
    token : LossToken, optional
        Kept by the graph of the loss.

    Returns
    -------
    tuple
        The loss; and without gradient each codebook's sum of squared errors,
        [c], and the codewords chosen, e, [N, c, d].

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
        token,
    )


@torch.no_grad()
def code_counts(
    codes: torch.Tensor,
    mass: torch.Tensor,
    num_codebooks: int,
    codebook_size: int,
) -> torch.Tensor:
    """Count how often each code was chosen.

    Arguments
    ---------
    codes : torch.Tensor
        Codes, as ``number_codes`` counts them, [N, c].
    mass : torch.Tensor
        1 for each of the N that counts, 0 for the others, [N].
    num_codebooks : int
        Number of codebooks, C.
    codebook_size : int
        Number of codes of each codebook, K.

    Returns
    -------
    torch.Tensor
        Counts, [C, K], float.
    """
    counts = mass.new_zeros(num_codebooks * codebook_size)
    each = mass.unsqueeze(1).expand_as(codes).flatten()
    counts = counts.index_add(0, codes.flatten(), each)
    return counts.view(num_codebooks, -1)


@torch.no_grad()
def batch_metrics(
    latents: torch.Tensor,
    mass: torch.Tensor,
    counts: torch.Tensor,
    sq_error: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """Compute the metrics of ``VQOutput``: sums, which a whole stage can add up, and
    the perplexity of the batch.

    Arguments
    ---------
    latents : torch.Tensor
        Latents quantized, [N, D].
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
    """Compute the entropy in nats of the distributions given by counts.

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
