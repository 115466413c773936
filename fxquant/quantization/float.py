"""Rounding to a narrow floating-point format: float16, bfloat16 and the 8-bit formats of PyTorch.

The two 16-bit formats are a cast and need no range. The 8-bit ones divide by a scale first, so that
the largest value seen becomes the largest value of the format, and saturate, as ONNX QuantizeLinear
does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fxquant.errors import QuantizationError
from fxquant.quantization.analyzers import MinMaxStatistics
from fxquant.quantization.encodings import FloatEncoding
from fxquant.quantization.layout import Layout
from fxquant.quantization.quantizer_base import QuantizerBase, float32
from fxquant.quantization.surrogate import hardtanh_backward
from fxquant.quantization.tensor import DequantizedTensor, attach

if TYPE_CHECKING:
    from collections.abc import Sequence

_BY_BITS = {
    (5, 10): torch.float16,
    (8, 7): torch.bfloat16,
    (4, 3): torch.float8_e4m3fn,
    (5, 2): torch.float8_e5m2,
}
_FORMATS = (*_BY_BITS.values(), torch.float8_e4m3fnuz, torch.float8_e5m2fnuz)
_BY_NAME = {str(dtype).removeprefix("torch."): dtype for dtype in _FORMATS}


class _Cast(torch.autograd.Function):
    """Rounding to a format and back, with the identity's gradient where it is not clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor | None, dtype: torch.dtype) -> Tensor:
        if scale is None:
            return x.to(dtype).to(x.dtype)
        largest = torch.finfo(dtype).max
        scaled = x / scale
        ctx.largest = largest
        ctx.save_for_backward(scaled)
        return scaled.clamp(-largest, largest).to(dtype).to(x.dtype) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> Any:
        if ctx.saved_tensors:
            g = hardtanh_backward(g, ctx.saved_tensors[0], -ctx.largest, ctx.largest)
        return g, None, None


class FloatQuantizeDequantize(QuantizerBase):
    """Rounds a tensor to a narrow floating-point format.

    Args:
        exponent_bits: with `mantissa_bits`, the format by its bits.
        mantissa_bits: see `exponent_bits`.
        dtype: the format as a type of PyTorch or its name, instead of the bits.
        shape: ranges of an 8-bit format, laid against the tensor from the right.

    Example:
        >>> FloatQuantizeDequantize(dtype=torch.bfloat16)(torch.tensor([1.003]))
        DequantizedTensor([1.])
    """

    min: nn.Parameter
    max: nn.Parameter

    def __init__(
        self,
        exponent_bits: int | None = None,
        mantissa_bits: int | None = None,
        dtype: torch.dtype | str | None = None,
        *,
        shape: Sequence[int] = (),
    ) -> None:
        super().__init__()
        asked = dtype
        if dtype is not None and (exponent_bits, mantissa_bits) != (None, None):
            what = f"a floating-point format is given twice: by {dtype} and by bits"
            raise QuantizationError("FXQ414", what, fix="leave one out")
        if dtype is None:
            dtype = _BY_BITS.get((exponent_bits or 0, mantissa_bits or 0))
        elif isinstance(dtype, str):
            dtype = _BY_NAME.get(dtype.removeprefix("torch."))
        if dtype is None or dtype not in _FORMATS:
            asked = asked or f"{exponent_bits} exponent bits and {mantissa_bits} mantissa bits"
            raise QuantizationError(
                "FXQ414",
                f"no floating-point format for {asked}",
                fix=f"use one of {', '.join(_BY_NAME)}",
            )
        self.dtype: torch.dtype = dtype
        self._layout = Layout(tuple(shape))
        if self.scaled:
            for name in ("min", "max"):
                unknown = torch.full(self.shape, torch.nan)
                self.register_parameter(name, nn.Parameter(unknown, requires_grad=False))

    signed = True
    symmetric = True

    @property
    def scaled(self) -> bool:
        """True if the format is so narrow that tensors are divided by a scale first."""
        return torch.finfo(self.dtype).bits < 16

    @property
    def bitwidth(self) -> int:
        """Bits of one value."""
        return torch.finfo(self.dtype).bits

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the ranges."""
        return self._layout.shape

    def is_initialized(self) -> bool:
        """True if no range is needed, or it is known."""
        return not self.scaled or not bool(self.min.isnan().any() or self.max.isnan().any())

    def set_range(self, min: Tensor | float, max: Tensor | float) -> None:
        """Set the range of an 8-bit format."""
        low, high = self._checked_ends(min, max)
        with torch.no_grad():
            for end, given in ((self.min, low), (self.max, high)):
                if given is not None:
                    end.copy_(given)

    def get_scale(self) -> Tensor | None:
        """What a tensor is divided by, or None if it is not, or not yet known."""
        if not self.scaled or not self.is_initialized():
            return None
        with torch.no_grad():
            reach = torch.maximum(self.max.abs(), self.min.abs()) / torch.finfo(self.dtype).max
            return torch.where(reach == 0.0, 1.0, reach.clamp(min=2.0**-60))

    def get_offset(self) -> Tensor | None:
        """Zeros: floating-point formats have no zero point."""
        scale = self.get_scale()
        return None if scale is None else torch.zeros_like(scale)

    def get_encodings(self) -> FloatEncoding | None:
        """The format and its scale, or None before calibration."""
        return FloatEncoding(self.dtype, self.get_scale()) if self.is_initialized() else None

    def forward(self, x: Tensor) -> Tensor:
        """The rounded tensor, or the tensor itself while observing."""
        if self._observing:
            if self.scaled and self._overwritable:
                self._observe(x)
            return x
        if not self._enabled:
            return x
        y = self.transform(x)
        if torch.compiler.is_compiling():
            return y
        return attach(y, self.get_encodings(), DequantizedTensor)

    def transform(self, x: Tensor) -> Tensor:
        """The rounded tensor as a plain tensor, in the precision of the input."""
        self._check_float(x)
        if not self.is_initialized():
            raise self._uncalibrated()
        given, scale = x.dtype, self.get_scale()
        x = self._layout.split(float32(x))
        if scale is not None:
            scale = self._layout.spread(scale)
        return _Cast.apply(x, scale, self.dtype).to(given)  # type: ignore[no-any-return, no-untyped-call]

    def new_statistics(self) -> MinMaxStatistics | None:
        """Extremes of nothing, where a format has a scale."""
        return MinMaxStatistics(self.shape) if self.scaled else None

    def _observe(self, x: Tensor) -> None:
        if x.numel() == 0 or self._statistics is None:
            return
        with torch.inference_mode(False), torch.no_grad():
            seen = float32(x.detach())
            low, high = self._layout.extremes(seen)
            self._check_finite(low, high)
            self._statistics.update(seen, low, high)

    def _finish(self) -> None:
        seen = self._statistics
        if isinstance(seen, MinMaxStatistics) and seen.low is not None and seen.high is not None:
            self.set_range(seen.low, seen.high)

    def extra_repr(self) -> str:
        """The format."""
        shape = f", shape={self.shape}" if self.scaled else ""
        return f"dtype={str(self.dtype).removeprefix('torch.')}{shape}"
