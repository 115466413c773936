"""The grid of a weight that is seen as a matrix: which elements share a step, and the loss on it.

A layer's weight is `[G, O, D]`: groups, output channels of a group, inputs of an output. Whatever
the granularity of a quantizer is, its ranges lie in a product: one coordinate follows the rows
`(G, O)`, the other the columns `D` (blocks along the inputs). Integers are *centred* here: the zero
point is taken away, so that a weight is `scale * integer`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class WeightGrid:
    """Ranges of a weight matrix.

    Attributes:
        scale: step of every range, `[R, B]`: row ranges by column blocks.
        low: smallest centred integer of every range, `[R, B]`.
        high: largest one.
        rows: row range of each output channel, int64 `[G, O]`.
        blocks: column block of each input, int64 `[D]`.
        frozen: the scale must stay as it is.
        power_of_two: the scale must be a power of two.
        least: smallest scale that is allowed, `[R, B]`; 0 for any.
    """

    scale: Tensor
    low: Tensor
    high: Tensor
    rows: Tensor
    blocks: Tensor
    frozen: bool = False
    power_of_two: bool = False
    least: Tensor | None = None

    @classmethod
    def uniform(
        cls, target: Tensor, bits: int, *, per_row: bool = True, block: int | None = None
    ) -> WeightGrid:
        """A symmetric signed grid that covers a weight: `[G, O, D]`.

        Args:
            target: the weight.
            bits: bits of the integers.
            per_row: one range an output channel; False: one for all.
            block: inputs that share a range; None: all of them.

        Example:
            >>> grid = WeightGrid.uniform(torch.tensor([[[-0.8, 0.7]]]), 4)
            >>> grid.scale, grid.low.item(), grid.high.item()
            (tensor([[0.1000]]), -8.0, 7.0)
        """
        groups, outs, ins = target.shape
        rows = torch.arange(groups * outs).reshape(groups, outs) if per_row else None
        blocks = torch.arange(ins) // (block or ins)
        if rows is None:
            rows = torch.zeros(groups, outs, dtype=torch.int64)
        shape = (int(rows.max()) + 1, int(blocks.max()) + 1)
        low = torch.full(shape, -float(2 ** (bits - 1)), dtype=target.dtype)
        grid = cls(torch.ones_like(low), low, -low - 1, rows, blocks)
        return grid.with_scale(grid.covering(target))

    def with_scale(self, scale: Tensor) -> WeightGrid:
        """The same grid with other steps, `[R, B]`."""
        return replace(self, scale=scale)

    def to(self, dtype: torch.dtype) -> WeightGrid:
        """The same grid with numbers of another precision."""
        least = None if self.least is None else self.least.to(dtype)
        numbers = (t.to(dtype) for t in (self.scale, self.low, self.high))
        scale, low, high = numbers
        return replace(self, scale=scale, low=low, high=high, least=least)

    def spread(self, ranges: Tensor) -> Tensor:
        """What every element has of its range: `[R, B] -> [G, O, D]`, or `[G, O, 1]`."""
        rows = ranges[self.rows]
        return rows if ranges.shape[1] == 1 else rows[:, :, self.blocks]

    def gathered(self, values: Tensor, how: str = "sum") -> Tensor:
        """Elements taken together by range, by "sum" or "amax": `[G, O, D] -> [R, B]`."""
        count, blocks = self.scale.shape
        flat, rows = values.reshape(-1, values.shape[-1]), self.rows.reshape(-1)
        if blocks == 1:
            columns = flat.sum(1, keepdim=True) if how == "sum" else flat.amax(1, keepdim=True)
        else:
            index = self.blocks.expand_as(flat)
            columns = flat.new_zeros(len(flat), blocks).scatter_reduce_(1, index, flat, how)
        index = rows[:, None].expand_as(columns)
        return columns.new_zeros(count, blocks).scatter_reduce_(0, index, columns, how)

    def by_rows(self, values: Tensor) -> Tensor:
        """Sums over the channels of every row range: `[G, O] -> [R]`."""
        found = values.new_zeros(len(self.scale))
        return found.index_add_(0, self.rows.reshape(-1), values.reshape(-1))

    def covering(self, target: Tensor) -> Tensor:
        """The smallest steps that clip nothing: `[G, O, D] -> [R, B]`; those of zeros are kept."""
        above, below = (self.gathered(t.clamp(min=0), "amax") for t in (target, -target))
        high, low = self.high.clamp(min=1e-9), (-self.low).clamp(min=1e-9)
        steps = torch.maximum(
            torch.where(self.high > 0, above / high, 0.0),
            torch.where(self.low < 0, below / low, 0.0),
        )
        return torch.where(steps > 0, steps, self.scale)

    def allowed(self, scale: Tensor) -> Tensor:
        """The nearest steps that the grid may have, `[R, B]`."""
        if self.frozen:
            return self.scale
        if self.least is not None:
            scale = torch.maximum(scale, self.least)
        if self.power_of_two:
            # never below what was asked for by more than the rounding of the logarithm
            return torch.exp2(torch.ceil(torch.log2(scale) - 1e-9))
        return scale

    def repeated(self, shares: Sequence[float]) -> WeightGrid:
        """The grid of the same channels several times over, with a share of the steps each.

        Channels of a group lie one repetition behind the other: `[G, O] -> [G, S * O]`.
        """
        count, times = len(self.scale), len(shares)
        scale = torch.cat([self.allowed(self.scale * share) for share in shares])
        low, high = (t.repeat(times, 1) for t in (self.low, self.high))
        rows = torch.cat([self.rows + i * count for i in range(times)], 1)
        least = None if self.least is None else self.least.repeat(times, 1)
        return replace(self, scale=scale, low=low, high=high, rows=rows, least=least)

    def nearest(self, target: Tensor) -> Tensor:
        """Centred integers nearest to a weight, ties to even: `[G, O, D] -> [G, O, D]`."""
        integers = torch.round(target / self.spread(self.scale))
        return torch.minimum(torch.maximum(integers, self.spread(self.low)), self.spread(self.high))

    def weight(self, integers: Tensor) -> Tensor:
        """Real values of centred integers, `[G, O, D]`."""
        return integers * self.spread(self.scale)

    def part(self, columns: Tensor) -> WeightGrid:
        """The grid of some columns of the matrix; ranges keep their numbers."""
        return replace(self, blocks=self.blocks[columns])


def beside(grids: Sequence[WeightGrid]) -> WeightGrid:
    """The grid of matrices that stand side by side and whose rows have ranges alike."""
    first, *others = grids
    for other in others:
        ranges = (torch.cat(pair, 1) for pair in (
            (first.scale, other.scale), (first.low, other.low), (first.high, other.high)
        ))  # fmt: skip
        blocks = torch.cat([first.blocks, other.blocks + first.scale.shape[1]])
        scale, low, high = ranges
        first = replace(first, scale=scale, low=low, high=high, blocks=blocks)
    return first


def quadratic(error: Tensor, moments: Tensor) -> Tensor:
    """`e H e^T` of every output channel: `[G, O, D], [G, D, D] -> [G, O]`.

    It is the mean squared error of the layer's output (without its mean, if the moments are
    centred) that a change of the weight by `e` makes.
    """
    return (torch.bmm(error, moments) * error).sum(-1)
