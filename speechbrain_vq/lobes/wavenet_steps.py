"""A WaveNet sample by sample, each layer keeping a ring of its past, so that
no sample is computed twice (Le Paine et al. 2016, arXiv 1611.09482).
"""

from typing import TYPE_CHECKING

import torch
from torch.nn.functional import linear

if TYPE_CHECKING:
    from .wavenet import WaveNetDecoder


class Steps:
    """The state of a WaveNet between two samples.

    What layers heard in the past is known before the next sample, so one
    product serves all of them, and another one all skips; only the rest has to
    wait from layer to layer. Nothing is allocated in a step but its logits.

    Arguments
    ---------
    decoder : WaveNetDecoder
        The network.
    batch : int
        Waveforms written side by side.
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
        self._heard = new(number, batch, channels)
        self._inputs = new(number, batch, channels)
        self._sums = new(number, batch, 2 * channels)
        self._gated = new(batch, number * channels)
        dilations = torch.tensor([layer.dilation for layer in layers])
        # All rings in one, a part of it for each layer.
        self._rings = new(int(dilations.sum()), batch, channels)
        self._begins = (dilations.cumsum(0) - dilations).to(self._rings.device)
        self._dilations = dilations.to(self._rings.device)
        values, gates = self._sums.chunk(2, 2)
        self._first = self._inputs[0]
        # Each view is made once: a step is short enough to feel it.
        self._chain = list(
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

    def places(self, times: torch.Tensor) -> list[torch.Tensor]:
        """Where the rings are read and written at each of some times: a
        tensor [L] for each."""
        turns = times.unsqueeze(1).remainder(self._dilations)
        return list((self._begins + turns).unbind())

    def told(self, condition: torch.Tensor) -> torch.Tensor:
        """What the layers are told, [L, B, 2 C], of a condition [B, D]."""
        layers = self._decoder.layers
        return torch.stack([layer.told(condition) for layer in layers])

    def step(
        self, before: torch.Tensor, place: torch.Tensor, told: torch.Tensor
    ) -> torch.Tensor:
        """Foresees a sample.

        Arguments
        ---------
        before : torch.Tensor
            Levels of the samples before it, [B].
        place : torch.Tensor
            One of ``places``.
        told : torch.Tensor
            See ``told``.

        Returns
        -------
        torch.Tensor
            Logits, [B, 256].
        """
        torch.index_select(self._rings, 0, place, out=self._heard)
        torch.baddbmm(told, self._heard, self._past, out=self._sums)
        torch.index_select(self._embedding, 0, before, out=self._first)
        for sums, values, gates, z, x, now, residual, out in self._chain:
            sums.addmm_(x, now)
            torch.mul(values.tanh_(), gates.sigmoid_(), out=z)
            if out is not None:
                torch.addmm(x, z, residual, out=out)
        self._rings.index_copy_(0, place, self._inputs)
        total = linear(self._gated, self._skip, self._skip_bias).relu_()
        return self._decoder.last(self._decoder.hidden(total).relu_())


@torch.inference_mode()
def generate(
    decoder: "WaveNetDecoder",
    conditions: torch.Tensor,
    dice: torch.Tensor,
    silence: int,
) -> torch.Tensor:
    """Draws samples, each from what is foreseen after those before it.

    Arguments
    ---------
    decoder : WaveNetDecoder
        The network.
    conditions : torch.Tensor
        What it is told, [B, T, D].
    dice : torch.Tensor
        For each sample a number in 0..1, [N]: of the levels in order the one
        is taken at which the sum of probabilities passes it.
    silence : int
        The level before the first sample.

    Returns
    -------
    torch.Tensor
        Levels, [B, N].
    """
    batch, number = len(conditions), decoder.samples_per_token
    steps = Steps(decoder, batch)
    drawn = torch.full((batch,), silence, device=conditions.device)
    written = []
    for index, condition in enumerate(conditions.unbind(1)):
        times = torch.arange(number, device=dice.device) + index * number
        told = steps.told(condition)
        for place, die in zip(
            steps.places(times), dice[times].unbind(), strict=True
        ):
            logits = steps.step(drawn, place, told)
            sums = logits.softmax(1).cumsum_(1)
            # Rounding may leave the last sum below 1.
            drawn = (sums[:, :-1] < die).sum(1)
            written.append(drawn)
    return torch.stack(written, 1)
