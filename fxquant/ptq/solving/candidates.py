"""A weight's step by trial: the candidate whose nearest integers give the outputs nearest."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from fxquant.ptq.solving.grids import quadratic

if TYPE_CHECKING:
    from fxquant.ptq.solving.grids import WeightGrid

LossFn = Literal["mse", "l1", "sqnr"]
LOSSES: tuple[LossFn, ...] = get_args(LossFn)
_NOTHING = 1e-10  # noise that is as good as none


@dataclass(frozen=True)
class OutputError:
    """How far outputs are from wanted ones, by output channel and block of inputs.

    Where a channel has several blocks of inputs, each is compared by the part of the sum that it
    makes.

    Attributes:
        x: inputs of the rounded weight, `[G, N, D]`.
        wanted: weight that makes the wanted outputs, `[G, O, D]`.
        exact: inputs that the wanted outputs are made from, `[G, N, D]`; None: `x` as well.
        blocks: block of each input, int64 `[D]`.
        kind: "mse": mean square; "l1": mean absolute; "sqnr": minus the ratio of signal to noise,
            in dB.
        ridge: how much the error of the weight counts beside that of the outputs, as if so large a
            share of the inputs' energy were spread evenly over directions that they do not show.
    """

    x: Tensor
    wanted: Tensor
    exact: Tensor | None
    blocks: Tensor
    kind: LossFn = "mse"
    ridge: float = 0.0

    def __call__(self, weight: Tensor) -> Tensor:
        """The error of a weight: `[G, O, D] -> [G, O, B]`."""
        parts = [self._of_block(weight, block) for block in range(int(self.blocks.max()) + 1)]
        return torch.stack(parts, -1)

    @cached_property
    def _moments(self) -> list[Tensor]:
        """Second moments of the inputs of every block."""
        parts = [self.x[:, :, self.blocks == b] for b in range(int(self.blocks.max()) + 1)]
        return [torch.bmm(x.mT, x) / x.shape[1] for x in parts]

    def _of_block(self, weight: Tensor, block: int) -> Tensor:
        own = self.blocks == block
        x, rounded, wanted = self.x[:, :, own], weight[:, :, own], self.wanted[:, :, own]
        unseen = self.ridge * x.square().mean((1, 2))[:, None] * (rounded - wanted).square().sum(-1)
        if self.exact is None and self.kind != "l1":
            moments = self._moments[block]
            noise = quadratic(rounded - wanted, moments)
            signal = quadratic(wanted, moments) if self.kind == "sqnr" else noise
        else:
            exact = x if self.exact is None else self.exact[:, :, own]
            target = torch.bmm(exact, wanted.mT)
            error = torch.bmm(x, rounded.mT) - target
            if self.kind == "l1":  # as much as normal numbers of that mean square
                return error.abs().mean(1) + (unseen * (2 / math.pi)).sqrt()
            noise, signal = error.square().mean(1), target.square().mean(1)
        noise = noise + unseen
        if self.kind == "mse":
            return noise
        return -10 * torch.log10(signal.clamp(min=_NOTHING) / (noise + _NOTHING))


def best_of(
    weight: Tensor, grid: WeightGrid, candidates: int, error: Callable[[Tensor], Tensor]
) -> tuple[WeightGrid, float, float]:
    """The grid with the best of some steps: equal shares of the one that clips nothing.

    The step that the grid has is a candidate as well, so the error never grows.

    Args:
        weight: the weight, `[G, O, D]`.
        grid: the grid; one that is frozen stays as it is.
        candidates: number of shares.
        error: error by channel and block, `[G, O, D] -> [G, O, B]`.

    Returns:
        The grid, and the mean error with its old and with its new steps.

    Source: the search of "sequential MSE": `range * (i + 1) / candidates`, each output channel (and
    block) by itself.
    """

    def losses(scale: Tensor) -> Tensor:
        tried = grid.with_scale(scale)
        found = error(tried.weight(tried.nearest(weight)))
        return torch.stack([grid.by_rows(part) for part in found.unbind(-1)], 1)

    covering = grid.covering(weight)
    best, least = grid.scale, losses(grid.scale)
    before = least
    for i in reversed(range(candidates)):
        scale = grid.allowed(covering * ((i + 1) / candidates))
        own = losses(scale)
        better = own < least
        best, least = torch.where(better, scale, best), torch.where(better, own, least)
    count = weight.shape[0] * weight.shape[1] * grid.scale.shape[1]
    return grid.with_scale(best), float(before.sum()) / count, float(least.sum()) / count
