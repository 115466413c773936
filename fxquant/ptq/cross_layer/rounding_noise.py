"""What rounding of weights and activations adds to a model's output, as channels are scaled.

A number on a grid of step `d` is off by `d^2 / 12` in the mean square. An error of a weight counts
with the energy of its input, one of an activation with the squares of the weights that read it, and
both with what a unit of error of the layer's output costs. Errors are taken for independent.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.ptq.cross_layer.channel_statistics import NOTHING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces
    from fxquant.ptq.cross_layer.channel_statistics import ChannelStatistics, LayerChannels
    from fxquant.ptq.float_graphs.planned_grids import PlannedGrids
    from fxquant.quantization.affine import AffineQuantizer

# of the descent: steps, after how many the result is looked at, rates at both ends
_STEPS, _EACH, _RATE, _LEAST_RATE = 120, 10, 0.12, 0.002
# orders of the norms that stand for ranges: first, last, and what is a maximum for practical ends
_SMOOTH, _SHARP, _EXACT = 8.0, 64.0, 1000.0


@dataclass(frozen=True)
class _Layer:
    """A layer in numbers that do not change; `[G, O, I]` is the shape of its matrices.

    Attributes:
        seen: what is known of its channels.
        squares: squared weights, summed over the kernel, `[G, O, I]`.
        sizes: largest magnitudes of weights over the kernel, `[G, O, I]`.
        kernel: weights that one output channel reads of one input channel.
        weights: grid of its weight; None: floating point.
        activations: grid of what it reads; None: floating point.
        by_channel: whether each output channel of the weight has a grid.
    """

    seen: LayerChannels
    squares: Tensor
    sizes: Tensor
    kernel: int
    weights: AffineQuantizer | None
    activations: AffineQuantizer | None
    by_channel: bool


class RoundingNoise:
    """Noise of the layers of a graph whose channels are scaled.

    Args:
        spaces: the layers and their factors.
        known: what is known of the channels.
        grids: of the simulation.
    """

    def __init__(
        self, spaces: ChannelSpaces, known: ChannelStatistics, grids: PlannedGrids
    ) -> None:
        self.spaces, self.grids = spaces, grids
        self._layers: dict[int, _Layer] = {}
        # the noise of the others does not depend on factors
        around = {i for s in spaces.spaces if len(s.factors) for i in (*s.producers, *s.consumers)}
        for i in sorted(around & known.layers.keys()):
            layer, seen = spaces.layers[i], known.layers[i]
            exact = layer.grouped(layer.module.get_parameter("weight").detach().double().cpu())
            weights = grids.weights.get(layer.path)
            count = 0 if weights is None else torch.Size(weights.shape).numel()
            self._layers[i] = _Layer(
                seen, exact.square().sum(-1), exact.abs().amax(-1), exact.shape[-1], weights,
                grids.inputs.get(layer.path), count >= len(spaces.outputs[i]),
            )  # fmt: skip

    def is_per_channel(self, layer: int) -> bool:
        """Whether every output channel of a layer's weight has a grid of its own."""
        return layer in self._layers and self._layers[layer].by_channel

    def of(self, layers: set[int], factors: Tensor) -> float:
        """Noise of some layers, with their weights really rounded.

        Args:
            layers: numbers of the layers.
            factors: as for `ChannelSpaces.apply`, float64 `[count]`.
        """
        return sum(self._rounded(i, factors) for i in sorted(layers & self._layers.keys()))

    def smooth(self, factors: Tensor, sharpness: float) -> Tensor:
        """Estimate of all noise that has a gradient everywhere.

        Args:
            factors: float64 `[count]`.
            sharpness: ranges are norms of such an order in the place of maxima.
        """
        total = factors.new_zeros(())
        for i, layer in self._layers.items():
            taken, made = factors[self.spaces.inputs[i]], factors[self.spaces.outputs[i]]
            noise = _activation_noise(layer, taken, sharpness)
            total = total + (layer.seen.importance * noise).sum()
            if layer.weights is not None:
                noise = _weight_noise(layer, taken, made, sharpness)
                total = total + (layer.seen.rows * noise).sum()
        return total

    def _rounded(self, i: int, factors: Tensor) -> float:
        layer, place = self._layers[i], self.spaces.layers[i]
        taken, made = factors[self.spaces.inputs[i]], factors[self.spaces.outputs[i]]
        total = (layer.seen.importance * _activation_noise(layer, taken, None)).sum()
        if layer.weights is not None:
            weight = place.module.get_parameter("weight").detach().double().cpu()
            exact, scaled = place.grouped(weight), weight.clone()
            by = taken.reshape(len(exact), 1, -1, 1) / made.reshape(len(exact), -1, 1, 1)
            place.grouped(scaled).mul_(by)
            rounded = place.grouped(self.grids.weight(place.path, scaled).double()) / by
            errors = (rounded - exact).square().sum(-1)
            energy = layer.seen.energy.reshape(len(exact), 1, -1)
            total = total + (layer.seen.rows * (errors * energy).sum(-1).reshape(-1)).sum()
        return float(total)


def _largest(values: Tensor, sharpness: float | None) -> Tensor:
    """The largest of some numbers that are not negative, or a norm of them."""
    largest = values.amax()
    if sharpness is None or float(largest.detach()) <= 0:
        return largest
    top = largest.detach()
    norm: Tensor = (values / top).pow(sharpness).sum().pow(1 / sharpness) * top
    return norm


def _activation_noise(layer: _Layer, taken: Tensor, sharpness: float | None) -> Tensor:
    """Of the outputs' channels, from rounding what is read: `[O]`."""
    groups, outputs, _ = layer.squares.shape
    grid = layer.activations
    if grid is None:
        return taken.new_zeros(groups * outputs)
    low = _largest(-layer.seen.low / taken, sharpness)
    high = _largest(layer.seen.high / taken, sharpness)
    span = 2 * torch.maximum(low, high) if grid.symmetric else low + high
    step = span / (grid.qmax - grid.qmin)
    noise = (taken * step).square().reshape(groups, 1, -1) / 12
    return (layer.squares * noise).sum(-1).reshape(-1)


def _weight_noise(layer: _Layer, taken: Tensor, made: Tensor, sharpness: float | None) -> Tensor:
    """Of the outputs' channels, from rounding weights: `[O]`."""
    groups, outputs, _ = layer.sizes.shape
    by_row = (layer.sizes * taken.reshape(groups, 1, -1)).amax(-1).reshape(-1) / made
    largest = by_row if layer.by_channel else _largest(by_row, sharpness)
    grid = layer.weights
    steps = 1 if grid is None else grid.qmax - grid.qmin
    step = 2 * largest * made / steps
    energy = (layer.seen.energy / taken.square()).reshape(groups, 1, -1).sum(-1)
    energy = energy.expand(groups, outputs).reshape(-1)
    return step.square() / 12 * energy * layer.kernel


def least_noise(noises: Sequence[RoundingNoise], start: Tensor, free: Tensor) -> Tensor:
    """Factors with little noise, by gradient descent on their logarithms.

    Args:
        noises: on several grids; the product of their noises is made small.
        start: factors to begin with, float64 `[count]`.
        free: which of them may change, int64 `[F]`.

    Source of the steps: Kingma & Ba 2015, "Adam", arXiv:1412.6980.
    """
    logs, moved = start.log(), torch.zeros(len(free), dtype=torch.float64, requires_grad=True)
    if not len(free):
        return start
    optimizer = torch.optim.Adam([moved], betas=(0.8, 0.99))
    best, found = math.inf, start
    with torch.enable_grad():
        for step in range(_STEPS + 1):
            share = step / _STEPS
            factors = logs.index_add(0, free, moved).exp()
            if step % _EACH == 0:
                with torch.no_grad():
                    exact = float(_product(noises, factors, _EXACT))
                if exact < best:
                    best, found = exact, factors.detach().clone()
            for group in optimizer.param_groups:
                group["lr"] = _RATE * (1 - share) + _LEAST_RATE
            optimizer.zero_grad()
            _product(noises, factors, _SMOOTH * (_SHARP / _SMOOTH) ** share).backward()
            optimizer.step()
    return found


def _product(noises: Sequence[RoundingNoise], factors: Tensor, sharpness: float) -> Tensor:
    """The logarithm of a product of noises."""
    every = [noise.smooth(factors, sharpness).clamp(min=NOTHING).log() for noise in noises]
    return torch.stack(every).sum()
