"""The way back from a grid to a range: ends whose step is the given one, to the last bit.

A quantizer keeps a range and divides it by the number of steps. What divides to a given step is
searched among neighbouring numbers: one of them does it for every step that came from a range,
while of all float32 numbers one in as many as there are steps is no quotient at all. Ends of a
symmetric grid of `2 ** b` integers hit every step, since its lower end is a power of two of steps
away.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.quantization.grid import AffineGrid

_FARTHEST = 3  # neighbours that are looked at; rounding twice is off by two at most


@torch.no_grad()
def range_of(grid: AffineGrid, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of a range that has this step and zero point: `[S], [S] -> [S], [S]`.

    The step of the result is the nearest that a range can have; compare where it must be exact.

    Example:
        >>> from fxquant.quantization.grid import AffineGrid
        >>> grid, scale = AffineGrid(0, 255), torch.tensor(0.1)
        >>> low, high = range_of(grid, scale, torch.tensor(3.0))
        >>> bool(grid.scale(low, high) == scale), grid.zero_point(low, scale)
        (True, tensor(3.))
    """
    if grid.symmetric:
        low = -product_for(scale, grid.middle - grid.qmin)
        return low, _not_above(scale, grid.qmax - grid.middle)
    width = product_for(scale, grid.steps)
    # on multiples of the last bit of the width all sums are exact
    unit = torch.exp2(torch.frexp(width).exponent.float() - 24.0)
    low = torch.round((grid.qmin - zero_point) * scale / unit) * unit
    low = torch.maximum(low, -width)
    return low, width + low


def product_for(scale: Tensor, count: int) -> Tensor:
    """The number that divided by `count` gives `scale`, or one of the nearest: `[S] -> [S]`."""
    first = scale * count
    best, wrong = first, (_divided(first, count) - scale).abs()
    for above in (True, False):
        number = first
        for _ in range(_FARTHEST):
            number = _neighbour(number, above=above)
            error = (_divided(number, count) - scale).abs()
            best = torch.where(error < wrong, number, best)
            wrong = torch.minimum(error, wrong)
    return best


def _not_above(scale: Tensor, count: int) -> Tensor:
    """About `scale * count`, and never more steps than that."""
    number = scale * count
    for _ in range(_FARTHEST):
        number = torch.where(
            _divided(number, count) > scale, _neighbour(number, above=False), number
        )
    return number


def _neighbour(x: Tensor, *, above: bool) -> Tensor:
    return torch.nextafter(x, torch.full_like(x, torch.inf if above else -torch.inf))


def _divided(x: Tensor, by: int) -> Tensor:
    # a division by a number becomes a product with its reciprocal on CUDA
    return x / torch.full_like(x, by)
