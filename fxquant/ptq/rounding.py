"""Integers for a weight on a grid whose steps are known.

All work on the quadratic `(s k - t) H (s k - t)^T` of every output channel `t`, with integers `k`.
Channels are independent of each other and are computed side by side; columns are taken one after
the other, in blocks: inside of a block every step updates what is left of the block, and the rest
of the matrix is updated once a block, by one product.

The matrices are transposed here, `[G, D, O]`, so that a column of the weight lies in one piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.ptq.grids import WeightGrid

_BLOCK = 64
# further from its integer than this a coordinate is worth moving: ties would move for ever
_TIE = 0.5 + 1e-6


def gptq(target: Tensor, moments: Tensor, grid: WeightGrid) -> Tensor:
    """Round column after column, and let the columns that are left make up for the error.

    Columns with the largest moments come first.

    Args:
        target: the weight, `[G, O, D]`.
        moments: second moments of the inputs, positive definite, `[G, D, D]`.
        grid: the grid.

    Returns:
        Centred integers, `[G, O, D]`.

    Source: Frantar et al. 2022, "GPTQ", arXiv:2210.17323, algorithm 1 with its "act-order".
    """
    order = torch.diagonal(moments, dim1=1, dim2=2).argsort(dim=1, descending=True)
    rows = order[:, :, None].expand_as(moments)
    permuted = moments.gather(1, rows).gather(2, order[:, None, :].expand_as(moments))
    factor = _inverse_factor(permuted)
    index = order[:, :, None].expand(-1, -1, target.shape[1])
    left, scale, low, high = (
        grid_part.expand_as(target).transpose(1, 2).gather(1, index)
        for grid_part in (target, *(grid.spread(r) for r in (grid.scale, grid.low, grid.high)))
    )
    integers = torch.empty_like(left)
    columns = left.shape[1]
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        errors = torch.empty_like(left[:, first:last])
        own = factor[:, first:last, first:last]
        for j in range(first, last):
            i = j - first
            wanted = left[:, j]
            k = torch.div(wanted, scale[:, j]).round_()
            k = torch.minimum(torch.maximum(k, low[:, j]), high[:, j])
            integers[:, j] = k
            error = torch.addcmul(wanted, k, scale[:, j], value=-1.0).div_(own[:, i, i, None])
            errors[:, i] = error
            if j + 1 < last:
                left[:, j + 1 : last].sub_(own[:, i, i + 1 :, None] * error[:, None])
        if last < columns:
            left[:, last:].baddbmm_(factor[:, first:last, last:].mT, errors, alpha=-1.0)
    return torch.empty_like(integers).scatter_(1, index, integers).transpose(1, 2)


def _inverse_factor(moments: Tensor) -> Tensor:
    """Upper factor `U` of the inverse, `H^-1 = U^T U`: `[G, D, D]`."""
    lower = torch.linalg.cholesky(moments)
    return torch.linalg.cholesky(torch.cholesky_inverse(lower), upper=True)


def descend(
    integers: Tensor,
    target: Tensor,
    moments: Tensor,
    grid: WeightGrid,
    *,
    sweeps: int = 3,
    settled: float = 1e-3,
) -> Tensor:
    """Move one integer at a time to where the quadratic is smallest, the others held.

    No step makes the loss larger, so the result is never worse than the start.

    Args:
        integers: centred integers to start from, `[G, O, D]`.
        target: the weight, `[G, O, D]`.
        moments: second moments of the inputs, `[G, D, D]`.
        grid: the grid.
        sweeps: how often all columns are visited at most.
        settled: share of integers that moved in a sweep below which no other follows.

    Returns:
        Centred integers, `[G, O, D]`.
    """
    k = integers.transpose(1, 2).contiguous()
    scale, low, high = (
        grid.spread(r).expand_as(target).transpose(1, 2).contiguous()
        for r in (grid.scale, grid.low, grid.high)
    )
    curvature = torch.diagonal(moments, dim1=1, dim2=2)[:, :, None]
    inverse = torch.where(curvature > 0, 1.0 / (curvature * scale), 0.0)
    gradient = torch.bmm(moments, k * scale - target.transpose(1, 2))
    for _ in range(sweeps):
        moved = _sweep(k, gradient, moments, inverse, scale, (low, high))
        if moved <= settled * k.numel():
            break
    return k.transpose(1, 2)


def _sweep(
    k: Tensor,
    gradient: Tensor,
    moments: Tensor,
    inverse: Tensor,
    scale: Tensor,
    ends: tuple[Tensor, Tensor],
) -> int:
    """Visit all columns once; `k` and `gradient` are changed. Returns how many integers moved."""
    moved, columns = 0, k.shape[1]
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        own = moments[:, first:last, first:last]
        slope = gradient[:, first:last].clone()
        before = k[:, first:last].clone()
        for j in range(first, last):
            i = j - first
            wish = torch.addcmul(k[:, j], slope[:, i], inverse[:, j], value=-1.0)
            near = (wish - k[:, j]).abs_() > _TIE
            new = wish.round_()
            new = torch.minimum(torch.maximum(new, ends[0][:, j]), ends[1][:, j])
            change = (new - k[:, j]) * near
            if bool(change.any()):
                k[:, j] += change
                change *= scale[:, j]
                slope[:, i + 1 :].add_(own[:, i + 1 :, i, None] * change[:, None])
        change = k[:, first:last] - before
        count = int(change.count_nonzero())
        if count:
            moved += count
            change *= scale[:, first:last]
            gradient.baddbmm_(moments[:, :, first:last], change)
    return moved
