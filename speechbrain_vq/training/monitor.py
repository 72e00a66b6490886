"""What a codebook does over a whole stage.

Authors
 * speechbrain_vq authors 2026
"""

import math

import torch
from torch import nn

from speechbrain_vq.nnet.distributed import sum_over_ranks


class UsageMonitor:
    """Watches a quantizer from one ``start()`` to the next and says how its
    codebook is used; figures of single batches would depend on their size.

    It listens through a forward hook, so it sees the quantizer wherever it is
    called from, DDP included, and sums on the quantizer's device: nothing
    waits for the host until ``stats()`` is asked.

    Arguments
    ---------
    quantizer : torch.nn.Module
        A ``VectorQuantizer`` or ``ResidualVectorQuantizer``.
    token_rate : float, optional
        Frames a second, for the bit rate.

    Example
    -------
    >>> from speechbrain_vq.nnet import VectorQuantizer
    >>> quantizer = VectorQuantizer(8, 16)
    >>> monitor = UsageMonitor(quantizer)
    >>> for _ in range(4):
    ...     _ = quantizer(torch.randn(100, 8))
    >>> stats = monitor.stats()
    >>> stats["vectors"], 0 < stats["used_codes_percent"] <= 100
    (400, True)
    """

    def __init__(self, quantizer: nn.Module, token_rate: float | None = None):
        self.quantizer = quantizer
        self.token_rate = token_rate
        self.start()
        self._handle = quantizer.register_forward_hook(self._listen)

    def start(self) -> None:
        """Begins a stage."""
        self._sums: dict[str, torch.Tensor] = {}
        self._codebook = self.quantizer.codebook.detach().clone()

    def close(self) -> None:
        """Stops listening."""
        self._handle.remove()

    @torch.no_grad()
    def _listen(self, quantizer, inputs, output) -> None:
        metrics = output.metrics
        bad = (metrics["num_nonfinite"] > 0).to(torch.int64)
        new = {"nonfinite_batches": bad}
        # fp32 sums over a whole epoch would lose the small terms.
        wide = torch.float32 if bad.device.type == "mps" else torch.float64
        for name in (
            "counts",
            "num_vectors",
            "sq_error",
            "latent_sum",
            "latent_sq_sum",
        ):
            # What passed unquantized would water the figures down.
            new[name] = metrics[name].to(wide) * (not quantizer.bypass)
        if not self._sums:
            self._sums = new
            return
        for name, value in new.items():
            self._sums[name] += value

    def stats(self, over_ranks: bool = False) -> dict[str, float]:
        """How the codebook was used since the start.

        Arguments
        ---------
        over_ranks : bool
            Whether to count what all ranks have seen; all must then ask.

        Returns
        -------
        dict
            Plain numbers: ``vectors`` (valid frames
            quantized), ``used_codes_percent`` and ``dead_codes`` (chosen at least once,
            and never, of all codebooks), ``perplexity`` (exponential of the
            entropy, mean over the codebooks), ``quantization_error`` (squared
            error over the variance of the latents), ``codebook_drift``
            (root mean square way of the codewords since the start over their
            spread), ``bits_per_second`` (entropy x rate, where a rate is
            known), ``nonfinite_batches``. Before the first batch and
            during warm-up: no use.
        """
        if not self._sums:
            return {}
        sums = self._sums
        if over_ranks:
            sums = {k: sum_over_ranks(v) for k, v in sums.items()}
        sums = {k: v.to("cpu", torch.float64) for k, v in sums.items()}
        counts = sums["counts"]
        number = max(float(sums["num_vectors"]), 1.0)
        share = counts / counts.sum(1, keepdim=True).clamp(min=1)
        entropy = -torch.special.xlogy(share, share).sum(1)
        variance = float(
            sums["latent_sq_sum"] / number
            - (sums["latent_sum"] / number).square().sum()
        )
        error = float(sums["sq_error"]) / number
        stats = {
            "vectors": int(sums["num_vectors"]),
            "used_codes_percent": 100 * float((counts > 0).double().mean()),
            "perplexity": float(entropy.exp().mean()),
            "dead_codes": int((counts == 0).sum()),
            "quantization_error": error / variance if variance > 0 else 0.0,
            "codebook_drift": self._drift(),
            "nonfinite_batches": int(sums["nonfinite_batches"]),
        }
        if self.token_rate is not None:
            bits = float(entropy.sum()) / math.log(2)
            stats["bits_per_second"] = self.token_rate * bits
        return stats

    def _drift(self) -> float:
        now = self.quantizer.codebook.detach()
        spread = (now - now.mean(1, keepdim=True)).square().mean().sqrt()
        way = (now - self._codebook.to(now)).square().mean().sqrt()
        return float(way / spread) if spread > 0 else 0.0

    def state_dict(self) -> dict:
        """What a resumed stage needs."""
        return {"sums": self._sums, "codebook": self._codebook}

    def load_state_dict(self, state: dict) -> None:
        """Takes a stage up again."""
        device = self.quantizer.codebook.device
        self._sums = {k: v.to(device) for k, v in state["sums"].items()}
        self._codebook = state["codebook"].to(device)
