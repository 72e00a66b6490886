"""Losses of a quantizer, and the metrics of a batch."""

import torch

from speechbrain_vq.nnet.utils import sum_over_ranks, world_size


class LossToken:
    """Lives as long as the graph of a loss; its list ``used`` outlives it, and
    is not empty after a backward pass."""

    def __init__(self):
        self.used = []


class _QuantizationLoss(torch.autograd.Function):
    """w_c mean |x - sg[e]|^2 + w_e mean |sg[x] - e|^2 of vectors x and their
    codewords e, and sum |x - e|^2 of each codebook.

    Written out because the two terms have one value and opposite gradients:
    autograd would compute each of them.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(targets, codewords, mass, divisor, weights, token):
        distances = torch.linalg.vector_norm(codewords - targets, dim=2)
        sq_error = mass @ distances.square()
        return sum(weights) * sq_error.sum() / divisor, sq_error

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.weights, ctx.token = inputs
        ctx.save_for_backward(*tensors)
        ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx, gradient, _):
        x, e, mass, divisor = ctx.saved_tensors
        commitment, codebook = ctx.weights
        if ctx.token is not None:
            ctx.token.used[:] = [True]
        slope = (2 * gradient * mass / divisor).view(-1, 1, 1)
        to_x = to_e = None
        # Detached as in the loss, for the derivatives of these.
        if ctx.needs_input_grad[0]:
            to_x = (x - e.detach()) * (commitment * slope)
        if ctx.needs_input_grad[1]:
            to_e = (e - x.detach()) * (codebook * slope)
        return to_x, to_e, None, None, None, None


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
    """Compute the codebook and commitment loss (van den Oord et al., 2017,
    equation 3) of targets [N, c, d], their codes [N, c] in a codebook
    [C, K, d] as ``number_codes`` counts them, and a mass [N] of 1 where a
    vector counts, else 0. Return it, each codebook's sum of squared errors
    [c] and the codewords [N, c, d]; gradients pass the loss only.

    Means run over all elements of the valid vectors, as in the code of arXiv
    2005.08520; ``over_ranks``, over those of all ranks, so that DDP's average
    of the gradients is that of the whole batch. The loss's graph keeps
    ``token``.

    >>> x, codebook = torch.zeros(2, 1, 4), torch.ones(1, 8, 4)
    >>> codes, mass = torch.zeros(2, 1, dtype=torch.long), torch.ones(2)
    >>> quantization_loss(x, codebook, codes, mass, 0.25, 1.0, False)[:2]
    (tensor(1.2500), tensor([8.]))
    """
    table = codebook.flatten(0, 1)
    codewords = table.index_select(0, codes.flatten()).view_as(targets)
    number = mass.sum()
    if over_ranks:
        number = sum_over_ranks(number) / world_size()
    # Without a vector all masses are zero, whatever they are divided by.
    divisor = (number * targets.shape[1:].numel()).clamp(min=1e-9)
    weights = commitment_weight, codebook_weight
    loss, sq_error = _QuantizationLoss.apply(
        targets, codewords, mass, divisor, weights, token
    )
    return loss, sq_error, codewords.detach()


@torch.no_grad()
def code_counts(
    codes: torch.Tensor,
    mass: torch.Tensor,
    num_codebooks: int,
    codebook_size: int,
) -> torch.Tensor:
    """Count the codes [N, c] of a mass [N], as ``quantization_loss`` takes
    them -> [C, K]."""
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
    """Compute the metrics of ``VQOutput`` of latents [N, D] of a mass [N],
    counts [C, K] and the sum of squared quantization errors, None where
    nothing was quantized: sums that a whole stage can add up, and the
    perplexity of the batch."""
    squares = torch.linalg.vector_norm(latents, dim=1).square()
    return {
        "counts": counts,
        "num_vectors": mass.sum(),
        "perplexity": entropy(counts).exp().mean(),
        "sq_error": mass.new_zeros(()) if sq_error is None else sq_error,
        "latent_sum": mass @ latents,
        "latent_sq_sum": mass @ squares,
    }


def entropy(counts: torch.Tensor) -> torch.Tensor:
    """Compute the entropies [...] in nats of distributions given by counts
    [..., K]; 0 where nothing was counted."""
    share = counts / counts.sum(-1, keepdim=True).clamp(min=1)
    return -torch.special.xlogy(share, share).sum(-1)
