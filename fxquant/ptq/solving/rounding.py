"""Integers for a weight on a grid whose steps are known.

All work on the quadratic `(s k - t) H (s k - t)^T` of every output channel `t`, with integers `k`.
Channels are independent of each other and are computed side by side.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.ptq.solving.grids import WeightGrid

_BLOCK = 64
# a fall of the loss that is smaller, in units of one step of one integer, is rounding
_NOTHING = 1e-6


def gptq(target: Tensor, inverse: Tensor, grid: WeightGrid) -> Tensor:
    """Round column after column, and let the columns that are left make up for the error.

    Columns whose error is hardest to make up for come first. They are taken in blocks: inside of a
    block every step updates what is left of it, and the rest of the matrix is updated once a block,
    by one product.

    Args:
        target: the weight, `[G, O, D]`.
        inverse: inverse of the second moments of the inputs, `[G, D, D]`.
        grid: the grid.

    Returns:
        Centred integers, `[G, O, D]`.

    Source: Frantar et al. 2022, "GPTQ", arXiv:2210.17323, algorithm 1 with its "act-order".
    """
    order = torch.diagonal(inverse, dim1=1, dim2=2).argsort(dim=1)
    factor = _factor(inverse, order).to(target.dtype)
    # transposed, so that a column of the weight lies in one piece
    index = order[:, :, None].expand(-1, -1, target.shape[1])
    left = target.transpose(1, 2).gather(1, index)
    scale, low, high = (
        spread.transpose(1, 2).gather(1, index)
        if spread.shape[2] > 1
        else spread.transpose(1, 2).expand_as(left)
        for spread in (grid.spread(r) for r in (grid.scale, grid.low, grid.high))
    )
    integers = torch.empty_like(left)
    columns = left.shape[1]
    for first in range(0, columns, _BLOCK):
        last = min(first + _BLOCK, columns)
        own = factor[:, first:last, first:last]
        pivots = torch.diagonal(own, dim1=1, dim2=2)[:, :, None]
        shares = own / pivots
        errors = torch.empty_like(left[:, first:last])
        parts = (left, scale, low, high, integers)
        views = zip(*(t[:, first:last].unbind(1) for t in parts), errors.unbind(1), strict=True)
        for i, (wanted, step, least, most, k, error) in enumerate(views, 1):
            torch.div(wanted, step, out=k).round_().clamp_(least, most)
            torch.addcmul(wanted, k, step, value=-1.0, out=error)
            if first + i < last:
                later = left[:, first + i : last]
                later.addcmul_(shares[:, i - 1, i:, None], error[:, None], value=-1.0)
        if last < columns:
            later, behind = left[:, last:], factor[:, first:last, last:]
            later.baddbmm_(behind.mT, errors.div_(pivots), alpha=-1.0)
    return torch.empty_like(integers).scatter_(1, index, integers).transpose(1, 2)


def _factor(inverse: Tensor, order: Tensor) -> Tensor:
    """The upper Cholesky factor of a symmetric matrix whose columns are put in order."""
    factor = _permuted(inverse, order).mT  # LAPACK's layout: it is factored in its own place
    failed = torch.zeros(len(factor), dtype=torch.int32, device=factor.device)
    torch.linalg.cholesky_ex(factor, upper=True, out=(factor, failed))
    if not bool(failed.any()):
        return factor
    # rounding of a float32 inverse
    exact: Tensor = torch.linalg.cholesky(_permuted(inverse, order).double(), upper=True)
    return exact


def _permuted(matrix: Tensor, order: Tensor) -> Tensor:
    """Rows and columns in another order, some rows after the other: `[G, D, D], [G, D]`."""
    width = matrix.shape[1]
    found = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    for first in range(0, width, _BLOCK):
        rows = order[:, first : first + _BLOCK, None].expand(-1, -1, width)
        columns = order[:, None, :].expand_as(rows)
        found[:, first : first + _BLOCK] = matrix.gather(1, rows).gather(2, columns)
    return found


def descend(
    integers: Tensor,
    target: Tensor,
    moments: Tensor,
    grid: WeightGrid,
    *,
    slope: Tensor | None = None,
    steps: int = 1000,
) -> tuple[Tensor, Tensor]:
    """Move one integer of every channel at a time, the one that lowers its loss most.

    No step makes the loss larger, so the result is never worse than the start. A channel is done
    when no single integer of it can be moved with profit.

    Args:
        integers: centred integers to start from, `[G, O, D]`.
        target: the weight, `[G, O, D]`.
        moments: second moments of the inputs, `[G, D, D]`.
        grid: the grid.
        slope: `(s k - t) H` of the start, if it is known, `[G, O, D]`.
        steps: moves of a channel at most.

    Returns:
        Centred integers and the slope there, `[G, O, D]` both.
    """
    groups, outs, ins = target.shape
    k = integers.reshape(-1, ins).clone()
    scale, low, high = (
        grid.spread(r).expand_as(target).reshape(-1, ins) for r in (grid.scale, grid.low, grid.high)
    )
    bend = torch.diagonal(moments, dim1=1, dim2=2).repeat_interleave(outs, 0) * scale
    group = torch.arange(groups, device=target.device).repeat_interleave(outs)
    if slope is None:
        slope = torch.bmm(grid.weight(integers) - target, moments)
    slope = slope.reshape(-1, ins).clone()
    state = _Descent(k, slope, scale, low, high, bend, torch.where(bend > 0, 1.0 / bend, 0.0))
    rows = torch.arange(len(k), device=k.device)
    for _ in range(steps):
        gain, column, change = state.best()
        moving = torch.nonzero(gain < 0)[:, 0]
        if len(moving) < 0.7 * len(rows):  # the others are done: their slopes change no more
            state.put_back(k, slope, rows)
            state, rows, group = state.part(moving), rows[moving], group[moving]
            column, change = column[moving], change[moving]
            moving = torch.arange(len(rows), device=k.device)
        if not len(moving):
            break
        column, change = column[moving], change[moving]
        state.move(moving, column, change, moments[group[moving], column])
    state.put_back(k, slope, rows)
    return k.reshape(target.shape), slope.reshape(target.shape)


class _Descent:
    """Channels that still move: integers, slopes and the rest as `[rows, D]`."""

    def __init__(
        self, k: Tensor, slope: Tensor, scale: Tensor, low: Tensor, high: Tensor,
        bend: Tensor, inverse: Tensor,
    ) -> None:  # fmt: skip
        self.k, self.slope, self.scale, self.low, self.high = k, slope, scale, low, high
        self.bend, self.inverse = bend, inverse

    def part(self, rows: Tensor) -> _Descent:
        parts = (self.k, self.slope, self.scale, self.low, self.high, self.bend, self.inverse)
        # what all columns have alike stays one number in memory
        return _Descent(*(
            t[:, :1][rows].expand(-1, t.shape[1]) if t.stride(1) == 0 else t[rows] for t in parts
        ))  # fmt: skip

    def put_back(self, k: Tensor, slope: Tensor, rows: Tensor) -> None:
        """Write what these rows of all channels have become; of all of them, they are the same."""
        if self.k is not k:
            k[rows], slope[rows] = self.k, self.slope

    def best(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of every channel the largest fall of the loss, below 0, its column and the change."""
        change = torch.addcmul(self.k, self.slope, self.inverse, value=-1.0).round_()
        change.clamp_(self.low, self.high).sub_(self.k)
        # 2 g s d + h s^2 d^2, over 2 s
        gain = torch.addcmul(self.slope, self.bend, change, value=0.5).mul_(change)
        gain.mul_(self.scale)
        found, column = gain.min(1)
        floor = _NOTHING * (self.bend[:, 0] * self.scale[:, 0]).abs()
        found = torch.where(found < -floor, found, 0.0)
        return found, column, change.gather(1, column[:, None])[:, 0]

    def move(self, rows: Tensor, column: Tensor, change: Tensor, moments: Tensor) -> None:
        """Change one integer of each of some channels; `moments` are its rows, `[rows, D]`."""
        self.k[rows, column] += change
        step = (change * self.scale[rows, column])[:, None]
        if len(rows) == len(self.k):
            self.slope.addcmul_(moments, step)
        else:
            self.slope[rows] += moments * step
