"""Batch normalization over valid frames."""

import torch
from torch import Tensor, nn

from speechbrain_vq.nnet.utils import (
    check_choice,
    is_recomputed,
    refuse_transform,
    sum_over_ranks,
)

# During the warm-up, initial statistics are replaced if the variance grows by
# more than this factor, or if the squared shift of the mean over the variance
# exceeds this limit in three batches (it is below 3 at 70 % silence).
_MAX_GROWTH, _MAX_SHIFT = 4, 9
# Minimum ratio of the variance to the mean square of the feature means, for a
# batch to be used for initial statistics.
_MIN_VARIANCE = 1e-9


class MaskedBatchNorm(nn.Module):
    """Batch normalization of the last dimension, with statistics over the
    valid frames of all ranks.

    Equivalent to ``torch.nn.BatchNorm1d`` (Ioffe and Szegedy, 2015) if all
    frames are valid, and to ``SyncBatchNorm`` in a distributed run. Running
    statistics are a plain mean over the first 1 / ``momentum`` batches, so
    evaluation works after a few steps. A batch without valid frames is
    normalized with the running statistics, and does not change them.

    Initial statistics (Salimans and Kingma, 2016, arXiv 1602.07868, section 3)
    are the feature means and the common variance of one of the first three
    batches: the one with the median variance, so that neither silence nor noise
    sets them. Among these, a batch with over four times the variance is
    normalized with its own statistics. During a warm-up, the latest three
    batches replace the statistics if the variance has more than quadrupled,
    which would amplify the outputs, or if all three means are more than three
    standard deviations away.

    Arguments
    ---------
    num_features : int
        Size of the last dimension.
    eps : float
        Value added to the variance.
    momentum : float
        Minimum weight of the newest batch in the running statistics.
    affine : bool
        Whether to learn a scale and a shift for each feature.
    statistics : str
        Statistics for normalization in training: ``"batch"``; ``"running"``,
        updated with the current batch but without gradient, for small or
        correlated batches; or ``"initial"``, see above.

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
        statistics: str = "batch",
    ):
        super().__init__()
        check_choice("statistics", statistics, ("batch", "running", "initial"))
        self.num_features, self.eps, self.momentum = num_features, eps, momentum
        self.statistics = statistics
        zeros = torch.zeros(num_features, dtype=torch.float32)
        self.register_buffer("running_mean", zeros)
        self.register_buffer("running_var", torch.ones_like(zeros))
        self.weight = nn.Parameter(torch.ones_like(zeros)) if affine else None
        self.bias = nn.Parameter(zeros.clone()) if affine else None
        self._start_counting(0)

    def _start_counting(self, number: int) -> None:
        count = torch.full((), number, device=self.running_mean.device)
        self.register_buffer("num_batches", count, persistent=False)
        if self.statistics == "initial":
            moments = self.running_mean.new_zeros(3, 2, self.num_features)
            if number:  # Loaded statistics stay until three batches disagree.
                moments[:, 0] = self.running_mean
                moments[:, 1] = self.running_var
            self.register_buffer("last_moments", moments, persistent=False)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        mean = state_dict.get(f"{prefix}running_mean")
        if mean is not None:
            # Loaded statistics are final, unless the norm was not yet trained.
            is_new = not mean.is_meta and not mean.any()
            self._start_counting(0 if is_new else 2**31)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, warmup: bool = False
    ) -> Tensor:
        """Normalize the last dimension.

        Arguments
        ---------
        x : torch.Tensor
            Input, [..., num_features].
        mask : torch.Tensor, optional
            Boolean mask, [...], True at valid frames. Invalid frames are
            normalized too, and must be finite.
        warmup : bool
            Whether ``"initial"`` statistics may be replaced.

        Returns
        -------
        torch.Tensor
            Output in fp32, in the shape of the input.
        """
        if x.shape[-1] != self.num_features:
            raise ValueError(
                f"MaskedBatchNorm expects {self.num_features} features, got a "
                f"tensor of shape {tuple(x.shape)}."
            )
        refuse_transform(self)
        with torch.autocast(x.device.type, enabled=False):
            mean, variance, x = self.running_mean, self.running_var, x.float()
            if self.training and (warmup or not self._is_settled()):
                if mask is None:
                    mask = torch.ones_like(x[..., 0])
                by_batch = self.statistics == "batch"
                learns = torch.is_grad_enabled() and by_batch
                with torch.set_grad_enabled(learns):
                    batch = self._moments(x, mask, warmup)
                if by_batch:
                    mean, variance = batch
                elif self.statistics == "initial":
                    mean, variance = self._choose(*batch)
            scale = torch.rsqrt(variance + self.eps)
            if self.weight is None:
                return (x - mean) * scale
            return torch.addcmul(self.bias, x - mean, scale * self.weight)

    def inverse(self, y: Tensor) -> Tensor:
        """Undo the normalization of y [..., num_features] with the running
        statistics, in fp32."""
        scale, y = torch.sqrt(self.running_var + self.eps), y.float()
        if self.weight is not None:
            # A feature with a weight of zero cannot be restored.
            weight = torch.where(self.weight.abs() < 1e-6, 1e-6, self.weight)
            scale, y = scale / weight, y - self.bias
        return torch.addcmul(self.running_mean, y, scale)

    def _moments(self, x, mask, warmup):
        """Compute the mean and variance of each feature, and update the running
        statistics."""
        flat = x.reshape(-1, self.num_features)
        share = mask.reshape(-1).to(flat.dtype)
        count = sum_over_ranks(share.sum())
        share, empty = share / count.clamp(min=1), count == 0
        mean = sum_over_ranks(share @ flat)
        mean = torch.where(empty, self.running_mean, mean)
        variance = sum_over_ranks(share @ (flat - mean).square())
        variance = torch.where(empty, self.running_var, variance)
        if not is_recomputed():
            self._update(mean.detach(), variance.detach(), count, warmup)
        return mean, variance

    def _update(self, mean, variance, count, warmup):
        if self.statistics == "initial":
            self._settle(mean, variance, count, warmup)
            return
        self.num_batches += count > 0
        # As in torch, the running variance is unbiased; one frame has none.
        unbiased = variance * count / (count - 1).clamp(min=1)
        unbiased = torch.where(count > 1, unbiased, self.running_var)
        share = (1 / self.num_batches.clamp(min=1)).clamp(min=self.momentum)
        if self.statistics == "running":  # Add the variance of batch means.
            apart = (mean - self.running_mean).square()
            unbiased = unbiased + (1 - share) * apart
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)

    def _choose(self, mean, variance):
        """Return the mean and variance to normalize a batch with. One of the
        first three batches uses its own if its variance is large: amplified, it
        would produce a gradient that dwarfs those of later steps."""
        own = variance.mean()
        is_outlier = own > _MAX_GROWTH * self.running_var[0]
        is_outlier &= self.num_batches <= 3
        return (
            torch.where(is_outlier, mean, self.running_mean),
            torch.where(is_outlier, own, self.running_var),
        )

    def _is_settled(self):
        """Return whether initial statistics are known to be final; always False
        on a GPU, where reading the count would require a sync."""
        if self.statistics != "initial" or torch.compiler.is_compiling():
            return False
        count = self.num_batches
        return count.device.type == "cpu" and int(count) >= 3

    def _settle(self, mean, variance, count, warmup):
        """Set initial statistics: those of the first batch, then of the batch
        with the larger variance of two, or the median variance of three."""
        # The variance of equal vectors is only rounding noise.
        level = mean.square().mean()
        counts = (count > 0) & (variance.mean() > _MIN_VARIANCE * level)
        index = torch.arange(3, device=mean.device)
        is_this = (index == self.num_batches % 3) & counts
        moments = torch.stack([mean, variance.mean().expand_as(mean)])
        self.last_moments.copy_(
            torch.where(is_this.view(3, 1, 1), moments, self.last_moments)
        )
        self.num_batches += counts
        # Rows not yet filled are zero, and sort before the others.
        order = self.last_moments[:, 1, 0].argsort(stable=True)
        chosen = torch.where(self.num_batches < 3, order[2], order[1])
        moments = self.last_moments.index_select(0, chosen.view(1))[0]
        is_open = (self.num_batches > 0) & (self.num_batches <= 3)
        if warmup:
            apart = self.last_moments[:, 0] - self.running_mean
            shift = apart.square().mean(1).amin()
            is_open |= moments[1, 0] > _MAX_GROWTH * self.running_var[0]
            is_open |= shift > _MAX_SHIFT * self.running_var[0]
        running = self.running_mean, self.running_var
        for old, new in zip(running, moments, strict=True):
            old.copy_(torch.where(is_open, new, old))
