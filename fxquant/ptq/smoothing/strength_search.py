"""Which factors make the error of quantized layers smallest."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxquant.ptq.smoothing.samples import Channels
from fxquant.ptq.solving.real_gains import is_real_gain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fxquant.ptq.float_graphs.planned_grids import PlannedGrids
    from fxquant.ptq.smoothing.reads import Group, Read
    from fxquant.ptq.smoothing.samples import Rows, Samples
    from fxquant.quantization.affine import AffineQuantizer

# a channel this much smaller than the largest one is left as it is
_DEAD = 1e-5
# what the error has to fall to at least: smaller gains of groups by themselves come to nothing
_WORTHWHILE = 0.95


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
    group: Group, number: int, samples: Samples, alphas: Sequence[float], grids: PlannedGrids
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
    seens = (False,) if same else (False, True)
    tried = {
        (seen, i): partial(factors, alpha=alpha, seen=seen)
        for seen in seens
        for i, alpha in enumerate(alphas)
    }
    errors = {key: judge.errors(f) for key, f in tried.items() if key[1] % 2 == 0}
    # the error is smooth in the exponent: what lies beside the best of every other one is enough
    seen, i = min(errors, key=lambda key: float(errors[key].sum()))
    beside = [key for key in ((seen, i - 1), (seen, i + 1)) if key in tried]
    errors |= {key: judge.errors(tried[key]) for key in beside}
    best = min(errors, key=lambda key: float(errors[key].sum()))
    before = judge.errors(lambda _: ones)
    if not is_real_gain(_WORTHWHILE * before, errors[best]):
        return Choice(ones, None, float(before.sum()), float(before.sum()))
    total = float(errors[best].sum())
    return Choice(tried[best](every), alphas[best[1]], float(before.sum()), total)


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
        parts: positions of every layer in one part of the data, and what the other parts tell.
    """

    def __init__(
        self,
        group: Group,
        channels: dict[int, Channels],
        samples: Samples,
        grids: PlannedGrids,
    ) -> None:
        self.group, self.grids = group, grids
        self.every = Channels.merged(list(channels.values())) if channels else None
        rows = [samples.rows[r.index] for r in group.reads]
        self.counts = [sum(part.count for part in of_layer) for of_layer in rows]
        self.parts: list[_Part] = []
        for part in channels:
            known = [other for other in channels if other != part]
            own = [of_layer[part] for of_layer in rows]
            if known and any(r.count for r in own):
                seen = Channels.merged([channels[k] for k in known])
                self.parts.append(_Part(seen, own))
        units = [u for part in self.parts for r in part.own for u in r.units if len(u)]
        self.units = 1 + max((int(u.max()) for u in units), default=0)

    def errors(self, factors: Callable[[Channels], Tensor]) -> Tensor:
        """Weighed squared error a position, summed over the layers, by sample: float64 `[S]`."""
        total = torch.zeros(self.units, dtype=torch.float64)
        if self.every is None:
            return total
        # a weight's error is no matter of the data: that of the factors of all of them stands for
        # those of the parts, which differ a little
        scale = factors(self.every)
        weights = [self._weight(read, scale) for read in self.group.reads]
        for part in self.parts:
            scale = factors(part.channels).to(part.channels.low)
            grids = self._grids(part, scale)
            layers = zip(self.group.reads, weights, part.own, grids, self.counts, strict=True)
            for read, pair, own, grid, count in layers:
                if own.count:
                    found, units = _layer_errors(read, pair, own, scale, grid)
                    total.index_add_(0, units, found / count)
        return total

    def _weight(self, read: Read, factors: Tensor) -> tuple[Tensor, Tensor]:
        """A layer's weight, and what it is with rounding behind the factors, `[G, O, D]` both."""
        exact = read.layer.module.get_parameter("weight").detach().float().cpu()
        weight, columns = read.product.matrix(exact), read.columns(factors.float())[:, None, :]
        scaled = read.product.weight(weight * columns, exact.shape)
        rounded = self.grids.weight(read.layer.path, scaled)
        return weight, read.product.matrix(rounded) / columns

    def _grids(self, part: _Part, factors: Tensor) -> list[AffineQuantizer | None]:
        """Of what every layer reads, with the ranges that other data give; once for one value."""
        found: dict[fx.Node, AffineQuantizer | None] = {}
        for read in self.group.reads:
            if read.operand not in found:
                found[read.operand] = self._calibrated(read, part.channels, factors)
        return [found[read.operand] for read in self.group.reads]

    def _calibrated(
        self, read: Read, channels: Channels, factors: Tensor
    ) -> AffineQuantizer | None:
        grid = self.grids.inputs.get(read.layer.path)
        if grid is None or not grid.overwritable:
            return grid
        low, high = ((end / factors)[read.factors] for end in (channels.low, channels.high))
        # the range that covers all positions: padding, too, has a part in how one is chosen
        ends = {"min": low.amin().clamp(max=0.0), "max": high.amax().clamp(min=0.0)}
        grid.set_range(**{e: v.reshape(grid.shape) for e, v in ends.items() if e not in grid._held})
        return grid


@dataclass(frozen=True)
class _Part:
    """One part of the data.

    Attributes:
        channels: ranges of the channels in the other parts.
        own: positions of every layer in this part.
    """

    channels: Channels
    own: list[Rows]


def _layer_errors(
    read: Read,
    weights: tuple[Tensor, Tensor],
    rows: Rows,
    factors: Tensor,
    grid: AffineQuantizer | None,
) -> tuple[Tensor, Tensor]:
    """Weighed squared errors of positions, and the samples that these are of: `[P]` both."""
    x, counts, units = rows.joined()
    given, columns = x, read.columns(factors)[:, None, :]
    if grid is not None:
        given = grid.transform(x / columns) * columns
    exact, rounded = weights
    error = torch.bmm(given, rounded.mT) - torch.bmm(x, exact.mT)
    return (error.square() * counts).double().sum((0, 2)), units
