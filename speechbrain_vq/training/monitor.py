"""Monitoring of codebook usage."""

import functools
import math

import torch

from speechbrain_vq.nnet.losses import entropy
from speechbrain_vq.nnet.quantizers import VectorQuantizer
from speechbrain_vq.nnet.utils import is_recomputed, sum_over_ranks

# Metrics of ``VQOutput`` that are summed over a stage.
_SUMMED = ("counts", "num_vectors", "sq_error", "latent_sum", "latent_sq_sum")


class UsageMonitor:
    """Accumulates codebook usage since ``start()`` with forward hooks,
    separately for training and evaluation. Only ``stats()`` synchronizes with
    the device.

    Arguments
    ---------
    quantizers : VectorQuantizer or dict
        A quantizer, or several by name.
    token_rate : float, optional
        Frames per second, for the bit rate.

    Example
    -------
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
        quantizers: VectorQuantizer | dict[str, VectorQuantizer],
        token_rate: float | None = None,
    ):
        if not isinstance(quantizers, dict):
            quantizers = {"quantizer": quantizers}
        self.quantizers, self.token_rate = quantizers, token_rate
        # Sums and the initial codebook, by training mode and quantizer.
        self._stages: dict[bool, dict] = {True: {}, False: {}}
        self._empty: dict[str, torch.Tensor] = {}
        self._handles = [
            quantizer.register_forward_hook(functools.partial(self._add, name))
            for name, quantizer in quantizers.items()
        ]

    def start(self, training: bool = True) -> None:
        """Start a stage of training or of evaluation."""
        self._stages[training] = {}

    def close(self) -> None:
        """Remove the hooks."""
        for handle in self._handles:
            handle.remove()

    @torch.no_grad()
    def _add(self, name, quantizer, inputs, output) -> None:
        if is_recomputed():
            return
        stage, metrics = self._stages[quantizer.training], output.metrics
        if name not in stage:
            stage[name] = _empty_stage(quantizer)
        sums, number = stage[name]["sums"], metrics["num_vectors"]
        if quantizer.training:
            self._empty[name] = number + metrics["num_nonfinite"] == 0
        added = {"nonfinite_batches": metrics["num_nonfinite"] > 0}
        # Warm-up batches have no codes and would dilute the metrics.
        if not quantizer.bypass:
            loss = torch.where(number > 0, output.loss.detach(), 0.0)
            added["loss"] = number * loss
            added.update({key: metrics[key] for key in _SUMMED})
        sums.update({key: sums[key] + value for key, value in added.items()})

    def is_empty(self) -> torch.Tensor:
        """Return whether the latest training batch had no valid frame."""
        empty = [*self._empty.values()] or [torch.tensor(False)]
        return torch.stack(empty).all()

    def stats(
        self, training: bool = True, over_ranks: bool = False
    ) -> dict[str, float]:
        """Compute the usage since the start of a stage.

        Arguments
        ---------
        training : bool
            Whether to return the training or the evaluation stage.
        over_ranks : bool
            Whether to sum over all ranks; all of them must then call it.

        Returns
        -------
        dict
            Plain numbers, NaN if nothing was quantized: ``vectors`` (number of
            valid frames), ``used_codes_percent`` and ``dead_codes`` (over all
            codebooks), ``perplexity`` (mean over codebooks),
            ``quantization_error`` (mean squared error divided by the variance
            of the latents), ``codebook_drift`` (root mean square change of the
            codewords divided by their spread), ``vq_loss`` (mean over frames),
            ``nonfinite_batches``, and, with a token rate, ``bits_per_second``.
            With several quantizers, keys are prefixed with their names.
        """
        stats = {}
        for name, stage in self.state_dict(training, over_ranks).items():
            prefix = f"{name}." if len(self.quantizers) > 1 else ""
            for key, value in self._stats(name, **stage).items():
                stats[prefix + key] = value
        return stats

    def _stats(self, name, sums, codebook) -> dict[str, float]:
        now = self.quantizers[name].embedding.table.detach()
        spread = (now - now.mean(1, keepdim=True)).square().mean().sqrt()
        moved = (now - codebook.to(now)).square().mean().sqrt()
        sums = {k: v.to("cpu", torch.float64) for k, v in sums.items()}
        number = int(sums["num_vectors"])
        # Codebooks unused because of num_quantizers are not dead.
        counts = sums["counts"][sums["counts"].sum(1) > 0]
        entropies, divisor = entropy(counts), max(number, 1)
        square = (sums["latent_sum"] / divisor).square().sum()
        variance = float(sums["latent_sq_sum"] / divisor - square)
        error = float(sums["sq_error"]) / divisor
        stats = {
            "used_codes_percent": 100 * float((counts > 0).double().mean()),
            "dead_codes": int((counts == 0).sum()),
            "perplexity": float(entropies.exp().mean()),
            "quantization_error": error / variance if variance > 0 else 0.0,
            "codebook_drift": float(moved / spread.clamp(min=1e-30)),
            "vq_loss": float(sums["loss"]) / divisor,
        }
        if self.token_rate is not None:
            bits = float(entropies.sum()) / math.log(2)
            stats["bits_per_second"] = self.token_rate * bits
        return {
            "vectors": number,
            **{k: v if number else math.nan for k, v in stats.items()},
            "nonfinite_batches": int(sums["nonfinite_batches"]),
        }

    def state_dict(
        self, training: bool = True, over_ranks: bool = False
    ) -> dict:
        """Return the state of a stage. With ``over_ranks``, it is summed over
        all ranks, which must all call it."""
        state, add = {}, sum_over_ranks if over_ranks else torch.clone
        for name, quantizer in self.quantizers.items():
            stage = self._stages[training].get(name) or _empty_stage(quantizer)
            sums = {k: add(v) for k, v in stage["sums"].items()}
            state[name] = {**stage, "sums": sums}
        return state

    def load_state_dict(
        self, state: dict, training: bool = True, with_sums: bool = True
    ) -> None:
        """Restore the state of a stage, with its sums, or with sums of 0."""
        self.start(training)
        for name, stage in state.items():
            device = self.quantizers[name].codebook.device
            sums = {k: v.to(device) for k, v in stage["sums"].items()}
            if not with_sums:
                sums = {k: torch.zeros_like(v) for k, v in sums.items()}
            self._stages[training][name] = {**stage, "sums": sums}


def _empty_stage(quantizer) -> dict:
    """Return zero sums and a copy of the codebook."""
    codebook = quantizer.embedding.table.detach().clone()
    # In fp32, sums over an epoch would lose small terms.
    wide = torch.float32 if codebook.is_mps else torch.float64
    names = (*_SUMMED, "loss", "nonfinite_batches")
    sums = dict.fromkeys(names, codebook.new_zeros((), dtype=wide))
    sums["counts"] = codebook.new_zeros(codebook.shape[:2], dtype=wide)
    sums["latent_sum"] = codebook.new_zeros(quantizer.latent_dim, dtype=wide)
    return {"sums": sums, "codebook": codebook}
