"""The integer grid of a quantizer: its step and zero point from a range, and the way back for gradients.

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
class AffineGrid:
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
    def of_bits(cls, bits: int, *, signed: bool, symmetric: bool) -> AffineGrid:
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
            >>> AffineGrid(0, 255).scale(torch.tensor(0.0), torch.tensor(2.55))
            tensor(0.0100)
        """
        low, high = low.clamp(max=0.0), high.clamp(min=0.0)
        if self.symmetric:
            above, below = self.qmax - self.middle, self.middle - self.qmin
            width = torch.maximum(_divided(high, above), _divided(-low, below))
        else:
            width = _divided(high - low, self.steps)
        width = torch.where(width == 0.0, EMPTY_RANGE_SCALE, width)
        return width.clamp(SMALLEST_SCALE, LARGEST_SCALE)

    def zero_point(self, low: Tensor, scale: Tensor) -> Tensor:
        """The integer that stands for 0.0, as a float: `[S], [S] -> [S]`."""
        if self.symmetric:
            return torch.full_like(scale, self.middle)
        return (self.qmin - torch.round(low.clamp(max=0.0) / scale)).clamp(self.qmin, self.qmax)

    def range_gradients(
        self, low: Tensor, high: Tensor, scale: Tensor, d_scale: Tensor, d_zero: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Gradients of the range from those of step and zero point; rounding is straight through.

        A bound on the wrong side of zero acts as zero; it gets the part of its gradient that moves
        it back, so it cannot get stuck there.

        Args:
            low: lower end of the range, `[S]`.
            high: upper end of the range, `[S]`.
            scale: step of the grid, `[S]`.
            d_scale: gradient of the step, `[S]`.
            d_zero: gradient of the zero point, `[S]`.

        Returns:
            Gradients of `low` and `high`, `[S]` each.
        """
        if self.symmetric:
            above, below = self.qmax - self.middle, self.middle - self.qmin
            upper = high.clamp(min=0.0) / above >= -low.clamp(max=0.0) / below
            d_high = torch.where(upper, d_scale / above, 0.0)
            d_low = torch.where(upper, 0.0, d_scale / -below)
        else:
            # scale = (high - low) / steps and zero_point = qmin - low / scale
            d_high = (d_scale + d_zero * low.clamp(max=0.0) / (scale * scale)) / self.steps
            d_low = -d_high - d_zero / scale
        d_low = torch.where(low > 0.0, d_low.clamp(min=0.0), d_low)
        d_high = torch.where(high < 0.0, d_high.clamp(max=0.0), d_high)
        return d_low, d_high


def _divided(x: Tensor, by: int) -> Tensor:
    # CUDA turns a division by a number into a product with its reciprocal: another last bit
    return x / torch.full_like(x, by)
