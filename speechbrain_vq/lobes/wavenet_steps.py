"""Incremental generation with a WaveNet: each layer caches its past inputs in
a ring buffer (Le Paine et al. 2016, arXiv 1611.09482).
"""

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from .wavenet import WaveNetDecoder


class Steps:
    """State of a WaveNet between two samples of a batch of waveforms.

    The past taps of all layers share one matrix product per sample, and so do
    all skip connections. A step allocates no tensor but its logits.
    """

    def __init__(self, decoder: "WaveNetDecoder", batch: int):
        layers = decoder.layers
        self._decoder = decoder
        self._embedding = decoder.first.weight
        self._past = torch.stack([layer.past.weight.T for layer in layers])
        self._skip = torch.cat([layer.skip.weight for layer in layers], 1)
        self._skip_bias = sum(layer.skip.bias for layer in layers)
        channels, new = self._embedding.shape[1], self._embedding.new_zeros
        number = len(layers)
        self._past_inputs = new(number, batch, channels)
        self._inputs = new(number, batch, channels)
        self._sums = new(number, batch, 2 * channels)
        self._gated = new(batch, number * channels)
        dilations = torch.tensor([layer.dilation for layer in layers])
        # One buffer holds the rings of all layers.
        self._rings = new(int(dilations.sum()), batch, channels)
        self._begins = (dilations.cumsum(0) - dilations).to(self._rings.device)
        self._dilations = dilations.to(self._rings.device)
        values, gates = self._sums.chunk(2, 2)
        self._first = self._inputs[0]
        # Views are created once, because their overhead counts in a step.
        self._layer_views = list(
            zip(
                self._sums,
                values,
                gates,
                self._gated.chunk(number, 1),
                self._inputs,
                [layer.now.weight.T for layer in layers],
                [layer.residual.weight.T for layer in layers[:-1]] + [None],
                [*self._inputs[1:], None],
                strict=True,
            )
        )

    def ring_positions(self, times: torch.Tensor) -> list[torch.Tensor]:
        """Compute the ring positions [L] of each sample index in times."""
        offsets = times.unsqueeze(1).remainder(self._dilations)
        return list((self._begins + offsets).unbind())

    def biases(self, condition: torch.Tensor) -> torch.Tensor:
        """Compute the layers' biases [L, B, 2 C] of a condition [B, D]."""
        layers = self._decoder.layers
        return torch.stack([layer.told(condition) for layer in layers])

    def step(
        self,
        previous: torch.Tensor,
        positions: torch.Tensor,
        biases: torch.Tensor,
    ) -> torch.Tensor:
        """Compute the logits [B, 256] of a sample from the levels [B] of the
        previous one, its ``ring_positions`` and its ``biases``."""
        torch.index_select(self._rings, 0, positions, out=self._past_inputs)
        torch.baddbmm(biases, self._past_inputs, self._past, out=self._sums)
        torch.index_select(self._embedding, 0, previous, out=self._first)
        for sums, values, gates, z, x, now, residual, out in self._layer_views:
            sums.addmm_(x, now)
            torch.mul(values.tanh_(), gates.sigmoid_(), out=z)
            if out is not None:
                torch.addmm(x, z, residual, out=out)
        self._rings.index_copy_(0, positions, self._inputs)
        total = linear(self._gated, self._skip, self._skip_bias).relu_()
        return self._decoder.last(self._decoder.hidden(total).relu_())


@torch.inference_mode()
def generate(
    decoder: "WaveNetDecoder",
    conditions: torch.Tensor,
    draws: torch.Tensor,
    silence: int,
) -> torch.Tensor:
    """Generate levels [B, N] autoregressively from conditions [B, T, D] by
    inverse transform sampling.

    The uniform random numbers [N] are shared by the batch; ``silence`` is the
    level before the first sample.
    """
    batch, number = len(conditions), decoder.samples_per_token
    steps = Steps(decoder, batch)
    level = torch.full((batch,), silence, device=conditions.device)
    levels = []
    for index, condition in enumerate(conditions.unbind(1)):
        times = torch.arange(number, device=draws.device) + index * number
        biases = steps.biases(condition)
        for positions, draw in zip(
            steps.ring_positions(times), draws[times].unbind(), strict=True
        ):
            logits = steps.step(level, positions, biases)
            cumulative = logits.softmax(1).cumsum_(1)
            # Rounding may leave the last sum below 1.
            level = (cumulative[:, :-1] < draw).sum(1)
            levels.append(level)
    return torch.stack(levels, 1)
