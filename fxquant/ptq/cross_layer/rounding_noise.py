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
    from fxquant.ptq.cross_layer.channel_statistics import ChannelStatistics
    from fxquant.ptq.float_graphs.planned_grids import PlannedGrids

# of what rounding to whole numbers adds
_VARIANCE = 1 / 12
# of the descent: steps, after how many the result is looked at, rates at both ends
_STEPS, _EACH, _RATE, _LEAST_RATE = 100, 10, 0.12, 0.002
# orders of the norms that stand for ranges: first, last, and what is a maximum for practical ends
_SMOOTH, _SHARP, _EXACT = 8.0, 64.0, 1000.0


@dataclass(frozen=True)
class _Part:
    """Channels of all layers in a row, `[N]`.

    Attributes:
        factors: the factor of every channel.
        layers: the place of its layer among those that are looked at.
        groups: the number of its group of channels, over all layers.
    """

    factors: Tensor
    layers: Tensor
    groups: Tensor


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
        self.spaces, self.grids, self._seen = spaces, grids, known.layers
        # the noise of the others does not depend on factors
        around = {i for s in spaces.spaces if len(s.factors) for i in (*s.producers, *s.consumers)}
        self._numbers = sorted(around & known.layers.keys())
        self._read = self._part(spaces.inputs)
        self._made = self._part(spaces.outputs)
        weights = [self._costs(i) for i in self._numbers]
        self._sizes = [sizes for sizes, _, _ in weights]
        # what a squared step of activations costs, by input channel, and one of weights, by output
        self._activation_costs = _joined([costs for _, costs, _ in weights])
        self._weight_costs = _joined([costs for _, _, costs in weights])
        self._low = _joined([-self._seen[i].low for i in self._numbers])
        self._high = _joined([self._seen[i].high for i in self._numbers])
        self._energy = _joined([self._seen[i].energy for i in self._numbers])
        activations = [grids.inputs.get(spaces.layers[i].path) for i in self._numbers]
        self._symmetric = torch.tensor([g is not None and g.symmetric for g in activations])
        by_channel = torch.tensor([self.is_per_channel(i) for i in self._numbers])
        self._by_channel = by_channel[self._made.layers]

    def _part(self, factors: Sequence[Tensor]) -> _Part:
        layers, groups, before = list[Tensor](), list[Tensor](), 0
        for place, i in enumerate(self._numbers):
            count, parts = len(factors[i]), self.spaces.layers[i].groups
            layers.append(torch.full((count,), place))
            groups.append(before + torch.arange(parts).repeat_interleave(count // parts))
            before += parts
        own = [factors[i] for i in self._numbers]
        return _Part(_joined(own).long(), _joined(layers).long(), _joined(groups).long())

    def _costs(self, i: int) -> tuple[Tensor, Tensor, Tensor]:
        """Largest weights over the kernel, float32 `[G, O, I]`, and costs of squared steps."""
        layer, seen = self.spaces.layers[i], self._seen[i]
        exact = layer.grouped(layer.module.get_parameter("weight").detach().double().cpu())
        squares, sizes = exact.square().sum(-1), exact.abs().amax(-1).float()
        shares = (squares * seen.importance.reshape(len(exact), -1, 1)).sum(1).reshape(-1)
        weights, activations = (
            0.0 if grid is None else _VARIANCE / (grid.qmax - grid.qmin) ** 2
            for grid in (self.grids.weights.get(layer.path), self.grids.inputs.get(layer.path))
        )
        # ranges of weights are as wide as they are high on both sides
        return sizes, shares * activations, seen.rows * (4 * weights * exact.shape[-1])

    def is_per_channel(self, layer: int) -> bool:
        """Whether every output channel of a layer's weight has a grid of its own."""
        quantizer = self.grids.weights.get(self.spaces.layers[layer].path)
        count = 0 if quantizer is None else torch.Size(quantizer.shape).numel()
        return count >= len(self.spaces.outputs[layer])

    def of(self, layers: set[int], factors: Tensor) -> float:
        """Noise of some layers, with their weights really rounded.

        Args:
            layers: numbers of the layers.
            factors: as for `ChannelSpaces.apply`, float64 `[count]`.
        """
        by_layer = self._of_activations(factors, None)
        return sum(
            float(by_layer[place]) + self._of_weight(i, factors)
            for place, i in enumerate(self._numbers)
            if i in layers
        )

    def smooth(self, factors: Tensor, sharpness: float) -> Tensor:
        """Estimate of all noise that has a gradient everywhere.

        Args:
            factors: float64 `[count]`.
            sharpness: ranges are norms of such an order in the place of maxima.
        """
        taken, made = factors[self._read.factors], factors[self._made.factors]
        counts = [s.shape[0] * s.shape[2] for s in self._sizes]
        rows = _joined([
            (sizes * part.reshape(len(sizes), 1, -1)).amax(-1).reshape(-1).double()
            for sizes, part in zip(self._sizes, taken.float().split(counts), strict=True)
        ])  # fmt: skip
        rows = rows / made
        whole = self._largest(rows, self._made.layers, sharpness)[self._made.layers]
        largest = torch.where(self._by_channel, rows, whole)
        energy = taken.new_zeros(int(self._read.groups.max()) + 1)
        energy = energy.index_add(0, self._read.groups, self._energy / taken.square())
        costs = self._weight_costs * energy[self._made.groups]
        weights = (costs * (largest * made).square()).sum()
        return weights + self._of_activations(factors, sharpness).sum()

    def _of_activations(self, factors: Tensor, sharpness: float | None) -> Tensor:
        """Noise of what layers read, by layer."""
        taken, layers = factors[self._read.factors], self._read.layers
        low = self._largest(self._low / taken, layers, sharpness)
        high = self._largest(self._high / taken, layers, sharpness)
        span = torch.where(self._symmetric, 2 * torch.maximum(low, high), low + high)
        costs = self._activation_costs * (taken * span[layers]).square()
        return torch.zeros_like(span).index_add(0, layers, costs)

    def _largest(self, values: Tensor, layers: Tensor, sharpness: float | None) -> Tensor:
        """By layer, the largest of some numbers that are not negative, or a norm of them."""
        zeros = values.new_zeros(len(self._numbers))
        top = zeros.scatter_reduce(0, layers, values.detach(), "amax")
        if sharpness is None:
            return top
        shares = (values / top.clamp(min=NOTHING)[layers]).pow(sharpness)
        sums = zeros.index_add(0, layers, shares)
        return sums.clamp(min=NOTHING).pow(1 / sharpness) * top

    def _of_weight(self, i: int, factors: Tensor) -> float:
        """Noise of a weight as its grid rounds it."""
        place, seen = self.spaces.layers[i], self._seen[i]
        if place.path not in self.grids.weights:
            return 0.0
        taken, made = factors[self.spaces.inputs[i]], factors[self.spaces.outputs[i]]
        weight = place.module.get_parameter("weight").detach().double().cpu()
        exact, scaled = place.grouped(weight), weight.clone()
        by = taken.reshape(len(exact), 1, -1, 1) / made.reshape(len(exact), -1, 1, 1)
        place.grouped(scaled).mul_(by)
        rounded = place.grouped(self.grids.weight(place.path, scaled).double()) / by
        errors = (rounded - exact).square().sum(-1) * seen.energy.reshape(len(exact), 1, -1)
        return float((seen.rows * errors.sum(-1).reshape(-1)).sum())


def _joined(parts: Sequence[Tensor]) -> Tensor:
    return torch.cat(list(parts)) if parts else torch.zeros(0, dtype=torch.float64)


def least_noise(noises: Sequence[RoundingNoise], start: Tensor, free: Tensor) -> Tensor:
    """Factors with little noise, by gradient descent on their logarithms.

    Args:
        noises: on several grids; the product of their noises is made small.
        start: factors to begin with, float64 `[count]`.
        free: which of them may change, int64 `[F]`.

    Source of the steps: Kingma & Ba 2015, "Adam", arXiv:1412.6980.
    """
    logs, moved = start.log(), torch.zeros(len(free), dtype=torch.float64, requires_grad=True)
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
