"""Batch normalization over valid frames only."""

import torch
from torch import nn

from speechbrain_vq.nnet.utils import (
    differentiable_once,
    in_transform,
    is_recomputed,
    sum_over_ranks,
)

# Epsilon of version 0.1. A hundredth of the usual scale of encoder outputs has
# a variance of about 1e-6, where 1e-5 is no small thing.
OLD_EPS = 1e-5


class _Normalize(torch.autograd.Function):
    """weight * (x - mean) / std + bias, with mean and variance over the rows
    that count.

    Written out because autograd would keep and walk through each of its steps;
    the gradient is that of Ioffe and Szegedy, 2015, section 3.
    """

    @staticmethod
    def forward(ctx, x, share, mean, variance, eps, weight, bias):
        count = sum_over_ranks(share.sum())
        divisor, empty = count.clamp(min=1), count == 0
        mean = torch.where(empty, mean, sum_over_ranks(share @ x) / divisor)
        centred = x - mean
        square = sum_over_ranks(share @ centred.square()) / divisor
        variance = torch.where(empty, variance, square)
        scale = torch.rsqrt(variance + eps)
        ctx.save_for_backward(centred, share, scale, divisor, weight, x)
        ctx.mark_non_differentiable(mean, variance, count)
        out = _affine(centred, scale, weight, bias)
        return out, mean, variance, count

    @staticmethod
    @differentiable_once
    def backward(ctx, gradient, *_):
        centred, share, scale, divisor, weight, _ = ctx.saved_tensors
        to_bias = gradient.sum(0)
        to_weight = (gradient * centred).sum(0) * scale
        # All rows depend on the statistics; only those that count are in them.
        sums = sum_over_ranks(torch.stack((to_bias, to_weight * scale)))
        slope = scale if weight is None else scale * weight
        along_one, along_centred = sums * (-slope / divisor)
        result = torch.addcmul(along_one, centred, along_centred)
        result.mul_(share.unsqueeze(1)).addcmul_(gradient, slope)
        if weight is None:
            to_weight = to_bias = None
        return result, *[None] * 4, to_weight, to_bias


def _affine(centred, scale, weight, bias):
    """weight * centred * scale + bias, where there are weight and bias."""
    if weight is None:
        return centred * scale
    return torch.addcmul(bias, centred, scale * weight)


class MaskedBatchNorm(nn.Module):
    """Batch normalization over the last dimension, with statistics of the
    valid frames of all ranks.

    Equal to ``torch.nn.BatchNorm1d`` where every frame is valid (Ioffe and
    Szegedy, 2015), to ``SyncBatchNorm`` in a distributed run, which unlike the
    latter also runs on a CPU. A batch without a valid frame is normalized with
    the running statistics and leaves them as they are.

    The running statistics are the mean over all batches until ``momentum``
    exceeds their weight in it, so that a model is right in evaluation after a
    few steps: from their start, 0 and 1, momentum alone would keep 35 % after
    ten batches.

    Arguments
    ---------
    num_features : int
        Size of the last dimension.
    eps : float
        Added to the variance.
    momentum : float
        Least weight of the newest batch in the running statistics.
    affine : bool
        Whether to learn a scale and a shift for each feature.

    Example
    -------
    >>> norm = MaskedBatchNorm(3)
    >>> x = 5 + 2 * torch.randn(4, 50, 3)
    >>> mask = torch.arange(50) < torch.tensor([50, 40, 30, 20]).unsqueeze(1)
    >>> y = norm(x, mask)
    >>> torch.allclose(y[mask].mean(0), torch.zeros(3), atol=1e-5)
    True
    """

    def __init__(
        self,
        num_features: int,
        eps: float = 1e-12,
        momentum: float = 0.1,
        affine: bool = True,
    ):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        ones = torch.ones(num_features, dtype=torch.float32)
        self.weight = nn.Parameter(ones.clone()) if affine else None
        self.bias = nn.Parameter(torch.zeros_like(ones)) if affine else None
        self.register_buffer("running_mean", torch.zeros_like(ones))
        self.register_buffer("running_var", ones.clone())
        self._start_counting(0)

    def _start_counting(self, number: int) -> None:
        count = torch.full((), number, device=self.running_mean.device)
        self.register_buffer("num_batches", count, persistent=False)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        # Statistics that are loaded do not make way for the next batch.
        if f"{prefix}running_mean" in state_dict:
            self._start_counting(2**31)

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalize.

        Arguments
        ---------
        x : torch.Tensor
            Input, [..., num_features].
        mask : torch.Tensor, optional
            Booleans, [...], True at valid frames. Invalid frames are
            normalized too, and must be finite.

        Returns
        -------
        torch.Tensor
            Output in the shape of ``x``, fp32.

        Raises
        ------
        ValueError
            If the last dimension is not ``num_features``.
        RuntimeError
            In training under a transform of ``torch.func``.
        """
        if x.shape[-1] != self.num_features:
            raise ValueError(
                f"MaskedBatchNorm normalizes {self.num_features} features, got "
                f"a tensor of shape {tuple(x.shape)}."
            )
        if self.training and in_transform():
            raise RuntimeError(
                "Running statistics cannot be updated under torch.func "
                "transforms: call eval() first."
            )
        with torch.autocast(x.device.type, enabled=False):
            flat = x.float().reshape(-1, self.num_features)
            if self.training:
                out = self._train(flat, mask)
            else:
                out = _affine(
                    flat - self.running_mean,
                    torch.rsqrt(self.running_var + self.eps),
                    self.weight,
                    self.bias,
                )
            return out.view(x.shape)

    def inverse(self, y: torch.Tensor) -> torch.Tensor:
        """Undo the normalization, by the running statistics.

        Arguments
        ---------
        y : torch.Tensor
            Normalized vectors, [..., num_features].

        Returns
        -------
        torch.Tensor
            Vectors in the space of the input, [..., num_features], fp32.
        """
        scale = torch.sqrt(self.running_var + self.eps)
        if self.weight is None:
            return torch.addcmul(self.running_mean, y.float(), scale)
        # A feature whose weight is zero has nothing to be undone.
        weight = torch.where(self.weight.abs() < 1e-6, 1e-6, self.weight)
        return torch.addcmul(
            self.running_mean, y.float() - self.bias, scale / weight
        )

    def _train(
        self, flat: torch.Tensor, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Normalize [N, D] by its own statistics and average these."""
        if mask is None:
            share = flat.new_ones(len(flat))
        else:
            share = mask.reshape(-1).to(flat.dtype)
        out, mean, variance, count = _Normalize.apply(
            flat,
            share,
            self.running_mean,
            self.running_var,
            self.eps,
            self.weight,
            self.bias,
        )
        if not is_recomputed():
            self._update(mean, variance, count)
        return out

    @torch.no_grad()
    def _update(
        self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor
    ) -> None:
        # As torch does, the running variance is the unbiased one; a lone
        # frame has none, so it leaves it.
        unbiased = variance * count / (count - 1).clamp(min=1)
        unbiased = torch.where(count > 1, unbiased, self.running_var)
        self.num_batches += count > 0
        share = (1 / self.num_batches.clamp(min=1)).clamp(min=self.momentum)
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)

    def extra_repr(self) -> str:
        """Return the arguments, for ``print``."""
        return f"{self.num_features}, affine={self.weight is not None}"
