"""Which factors make the error of quantized layers smallest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.ptq.smoothing.samples import Channels
from fxquant.ptq.solving.grids import WeightGrid
from fxquant.quantization.range_to_qparams import IntegerRange

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fxquant.ptq.smoothing.reads import Group, Read
    from fxquant.ptq.smoothing.samples import Rows, Samples

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
    """The factors whose exponent has the smallest error, if that is smaller than without any.

    Every part of the data is judged with the ranges and the factors that the other parts tell. So
    it counts that a grid clips what is larger in other data, and the more, the more channels are
    scaled to touch its ends.
    """
    ones = torch.ones(group.count, dtype=torch.float64)
    judge = _Judge(group, samples.channels[number], samples, grids)
    if not judge.parts:
        return Choice(ones, None, 0.0, 0.0)
    weights = _weights(group)

    def factors(channels: Channels, alpha: float, *, seen: bool) -> Tensor:
        inputs = channels.seen if seen else channels.largest
        return smoothing_factors(inputs.double(), weights, alpha)

    every = Channels.merged(list(samples.channels[number].values()))
    same = torch.equal(every.seen, every.largest)
    tried = [
        partial(factors, alpha=alpha, seen=seen)
        for seen in ((False,) if same else (False, True))
        for alpha in alphas
    ]
    errors = [judge.error(f) for f in tried]
    best = min(range(len(tried)), key=errors.__getitem__)
    before = judge.error(lambda _: ones)
    if not errors[best] < before:
        return Choice(ones, None, before, before)
    return Choice(tried[best](every), alphas[best % len(alphas)], before, errors[best])


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
    """The error of a group's outputs, weighed by what the model's output does with it.

    Attributes:
        parts: positions of every layer in one part of the data, with the ranges of the others.
    """

    def __init__(
        self, group: Group, channels: dict[int, Channels], samples: Samples, grids: Grids
    ) -> None:
        self.group, self.grids = group, grids
        rows = [samples.rows[r.index] for r in group.reads]
        self.counts = [sum(part.count for part in of_layer) for of_layer in rows]
        self.parts: list[tuple[Channels, list[Rows]]] = []
        for part in channels:
            others = [c for other, c in channels.items() if other != part]
            own = [of_layer[part] for of_layer in rows]
            if others and any(r.count for r in own):
                self.parts.append((Channels.merged(others), own))

    def error(self, factors: Callable[[Channels], Tensor]) -> float:
        """Weighed squared error a position, summed over the layers."""
        total = 0.0
        for channels, own in self.parts:
            scale = factors(channels).to(channels.low)
            ends = (channels.low / scale).min(), (channels.high / scale).max()
            for read, rows, count in zip(self.group.reads, own, self.counts, strict=True):
                if rows.count:
                    total += self._layer(read, rows, scale, ends) / count
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
        return float((error.square() * counts).sum())
