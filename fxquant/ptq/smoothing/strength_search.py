"""Which factors make the error of quantized layers smallest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.ptq.solving.grids import WeightGrid
from fxquant.quantization.range_to_qparams import IntegerRange

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.ptq.smoothing.reads import Group, Read
    from fxquant.ptq.smoothing.samples import Channels, Rows, Samples

# a channel this much smaller than the largest one is left as it is
_DEAD = 1e-5


@dataclass(frozen=True)
class Grids:
    """The grids that layers are judged on.

    Attributes:
        weight_bits: bits of the weights, symmetric.
        activation_bits: bits of what layers read, asymmetric.
        per_channel: one grid for every output channel's weights.
    """

    weight_bits: int
    activation_bits: int
    per_channel: bool


@dataclass(frozen=True)
class Choice:
    """What was found for a group.

    Attributes:
        factors: what channels are divided by, float64 `[F]`.
        alpha: the exponent that gave them; None if they are ones.
        before: error on the samples held out, without factors.
        after: the same with them.
    """

    factors: Tensor
    alpha: float | None
    before: float
    after: float


def choose(
    group: Group, number: int, samples: Samples, alphas: Sequence[float], grids: Grids
) -> Choice:
    """The best factors on the samples to choose by, if they are better on those held out."""
    channels = samples.channels[number]
    ones = torch.ones(group.count, dtype=torch.float64)
    if channels is None:
        return Choice(ones, None, 0.0, 0.0)
    judge = _Judge(group, channels, samples, grids)
    weights = _weights(group)
    tried = [
        (alpha, smoothing_factors(inputs.double(), weights, alpha))
        for inputs in (channels.largest, channels.seen)
        for alpha in alphas
    ]
    errors = [judge.error(factors, held=False) for _, factors in tried]
    alpha, factors = tried[min(range(len(tried)), key=errors.__getitem__)]
    before, after = judge.error(ones, held=True), judge.error(factors, held=True)
    if not after < before or min(errors) >= judge.error(ones, held=False):
        return Choice(ones, None, before, before)
    return Choice(factors, alpha, before, after)


def smoothing_factors(inputs: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """`max|X|^alpha / max|W|^(1 - alpha)` by channel, with a geometric mean of one, `[F]`.

    Args:
        inputs: largest magnitudes of the channels, `[F]`.
        weights: largest magnitudes of the weights that read them, `[F]`.
        alpha: how much of the difficulty goes into the weights, 0 to 1.

    Source: Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438, equation 4. One factor for all
    channels changes nothing on the grids, so that the mean is free.
    """
    alive = (inputs > _DEAD * inputs.max()) & (weights > _DEAD * weights.max())
    ratio = torch.where(alive, inputs, 1.0).log() * alpha
    ratio = ratio - torch.where(alive, weights, 1.0).log() * (1 - alpha)
    if bool(alive.any()):
        ratio = ratio - ratio[alive].mean()
    return torch.where(alive, ratio, 0.0).exp()


def _weights(group: Group) -> Tensor:
    """Largest magnitude of the weights that read every factor's channels, float64 `[F]`."""
    found = torch.zeros(group.count, dtype=torch.float64)
    for read in group.reads:
        largest = read.layer.magnitudes().amax(1).reshape(-1).cpu()
        found.scatter_reduce_(0, read.factors, largest, "amax")
    return found


class _Judge:
    """The error of a group's outputs, weighed by what the model's output does with it."""

    def __init__(self, group: Group, channels: Channels, samples: Samples, grids: Grids) -> None:
        self.group, self.channels, self.grids = group, channels, grids
        self.rows: list[tuple[Rows, Rows]] = [samples.rows[r.index] for r in group.reads]

    def error(self, factors: Tensor, *, held: bool) -> float:
        """Weighed squared error a position, summed over the layers."""
        scale = factors.to(self.channels.low)
        low, high = (self.channels.low / scale).min(), (self.channels.high / scale).max()
        total = 0.0
        for read, rows in zip(self.group.reads, self.rows, strict=True):
            home = rows[int(held)]
            home = home if home.count else rows[1 - int(held)]
            if home.count:
                total += self._layer(read, home, scale, (low, high))
        return total

    def _layer(self, read: Read, rows: Rows, scale: Tensor, ends: tuple[Tensor, Tensor]) -> float:
        x, counts = rows.joined()
        weight = read.layer.module.get_parameter("weight").detach().float().cpu()
        weight = read.product.matrix(weight)
        columns = read.columns(scale)
        scaled = weight * columns[:, None, :]
        grid = WeightGrid.uniform(scaled, self.grids.weight_bits, per_row=self.grids.per_channel)
        rounded = grid.weight(grid.nearest(scaled))
        steps = IntegerRange.of_bits(self.grids.activation_bits, signed=False, symmetric=False)
        step = steps.scale(*ends)
        zero = steps.zero_point(ends[0], step)
        given = x / columns[:, None, :]
        given = (torch.round(given / step) + zero).clamp(steps.qmin, steps.qmax) - zero
        error = torch.bmm(given * step, rounded.mT) - torch.bmm(x, weight.mT)
        return float((error.square() * counts).sum() / rows.count)
