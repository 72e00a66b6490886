"""Batch normalization that sees valid frames only.

Authors
 * speechbrain_vq authors 2026
"""

import torch
from torch import nn

from speechbrain_vq.nnet.distributed import sum_over_ranks


class MaskedBatchNorm(nn.Module):
    """Batch normalization over the last dimension, with statistics of the
    valid frames of all ranks.

    Equal to ``torch.nn.BatchNorm1d`` where every frame is valid (Ioffe and
    Szegedy, 2015), to ``SyncBatchNorm`` in a distributed run, which unlike the
    latter also runs on a CPU. A batch without a valid frame is normalized with
    the running statistics and leaves them as they are.

    Arguments
    ---------
    num_features : int
        Size of the last dimension.
    eps : float
        Added to the variance.
    momentum : float
        Weight of the newest batch in the running statistics.
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
        eps: float = 1e-5,
        momentum: float = 0.1,
        affine: bool = True,
    ):
        super().__init__()
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.weight = nn.Parameter(torch.ones(num_features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(num_features)) if affine else None
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Normalizes.

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
        """
        if x.shape[-1] != self.num_features:
            raise ValueError(
                f"MaskedBatchNorm normalizes {self.num_features} features, got "
                f"a tensor of shape {tuple(x.shape)}."
            )
        with torch.autocast(x.device.type, enabled=False):
            x = x.float()
            if self.training:
                centred, variance = self._centre(x, mask)
            else:
                centred, variance = x - self.running_mean, self.running_var
            scale = torch.rsqrt(variance + self.eps)
            if self.weight is None:
                return centred * scale
            return torch.addcmul(self.bias, centred, scale * self.weight)

    def _centre(
        self, x: torch.Tensor, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The input less its mean, and its variance, over valid frames."""
        flat = x.reshape(-1, self.num_features)
        if mask is None:
            weight = flat.new_ones(len(flat))
        else:
            weight = mask.reshape(-1).to(flat.dtype)
        count = sum_over_ranks(weight.sum())
        divisor = count.clamp(min=1)
        mean = sum_over_ranks(weight @ flat) / divisor
        empty = count == 0
        mean = torch.where(empty, self.running_mean, mean)
        centred = x - mean
        square = centred.reshape(-1, self.num_features).square()
        variance = sum_over_ranks(weight @ square) / divisor
        variance = torch.where(empty, self.running_var, variance)
        self._update(mean, variance, count)
        return centred, variance

    @torch.no_grad()
    def _update(
        self, mean: torch.Tensor, variance: torch.Tensor, count: torch.Tensor
    ) -> None:
        # As torch does, the running variance is the unbiased one; a lone
        # frame has none, so it leaves it.
        unbiased = variance * count / (count - 1).clamp(min=1)
        unbiased = torch.where(count > 1, unbiased, self.running_var)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(unbiased, self.momentum)

    def extra_repr(self) -> str:
        """The arguments, for ``print``."""
        return f"{self.num_features}, affine={self.weight is not None}"
