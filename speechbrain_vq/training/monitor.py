"""What a codebook does over a whole stage.

Authors
 * speechbrain_vq authors 2026
"""

import math

import torch
from torch import nn

from speechbrain_vq.nnet.distributed import sum_over_ranks
from speechbrain_vq.nnet.losses import entropy

# The metrics of ``VQOutput`` that add up over a stage.
SUMMED = ("counts", "num_vectors", "sq_error", "latent_sum", "latent_sq_sum")


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
        if not self._sums:
            self._sums = self._zeros(metrics)
        self._sums["nonfinite_batches"] += metrics["num_nonfinite"] > 0
        # What passed unquantized would water the figures down.
        if not quantizer.bypass:
            for name in SUMMED:
                self._sums[name] += metrics[name]

    def _zeros(
        self, metrics: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        # fp32 sums over a whole epoch would lose the small terms.
        on_mps = metrics["counts"].device.type == "mps"
        wide = torch.float32 if on_mps else torch.float64
        zeros = {n: torch.zeros_like(metrics[n], dtype=wide) for n in SUMMED}
        bad = torch.zeros_like(metrics["num_nonfinite"], dtype=torch.int64)
        return {**zeros, "nonfinite_batches": bad}

    def stats(self, over_ranks: bool = False) -> dict[str, float]:
        """How the codebook was used since the start.

        Arguments
        ---------
        over_ranks : bool
            Whether to count what all ranks have seen; all must then ask.

        Returns
        -------
        dict
            Plain numbers: ``vectors`` (valid frames quantized),
            ``used_codes_percent`` and ``dead_codes`` (chosen at least once,
            and never, of all codebooks), ``perplexity`` (exponential of the
            entropy, mean over the codebooks), ``quantization_error`` (squared
            error over the variance of the latents), ``codebook_drift`` (root
            mean square way of the codewords since the start over their
            spread), ``bits_per_second`` (entropy x rate, where a rate is
            known), ``nonfinite_batches``. Where nothing was quantized, as in a
            warm-up, only ``vectors`` and ``nonfinite_batches``; before the
            first batch nothing.
        """
        if not self._sums:
            return {}
        sums = self._sums
        if over_ranks:
            sums = {k: sum_over_ranks(v) for k, v in sums.items()}
        sums = {k: v.to("cpu", torch.float64) for k, v in sums.items()}
        counts, number = sums["counts"], float(sums["num_vectors"])
        bad = {"nonfinite_batches": int(sums["nonfinite_batches"])}
        if not number:
            return {"vectors": 0, **bad}
        entropies = entropy(counts)
        variance = float(
            sums["latent_sq_sum"] / number
            - (sums["latent_sum"] / number).square().sum()
        )
        error = float(sums["sq_error"]) / number
        stats = {
            "vectors": int(number),
            "used_codes_percent": 100 * float((counts > 0).double().mean()),
            "perplexity": float(entropies.exp().mean()),
            "dead_codes": int((counts == 0).sum()),
            "quantization_error": error / variance if variance > 0 else 0.0,
            "codebook_drift": self._drift(),
            **bad,
        }
        if self.token_rate is not None:
            bits = float(entropies.sum()) / math.log(2)
            stats["bits_per_second"] = self.token_rate * bits
        return stats

    def _drift(self) -> float:
        now = self.quantizer.codebook.detach()
        spread = (now - now.mean(1, keepdim=True)).square().mean().sqrt()
        way = (now - self._codebook.to(now)).square().mean().sqrt()
        return float(way / spread) if spread > 0 else 0.0

    def snapshot(self) -> dict[str, torch.Tensor]:
        """A copy of the sums, for ``skip_batch``."""
        return {name: value.clone() for name, value in self._sums.items()}

    def skip_batch(self, before: dict[str, torch.Tensor]) -> None:
        """Goes back to the sums before a batch that is left out, and counts
        it."""
        for name, value in self._sums.items():
            value.copy_(before.get(name, torch.zeros_like(value)))
        self._sums["nonfinite_batches"] += 1

    def state_dict(self) -> dict:
        """What a resumed stage needs."""
        return {"sums": self._sums, "codebook": self._codebook}

    def load_state_dict(self, state: dict) -> None:
        """Takes a stage up again."""
        device = self.quantizer.codebook.device
        self._sums = {k: v.to(device) for k, v in state["sums"].items()}
        self._codebook = state["codebook"].to(device)
