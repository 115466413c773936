"""Steps for a weight's grid: searched with the nearest integers, and refitted to given ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.ptq.solving.grids import quadratic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fxquant.ptq.solving.grids import WeightGrid

#: shares of the step that clips nothing; fewer bits gain from more clipping
COARSE = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
_FINE = (-0.067, -0.033, 0.033, 0.067)
#: powers of two below the step that clips nothing
_SHIFTS = (0, -1, -2, -3)


def search(
    target: Tensor, moments: Tensor, grid: WeightGrid, *, correlated: bool = True
) -> WeightGrid:
    """The grid whose nearest integers give the smallest loss, among steps that clip more or less.

    Args:
        target: the weight, `[G, O, D]`.
        moments: second moments of the inputs, `[G, D, D]`.
        grid: its own step counts as one of the candidates.
        correlated: False: as if inputs were uncorrelated, which is as good a start for integers
            that are not going to be the nearest ones, and costs no product.

    Source: the range search of Nagel et al. 2021, "A White Paper on Neural Network Quantization",
    arXiv:2106.08295, section 3.1, with the output's error for the weight's.
    """
    if grid.frozen:
        return grid

    def loss(scale: Tensor) -> Tensor:
        return range_loss(target, moments, grid.with_scale(scale), correlated=correlated)

    covering = grid.covering(target)
    found = grid.scale, loss(grid.scale)
    if grid.power_of_two:
        candidates = [covering * 2.0**shift for shift in _SHIFTS]
        return grid.with_scale(_best(map(grid.allowed, candidates), loss, found)[0])
    found = _best((grid.allowed(covering * c) for c in COARSE), loss, found)
    near = [found[0] + covering * c for c in _FINE]
    return grid.with_scale(_best(map(grid.allowed, near), loss, found)[0])


def _best(
    candidates: Iterable[Tensor], loss: Callable[[Tensor], Tensor], found: tuple[Tensor, Tensor]
) -> tuple[Tensor, Tensor]:
    """The best step of every range among the candidates and what was found before."""
    best, least = found
    for scale in candidates:
        own = loss(scale)
        better = own < least
        best, least = torch.where(better, scale, best), torch.where(better, own, least)
    return best, least


def range_loss(
    target: Tensor, moments: Tensor, grid: WeightGrid, *, correlated: bool = True
) -> Tensor:
    """Loss of the nearest integers by range, `[R, B]`.

    The loss of a channel that has several ranges is split among them as if their inputs were
    uncorrelated.
    """
    error = grid.weight(grid.nearest(target)) - target
    if correlated and grid.scale.shape[1] == 1:
        return grid.by_rows(quadratic(error, moments))[:, None]
    diagonal = torch.diagonal(moments, dim1=1, dim2=2)
    return grid.gathered(error.square_() * diagonal[:, None, :])


def refit(
    integers: Tensor, slope: Tensor, pulled: Tensor, moments: Tensor, grid: WeightGrid
) -> tuple[WeightGrid, Tensor]:
    """The steps with the smallest loss for given integers, `s = <k, t>_H / <k, k>_H`.

    Where a channel has several ranges they are fitted one after the other.

    Args:
        integers: centred integers, `[G, O, D]`.
        slope: `(s k - t) H`, `[G, O, D]`.
        pulled: `t H`, `[G, O, D]`.
        moments: second moments of the inputs, `[G, D, D]`.
        grid: the grid; one that is frozen or has powers of two is returned as it is.

    Returns:
        The grid, and the slope with its steps.
    """
    if grid.frozen or grid.power_of_two:
        return grid, slope
    scale, slope = grid.scale.clone(), slope.clone()
    blocks = scale.shape[1]
    for block in range(blocks):
        part = integers if blocks == 1 else integers * (grid.blocks == block)
        # k H of these columns
        moved = (slope + pulled) / grid.spread(scale) if blocks == 1 else torch.bmm(part, moments)
        fall = grid.by_rows((slope * part).sum(-1))
        curvature = grid.by_rows((moved * part).sum(-1))
        before = scale[:, block]
        wanted = before - fall / curvature.clamp(min=1e-30)
        wanted = torch.where((curvature > 0) & (wanted > 0.25 * before), wanted, before)
        if grid.least is not None:
            wanted = torch.maximum(wanted, grid.least[:, block])
        slope += (wanted - before)[grid.rows][:, :, None] * moved
        scale[:, block] = wanted
    return grid.with_scale(scale), slope
