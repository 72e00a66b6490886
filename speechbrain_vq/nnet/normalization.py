"""Batch normalization over valid frames only."""

import torch
from torch import Tensor, nn

from speechbrain_vq.nnet.utils import (
    check_choice,
    is_recomputed,
    refuse_transform,
    sum_over_ranks,
)

# Growth of the variance in a warm-up after which initial statistics are set anew,
# and squared shift of the mean, over the variance, in each of three batches;
# with 70 % of silence it stays below 3.
_MOST_GROWTH, _MOST_SHIFT = 4, 9
# Variance of a batch that sets them, over the mean square of the means.
_LEAST_VARIANCE = 1e-9


class MaskedBatchNorm(nn.Module):
    """Batch normalization over the last dimension, with statistics of the
    valid frames of all ranks.

    Equal to ``torch.nn.BatchNorm1d`` where every frame is valid (Ioffe and
    Szegedy, 2015), and to ``SyncBatchNorm`` in a distributed run. A batch
    without a valid frame leaves the running statistics, and is normalized by
    them. They are the mean over all batches until ``momentum`` exceeds the
    weight of one, so that evaluation is right after a few steps.

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
    statistics : str
        By which training normalizes: ``"batch"``: the batch's; ``"running"``:
        those of evaluation, the batch included, through which no gradient
        passes: for small or correlated batches; ``"initial"``: those of one of
        the first batches: means of the features and one variance, of that of
        three batches whose variance is the middle one, so that neither silence
        nor noise sets them (data-dependent initialization: Salimans and Kingma,
        2016, arXiv 1602.07868, section 3). In a warm-up, the latest three set
        them anew where the variance is then more than four times as large:
        outputs that were small at first would be amplified without end; or the
        means of all three are over three standard deviations away: it would be
        most of what the outputs are. Of the first three, a batch of over four
        times the variance is normalized by its own.

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
            self.register_buffer("last_moments", moments, persistent=False)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        super()._load_from_state_dict(state_dict, prefix, *args)
        mean = state_dict.get(f"{prefix}running_mean")
        if mean is not None:
            # Statistics that are loaded do not make way for the next batch,
            # but for those of a norm that has seen none.
            is_new = not mean.is_meta and not mean.any()
            self._start_counting(0 if is_new else 2**31)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, warmup: bool = False
    ) -> Tensor:
        """Normalize.

        Arguments
        ---------
        x : torch.Tensor
            Input, [..., num_features].
        mask : torch.Tensor, optional
            Booleans, [...], True at valid frames. Invalid frames are
            normalized too, and must be finite.
        warmup : bool
            Whether ``"initial"`` statistics may be set anew.

        Returns
        -------
        torch.Tensor
            Output in the shape of the input, fp32.
        """
        if x.shape[-1] != self.num_features:
            raise ValueError(
                f"MaskedBatchNorm normalizes {self.num_features} features, got "
                f"a tensor of shape {tuple(x.shape)}."
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
        """Undo the normalization of [..., num_features], in fp32, by the
        running statistics."""
        scale, y = torch.sqrt(self.running_var + self.eps), y.float()
        if self.weight is not None:
            # A feature whose weight is zero has nothing to be undone.
            weight = torch.where(self.weight.abs() < 1e-6, 1e-6, self.weight)
            scale, y = scale / weight, y - self.bias
        return torch.addcmul(self.running_mean, y, scale)

    def _moments(self, x, mask, warmup):
        """Compute mean and variance of the features, and average them."""
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
        # As torch does, the running variance is the unbiased one; a lone
        # frame has none, so it leaves it.
        unbiased = variance * count / (count - 1).clamp(min=1)
        unbiased = torch.where(count > 1, unbiased, self.running_var)
        share = (1 / self.num_batches.clamp(min=1)).clamp(min=self.momentum)
        if self.statistics == "running":  # The means of batches differ, too.
            apart = (mean - self.running_mean).square()
            unbiased = unbiased + (1 - share) * apart
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)

    def _choose(self, mean, variance):
        """Return the moments that normalize a batch: of the first three its own
        where the statistics would amplify it, which would drown the later
        gradients in those of one step."""
        own = variance.mean()
        is_wild = own > _MOST_GROWTH * self.running_var[0]
        is_wild &= self.num_batches <= 3
        return (
            torch.where(is_wild, mean, self.running_mean),
            torch.where(is_wild, own, self.running_var),
        )

    def _is_settled(self):
        """Return whether the initial statistics are final; only on a CPU, where
        reading their count needs no device sync."""
        count, compiling = self.num_batches, torch.compiler.is_compiling()
        asks = self.statistics == "initial" and count.device.type == "cpu"
        return asks and not compiling and int(count) >= 3

    def _settle(self, mean, variance, count, warmup):
        """Take the moments of the first batch, of the wider of the first two,
        and of the middle one of the first three, or of the latest three."""
        # One vector, or a batch of equal ones, has no variance but rounding.
        level = mean.square().mean()
        counts = (count > 0) & (variance.mean() > _LEAST_VARIANCE * level)
        index = torch.arange(3, device=mean.device)
        is_this = (index == self.num_batches % 3) & counts
        moments = torch.stack([mean, variance.mean().expand_as(mean)])
        self.last_moments.copy_(
            torch.where(is_this.view(3, 1, 1), moments, self.last_moments)
        )
        self.num_batches += counts
        # Rows of batches to come are zero, and sort before the others.
        order = self.last_moments[:, 1, 0].argsort(stable=True)
        chosen = torch.where(self.num_batches < 3, order[2], order[1])
        moments = self.last_moments.index_select(0, chosen.view(1))[0]
        is_open = (self.num_batches > 0) & (self.num_batches <= 3)
        if warmup:
            apart = self.last_moments[:, 0] - self.running_mean
            shift = apart.square().mean(1).amin()
            is_open |= moments[1, 0] > _MOST_GROWTH * self.running_var[0]
            is_open |= shift > _MOST_SHIFT * self.running_var[0]
        for own, new in zip(
            (self.running_mean, self.running_var), moments, strict=True
        ):
            own.copy_(torch.where(is_open, new, own))
