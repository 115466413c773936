"""What follows from a range, kept until the range changes.

Why not just the version counter of the parameters: fused optimizers and writes through `.data` do
not advance it, and a simulation that goes on with the old step trains on wrong gradients without a
word. So one range on the CPU is compared by its two numbers, which costs less than a microsecond;
several are compared by value while a gradient could be applied to them; and on accelerators, where
looking at a number means waiting for it, they are worked out again in that case.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.quantization.encodings import AffineEncoding
    from fxquant.quantization.kernels import Affine
    from fxquant.quantization.range_to_qparams import Factors, IntegerRange

Stamp = tuple[int, int, int, int]


@dataclass(slots=True)
class Known:
    """Step, zero point and encoding of a range; without them the range is not calibrated.

    Attributes:
        low: the parameter `min`.
        high: the parameter `max`.
        grid: the integers.
        numbers: both ends as numbers, if there is one range and it lies on the CPU.
        stamp: version counters and addresses of both ends.
        values: copies of both ends, if there are several ranges on the CPU.
        params: step and zero point.
        encoding: what the integers mean.
    """

    low: Tensor
    high: Tensor
    grid: IntegerRange
    numbers: tuple[float, float] | None = None
    stamp: Stamp | None = None
    values: tuple[Tensor, Tensor] | None = None
    params: Affine | None = None
    encoding: AffineEncoding | None = None
    _factors: Factors | None = None

    @classmethod
    def of(cls, low: Tensor, high: Tensor, grid: IntegerRange, *, single: bool) -> Known:
        """Nothing but the range."""
        known = cls(low, high, grid)
        if low.device.type != "cpu":
            known.stamp = _stamp(low, high)
        elif single:
            known.numbers = (low.item(), high.item())
        else:
            known.stamp = _stamp(low, high)
            known.values = (low.detach().clone(), high.detach().clone())
        return known

    def holds_for(self, low: Tensor, high: Tensor) -> bool:
        """True if the range is still the same."""
        if low is not self.low or high is not self.high:
            return False
        if self.numbers is not None:
            # unknown ranges are NaN, which equals nothing: they are looked at again
            return low.device.type == "cpu" and self.numbers == (low.item(), high.item())
        if self.stamp is None or self.stamp != _stamp(low, high):
            return False
        if not (_may_change(low) or _may_change(high)):
            return True
        if self.values is None:
            return False
        return torch.equal(low, self.values[0]) and torch.equal(high, self.values[1])

    def follows(self, before: Known | None) -> bool:
        """True if the range was known before and has at most been trained since."""
        return before is not None and before.params is not None and before.stamp == self.stamp

    def factors(self) -> Factors:
        """What turns sums over the tensor into gradients of the range."""
        if self._factors is None:
            scale = self.low if self.encoding is None else self.encoding.scale
            with torch.no_grad():
                self._factors = self.grid.factors(self.low.detach(), self.high.detach(), scale)
        return self._factors


def _may_change(end: Tensor) -> bool:
    """True if an optimizer may have written, or may yet write, without advancing the version."""
    return end.requires_grad and (torch.is_grad_enabled() or end.grad is not None)


def _stamp(low: Tensor, high: Tensor) -> Stamp | None:
    if low.is_inference() or high.is_inference():
        return None  # has no version counter
    return low._version, high._version, low.data_ptr(), high.data_ptr()
