"""The integer grid of a quantizer: step and zero point from a range, and gradients the way back.

Everything here is float32 arithmetic on the ranges themselves (a handful of numbers), never on the
tensor. The grid holds zero exactly: integer `zero_point` means 0.0, so padding, ReLU and sparse
tensors stay exact.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fxquant.errors import QuantizationError

# a product of two steps (the step of an int32 bias) must be a normal float32 as well
SMALLEST_SCALE = 2.0**-60
LARGEST_SCALE = 2.0**120
# a tensor of zeros: any step is right for it; this one keeps an int32 bias behind it precise
EMPTY_RANGE_SCALE = 2.0**-16


@dataclass(frozen=True)
class IntegerRange:
    """Integers `qmin .. qmax`; symmetric grids pin the zero point to their middle.

    Args:
        qmin: smallest integer.
        qmax: largest integer.
        symmetric: True if zero lies in the middle whatever the range is.
    """

    qmin: int
    qmax: int
    symmetric: bool = False

    def __post_init__(self) -> None:
        if self.qmax - self.qmin < 2:
            raise QuantizationError(
                "FXQ406",
                f"a grid from {self.qmin} to {self.qmax} has less than three values",
                fix="use a bitwidth of at least 2",
            )
        if self.qmax - self.qmin >= 2**32:
            raise QuantizationError(
                "FXQ406",
                f"a grid from {self.qmin} to {self.qmax} needs more than 32 bits",
                fix="use a bitwidth of at most 32",
            )

    @classmethod
    def of_bits(cls, bits: int, *, signed: bool, symmetric: bool) -> IntegerRange:
        """The grid with all `2 ** bits` integers."""
        low = -(2 ** (bits - 1)) if signed else 0
        return cls(low, low + 2**bits - 1, symmetric)

    @property
    def steps(self) -> int:
        """Number of steps between the smallest and the largest integer."""
        return self.qmax - self.qmin

    @property
    def bits(self) -> int:
        """Bits that are needed to count the values."""
        return self.steps.bit_length()

    @property
    def signed(self) -> bool:
        """True if negative integers belong to the grid."""
        return self.qmin < 0

    @property
    def middle(self) -> int:
        """Zero point of a symmetric grid."""
        return (self.qmin + self.qmax + 1) // 2

    def scale(self, low: Tensor, high: Tensor) -> Tensor:
        """Width of one step of the grid that covers `[low, high]` and zero: `[S], [S] -> [S]`.

        Never zero and never denormal; not-a-number where the range is.

        Example:
            >>> IntegerRange(0, 255).scale(torch.tensor(0.0), torch.tensor(2.55))
            tensor(0.0100)
        """
        low, high = not_above_zero(low), torch.where(high < 0.0, 0.0, high)
        if self.symmetric:
            above, below = self.qmax - self.middle, self.middle - self.qmin
            width = torch.maximum(_divided(high, above), _divided(-low, below))
        else:
            # in float64, two float32 ends can tell every float32 step (see `range_of`)
            width = _divided(wide(high) - wide(low), self.steps).to(low.dtype)
        width = torch.where(width == 0.0, EMPTY_RANGE_SCALE, width)
        return width.clamp(SMALLEST_SCALE, LARGEST_SCALE)

    def zero_point(self, low: Tensor, scale: Tensor) -> Tensor:
        """The integer that stands for 0.0, as a float: `[S], [S] -> [S]`."""
        if self.symmetric:
            return torch.full_like(scale, self.middle)
        return (self.qmin - torch.round(low.clamp(max=0.0) / scale)).clamp(self.qmin, self.qmax)

    def factors(self, low: Tensor, high: Tensor, scale: Tensor) -> Factors:
        """How the gradients of a range follow from two sums over the tensor.

        With `scale = (high - low) / steps` and `zero_point = qmin - low / scale`, rounding passed
        straight through, a clipped element pulls at the end that clips it, and the rounding errors
        of the others at the step.

        Args:
            low: lower end of the range, `[S]`.
            high: upper end of the range, `[S]`.
            scale: step of the grid, `[S]`.
        """
        if self.symmetric:
            above, below = self.qmax - self.middle, self.middle - self.qmin
            upper = high.clamp(min=0.0) / above >= -low.clamp(max=0.0) / below
            unit = 1.0 / scale
            low_products = torch.where(upper, 0.0, unit / -below)
            high_products = torch.where(upper, unit / above, 0.0)
            low_outside = high_outside = None
        else:
            high_products = 1.0 / (scale * self.steps)
            low_products = -high_products
            high_outside = low.clamp(max=0.0) * low_products
            low_outside = 1.0 - high_outside
        stuck = _if_any(low, (low > 0.0, high < 0.0))
        at_zero = None if self.symmetric else _if_any(low, _one_sided(low, high))
        products, outside = (low_products, high_products), (low_outside, high_outside)
        return Factors(products, outside, stuck, at_zero)


@dataclass(frozen=True, slots=True)
class Factors:
    """Gradients of two numbers (the ends of a range) as a linear map of two sums over the tensor.

    Attributes:
        products: factors of `sum g * y - sum dx * x` for the first and the second number, `[S]`.
        outside: factors of `sum g - sum dx`; None for zero.
        stuck: where the two ends lie on the wrong side of zero, or None if nowhere.
        at_zero: where one end of an asymmetric grid lies at zero, and the other does not; or None.
    """

    products: tuple[Tensor, Tensor]
    outside: tuple[Tensor | None, Tensor | None]
    stuck: tuple[Tensor, Tensor] | None = None
    at_zero: tuple[Tensor, Tensor] | None = None

    def keep_zeros(self, smallest: Tensor, largest: Tensor, scale: Tensor) -> Factors:
        """The map for a tensor: an end at zero stays there if it clips nothing.

        The rounding errors pull at both ends alike. An end of a ReLU's range would leave zero for
        that, which wastes values of the grid, and kernels that compute an activation within its
        producer need the zero point at the end of the grid. So the other end learns alone, as on
        the unsigned grids of LSQ.

        Args:
            smallest: of the elements of each range, as many as `scale` has.
            largest: of the elements of each range.
            scale: step of the grid.
        """
        if self.at_zero is None:
            return self
        low, high = self.products
        # half a step is a tie, and zero is even
        kept = (
            self.at_zero[0] & (smallest.reshape(low.shape) >= -0.5 * scale.reshape(low.shape)),
            self.at_zero[1] & (largest.reshape(low.shape) <= 0.5 * scale.reshape(low.shape)),
        )
        products = torch.where(kept[0], 0.0, low), torch.where(kept[1], 0.0, high)
        if kept[0].numel() == 1 and not low.is_cuda and bool(kept[0] | kept[1]):
            # the end that learns has no part in what is clipped at the other
            return Factors(products, (None, None), self.stuck)
        first, second = (
            None if f is None else torch.where(k, 0.0, f)
            for f, k in zip(self.outside, kept, strict=True)
        )
        return Factors(products, (first, second), self.stuck)

    @property
    def use_outside(self) -> bool:
        """True if the second sum is needed."""
        return self.outside[0] is not None or self.outside[1] is not None

    def scaled(self, by: float) -> Factors:
        """The map whose gradients are multiplied by a number."""
        first, second = (None if f is None else f * by for f in self.outside)
        low, high = self.products
        return Factors((low * by, high * by), (first, second), self.stuck, self.at_zero)

    def gradients(self, products: Tensor, outside: Tensor | None) -> tuple[Tensor, Tensor]:
        """Gradients of both numbers, `[S]` each."""
        low, high = (
            self._combined(a, b, products, outside)
            for a, b in zip(self.products, self.outside, strict=True)
        )
        if self.stuck is not None:
            # acts as zero; only the part of the gradient that moves it back is passed on
            low = torch.where(self.stuck[0], low.clamp(min=0.0), low)
            high = torch.where(self.stuck[1], high.clamp(max=0.0), high)
        return low, high

    def gradients_of_one(self, products: float, outside: float) -> tuple[Tensor, Tensor]:
        """As `gradients` of sums that are numbers: a tensor of one element costs a microsecond."""
        (a, c), (b, d) = self.products, self.outside
        low, high = a.item() * products, c.item() * products
        if b is not None:
            low += b.item() * outside
        if d is not None:
            high += d.item() * outside
        if self.stuck is not None:
            low = max(low, 0.0) if self.stuck[0].item() else low
            high = min(high, 0.0) if self.stuck[1].item() else high
        return torch.full(a.shape, low, dtype=a.dtype), torch.full(a.shape, high, dtype=a.dtype)

    def _combined(
        self, a: Tensor, b: Tensor | None, products: Tensor, outside: Tensor | None
    ) -> Tensor:
        if products.shape != a.shape:
            products = products.reshape(a.shape)
        if b is None or outside is None:
            return a * products
        return torch.addcmul(a * products, b, outside.reshape(a.shape))


def _one_sided(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return (low == 0.0) & (high > 0.0), (high == 0.0) & (low < 0.0)


def _if_any(like: Tensor, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
    """Where something holds, or None if nowhere; looking costs a wait on an accelerator."""
    return found if like.is_cuda or bool((found[0] | found[1]).any()) else None


def free_ends(
    low: Tensor, high: Tensor, smallest: Tensor, largest: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor]:
    """As `Factors.keep_zeros`, for a compiler: ends without a gradient where they stay at zero."""
    at_low, at_high = _one_sided(low, high)
    at_low, at_high = at_low & (smallest >= -0.5 * scale), at_high & (largest <= 0.5 * scale)
    return torch.where(at_low, 0.0, low), torch.where(at_high, 0.0, high)


def not_above_zero(x: Tensor) -> Tensor:
    """`min(x, 0)`; what is zero keeps its gradient, which `clamp` of torch gives up by release."""
    return torch.where(x > 0.0, 0.0, x)


def wide(x: Tensor) -> Tensor:
    """The numbers in float64, where the device has it."""
    return x if x.device.type == "mps" else x.double()  # which has no float64


def _divided(x: Tensor, by: int) -> Tensor:
    # CUDA turns a division by a number into a product with its reciprocal: another last bit
    return x / torch.full_like(x, by)
