"""The way back from a grid to a range: ends whose step is the given one, to the last bit.

A quantizer keeps a range and divides it by the number of steps. One float32 number in as many as
there are steps is no quotient of a float32 number. But the width of a range is the difference of
two of them, taken in float64: where one end alone misses the step, the other, which is smaller,
holds what is missing (an end at zero then lies next to zero, far below half a step).

Ends of a symmetric grid of `2 ** b` integers hit every step, since the lower one is a power of two
of steps away. On a narrowed symmetric grid (-127 to 127) the nearest step may be one bit off; steps
that came from a range are hit there, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.quantization.range_to_qparams import wide

if TYPE_CHECKING:
    from fxquant.quantization.range_to_qparams import IntegerRange

_FARTHEST = 3  # neighbours that are looked at; rounding twice is off by two at most


@torch.no_grad()
def range_of(grid: IntegerRange, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
    """Ends of a range that has this step and zero point: `[S], [S] -> [S], [S]`.

    The step of the result is this one, but for the steps of narrowed symmetric grids that no range
    has; compare where it must be exact.

    Example:
        >>> from fxquant.quantization.range_to_qparams import IntegerRange
        >>> grid, scale = IntegerRange(0, 255), torch.tensor(0.1)
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
    high = width + low
    missed = grid.scale(low, high) != scale
    exact = _split(wide(scale) * grid.steps, low, high)
    return torch.where(missed, exact[0], low), torch.where(missed, exact[1], high)


def _split(width: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Ends near the given ones whose difference is the float64 width, to 2 ** -26 of it."""
    below = -low > high
    larger = torch.where(below, -low, high)
    # not above the width, so that the other end does not cross zero
    larger = torch.where(wide(larger) > width, _neighbour(larger, above=False), larger)
    rest = (width - wide(larger)).float()
    return torch.where(below, -larger, -rest), torch.where(below, rest, larger)


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
