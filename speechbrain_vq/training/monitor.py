"""Monitoring of codebook usage over a whole stage."""

import math

import torch
from torch import nn

from speechbrain_vq.nnet.losses import entropy
from speechbrain_vq.nnet.utils import is_recomputed, sum_over_ranks

# The metrics of ``VQOutput`` that add up over a stage.
SUMMED = ("counts", "num_vectors", "sq_error", "latent_sum", "latent_sq_sum")


class UsageMonitor:
    """Accumulates the codebook usage of a quantizer since ``start()``, by a
    forward hook and on its device: nothing waits for the host before
    ``stats()``. Metrics of single batches would depend on their size.

    Arguments
    ---------
    quantizer : torch.nn.Module
        A ``VectorQuantizer`` or ``ResidualVectorQuantizer``.
    token_rate : float, optional
        Frames a second, for the bit rate.
    training : bool, optional
        Whether to count batches in training mode (True) or in evaluation
        (False) only.

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

    def __init__(
        self,
        quantizer: nn.Module,
        token_rate: float | None = None,
        training: bool | None = None,
    ):
        self.quantizer = quantizer
        self.token_rate = token_rate
        self.training = training
        self.start()
        self._handle = quantizer.register_forward_hook(self._add)

    def start(self) -> None:
        """Begin a stage."""
        self._sums: dict[str, torch.Tensor] = {}
        # That of the first batch, after any recovery of a checkpoint.
        self._codebook = None

    def close(self) -> None:
        """Stop listening."""
        self._handle.remove()

    @torch.no_grad()
    def _add(self, quantizer, inputs, output) -> None:
        if is_recomputed() or self.training not in (None, quantizer.training):
            return
        metrics = output.metrics
        if not self._sums:
            self._sums = self._zeros(metrics)
            self._codebook = quantizer.codebook.detach().clone()
        bad = metrics["num_nonfinite"] > 0
        self._sums["nonfinite_batches"] += bad
        # Batches that passed unquantized would dilute the metrics.
        if not quantizer.bypass:
            for name in SUMMED:
                self._sums[name] += metrics[name]
            loss = output.loss.detach()
            self._sums["loss"] += metrics["num_vectors"] * torch.where(
                bad, 0.0, loss
            )

    def _zeros(self, metrics) -> dict[str, torch.Tensor]:
        # fp32 sums over a whole epoch would lose the small terms.
        on_mps = metrics["counts"].device.type == "mps"
        wide = torch.float32 if on_mps else torch.float64
        zeros = {n: torch.zeros_like(metrics[n], dtype=wide) for n in SUMMED}
        scalar = zeros["num_vectors"]
        for name in ("loss", "nonfinite_batches"):
            zeros[name] = torch.zeros_like(scalar)
        return zeros

    def stats(self, over_ranks: bool = False) -> dict[str, float]:
        """Compute the usage since the start.

        Arguments
        ---------
        over_ranks : bool
            Whether to count the batches of all ranks; all must then ask.

        Returns
        -------
        dict
            Plain numbers, always under the same names, NaN where nothing was
            quantized: ``vectors`` (valid frames quantized),
            ``used_codes_percent`` and ``dead_codes`` (of all codebooks),
            ``perplexity`` (exponential of the entropy, mean over the
            codebooks), ``quantization_error`` (squared error over the variance
            of the latents), ``codebook_drift`` (root mean square distance of
            the codewords to those at the start, over their spread),
            ``vq_loss`` (mean over the frames), ``nonfinite_batches``, and with
            a token rate ``bits_per_second`` (entropy x rate).
        """
        sums = self._sums or self._zeros(self._no_metrics())
        if over_ranks:
            sums = {k: sum_over_ranks(v) for k, v in sums.items()}
        sums = {k: v.to("cpu", torch.float64) for k, v in sums.items()}
        counts, number = sums["counts"], float(sums["num_vectors"])
        entropies = entropy(counts)
        mean = sums["latent_sum"] / max(number, 1)
        variance = float(sums["latent_sq_sum"] / max(number, 1)) - float(
            mean.square().sum()
        )
        error = float(sums["sq_error"]) / max(number, 1)
        relative_error = error / variance if variance > 0 else 0.0
        stats = {
            "used_codes_percent": 100 * float((counts > 0).double().mean()),
            "dead_codes": int((counts == 0).sum()),
            "perplexity": float(entropies.exp().mean()),
            "quantization_error": relative_error,
            "codebook_drift": self._drift(),
            "vq_loss": float(sums["loss"]) / max(number, 1),
        }
        if self.token_rate is not None:
            bits = float(entropies.sum()) / math.log(2)
            stats["bits_per_second"] = self.token_rate * bits
        return {
            "vectors": int(number),
            **{k: v if number else math.nan for k, v in stats.items()},
            "nonfinite_batches": int(sums["nonfinite_batches"]),
        }

    def _no_metrics(self) -> dict[str, torch.Tensor]:
        """Metrics of no batch."""
        codebook = self.quantizer.codebook.detach()
        zero = codebook.new_zeros(())
        return {
            **dict.fromkeys(SUMMED, zero),
            "counts": torch.zeros_like(codebook[..., 0]),
            "latent_sum": codebook.new_zeros(self.quantizer.latent_dim),
        }

    def _drift(self) -> float:
        if self._codebook is None:
            return 0.0
        now = self.quantizer.codebook.detach()
        spread = (now - now.mean(1, keepdim=True)).square().mean().sqrt()
        distance = (now - self._codebook.to(now)).square().mean().sqrt()
        return float(distance / spread) if spread > 0 else 0.0

    def state_dict(self) -> dict:
        """Return what a resumed stage needs."""
        return {"sums": dict(self._sums), "codebook": self._codebook}

    def load_state_dict(self, state: dict) -> None:
        """Go on with a stage."""
        device = self.quantizer.codebook.device
        self._sums = {k: v.to(device) for k, v in state["sums"].items()}
        if state["codebook"] is not None:
            self._codebook = state["codebook"].to(device)


class StageMonitors:
    """Usage monitors of several quantizers, apart for training and evaluation.

    Arguments
    ---------
    quantizers : dict
        Quantizers by name.
    token_rate : float, optional
        Frames a second, for the bit rate.

    Example
    -------
    >>> from speechbrain_vq.nnet import VectorQuantizer
    >>> quantizer = VectorQuantizer(8, 16)
    >>> monitors = StageMonitors({"quantizer": quantizer})
    >>> _ = quantizer.eval()(torch.randn(100, 8))
    >>> [monitors.stats(t)["vectors"] for t in (True, False)]
    [0, 100]
    """

    def __init__(
        self, quantizers: dict[str, nn.Module], token_rate: float | None = None
    ):
        self._monitors = {
            training: {
                name: UsageMonitor(quantizer, token_rate, training)
                for name, quantizer in quantizers.items()
            }
            for training in (True, False)
        }

    def start(self, training: bool) -> None:
        """Begin a stage, of training or of evaluation."""
        for monitor in self._monitors[training].values():
            monitor.start()

    def stats(self, training: bool) -> dict[str, float]:
        """Compute the usage of a stage over all ranks, which must all ask;
        names begin with the quantizer's where there are several."""
        monitors = self._monitors[training]
        return {
            key if len(monitors) == 1 else f"{name}.{key}": value
            for name, monitor in monitors.items()
            for key, value in monitor.stats(over_ranks=True).items()
        }

    def state_dict(self) -> dict:
        """Return what a resumed training stage needs."""
        return {n: m.state_dict() for n, m in self._monitors[True].items()}

    def load_state_dict(self, state: dict) -> None:
        """Go on with a training stage."""
        for name, monitor in self._monitors[True].items():
            monitor.load_state_dict(state[name])
